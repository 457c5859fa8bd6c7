"""Folders of another kind than is asked for are refused by what they are, with the function that takes them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks.tasks.starting_models import from_base
from models import LoraSettings, load_policy, load_process_reward_model, load_reward_model
from models.tiny import llama_config, save_tiny, tiny_tokenizer
from models.training.finetuning import adapted_reward_model
from models.weights.source import ModelSource


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    save_tiny(root / "policy", "llama")
    save_tiny(root / "reward", "llama", head="classifier")
    bert = transformers.BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                   intermediate_size=16, num_labels=1)  # fmt: skip
    kinds = {"TokenClassification": llama_config(), "QuestionAnswering": llama_config(), "MaskedLM": bert,
             "MultipleChoice": bert, "NextSentencePrediction": bert}  # fmt: skip
    for head, config in kinds.items():
        family = "Bert" if config is bert else "Llama"
        getattr(transformers, f"{family}For{head}")(config).save_pretrained(root / head)
        tiny_tokenizer().save_pretrained(root / head)
    transformers.BertModel(bert).save_pretrained(root / "encoder")
    (root / "adapter").mkdir()
    load_policy(str(root / "policy"), lora=LoraSettings(rank=2)).save(str(root / "adapter"))
    (root / "reward-adapter").mkdir()
    source = ModelSource(name_or_path=str(root / "policy"))
    adapted_reward_model(source, LoraSettings(rank=2), seed=0, checkpointing=False).save(str(root / "reward-adapter"))
    return root


def said(load, folder: Path) -> str:
    with pytest.raises(ValueError) as refused:
        load(str(folder))
    assert str(folder) in str(refused.value)
    assert "cannot be read" not in str(refused.value)
    return str(refused.value)


def reward(folder: str):
    return load_reward_model(folder, score="single_logit")


def test_a_token_classifier_without_bias_is_no_sequence_classifier(folders, tmp_path):
    """Without its bias, its head has the name and the shape of a sequence classifier's."""
    folder = tmp_path / "tokens"
    shutil.copytree(folders / "TokenClassification", folder)
    weights = load_file(folder / "model.safetensors")
    assert weights.pop("score.bias") is not None
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused = said(reward, folder)
    assert "a token classifier, which labels every token (LlamaForTokenClassification), not a sequence" in refused
    assert refused.endswith("; load_process_reward_model takes it, as a scorer of steps")


@pytest.mark.parametrize(
    ("load", "folder", "what"),
    [
        (reward, "QuestionAnswering", "is a question answering model"),
        (reward, "MaskedLM", "is a masked language model"),
        (reward, "MultipleChoice", "is a multiple choice model"),
        (reward, "NextSentencePrediction", "is a next sentence predictor"),
        (reward, "policy", "is a causal language model (LlamaForCausalLM), not a sequence classifier; load_"),
        (load_policy, "reward", "is a sequence classifier (LlamaForSequenceClassification), not a causal language "
                                "model; load_reward_model takes it"),
        (load_policy, "MaskedLM", "is a masked language model, an encoder that sees the whole text"),
        (load_policy, "reward-adapter", "is the adapter of a sequence classifier, not of a causal language model; loa"),
        (reward, "adapter", "is the adapter of a causal language model, not of a sequence classifier; load_po"),
        (lambda name: from_base(name, context=4), "adapter", "is an adapter"),
        (load_process_reward_model, "policy", "is a causal language model (LlamaForCausalLM), not a token classifier"),
        (load_process_reward_model, "reward-adapter", "is the adapter of a sequence classifier, not of a token "
                                                      "classifier; load_reward_model takes it"),
    ],
)  # fmt: skip
def test_a_model_of_another_kind_is_refused_with_the_function_that_takes_it(folders, load, folder, what):
    assert what in said(load, folders / folder)


def test_the_adapter_of_a_token_classifier_is_to_be_merged(folders, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(folders / "reward-adapter", folder)
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"task_type": "TOKEN_CLS"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert "merge it into its base model" in said(load_process_reward_model, folder)
    assert "once merged into its base, load_process_reward_model takes it" in said(reward, folder)


OTHERS = {
    "model_index.json": "is a diffusers pipeline",
    "modules.json": "is a sentence-transformers model",
    "dataset_info.json": "is a data set",
    "rows.jsonl": "is a data set",
    "part.parquet": "is a data set",
    "model.Q4_K_M.gguf": "is a GGUF model, whose weights are no safetensors",
    "tokenizer.json": "is a tokenizer without a model",
}


@pytest.mark.parametrize("load", [load_policy, reward])
@pytest.mark.parametrize("file", OTHERS)
def test_a_folder_that_is_no_model_is_refused_by_what_it_is(tmp_path, load, file):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / file).write_text("{}")
    assert OTHERS[file] in said(load, tmp_path / "folder")


@pytest.mark.parametrize("depth", [1, 2])
def test_a_folder_around_a_model_says_which_was_meant(folders, tmp_path, depth):
    run = tmp_path / "run"
    for step in (2, 10):
        shutil.copytree(folders / "policy", run / f"checkpoint-{step}" / "policy")
    meant = run / "checkpoint-10" / "policy"
    assert f"did you mean {str(meant)!r}" in said(load_policy, run if depth == 2 else run / "checkpoint-10")


@pytest.mark.parametrize(("load", "kind"), [(load_policy, "policy"), (reward, "reward")])
def test_a_folder_without_a_tokenizer_says_so_in_a_line(folders, tmp_path, load, kind):
    shutil.copytree(folders / kind, tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    told = said(load, tmp_path / "bare")
    assert "has no tokenizer files; save the tokenizer of its model there" in told
    assert "\n" not in told


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "bitsandbytes"])
def test_weights_quantised_otherwise_are_refused_by_name(folders, tmp_path, method):
    for load, kind in ((load_policy, "policy"), (reward, "reward")):
        folder = tmp_path / kind
        shutil.copytree(folders / kind, folder)
        config = json.loads((folder / "config.json").read_text())
        eight = {"quantization_config": {"quant_method": method, "load_in_8bit": True}}
        (folder / "config.json").write_text(json.dumps(config | eight))
        assert f"holds weights quantised by {method}" in said(load, folder)


def test_labels_that_do_not_exclude_each_other_are_no_score(tmp_path):
    folder = save_tiny(tmp_path / "reward", "llama", head="classifier", num_labels=2)
    file = Path(folder, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"problem_type": "multi_label_classification"}))
    with pytest.raises(ValueError, match="2 labels are separate answers, whose difference is no score"):
        load_reward_model(folder, score="logit_difference")


def four_bit_folder(root: Path, auto, head: str) -> tuple[str, torch.nn.Module]:
    whole = save_tiny(root / f"whole-{head}", "llama", head=head, hidden_size=64)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                             bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip
    model = auto.from_pretrained(whole, quantization_config=config, device_map={"": "cpu"})
    model.save_pretrained(root / f"four-{head}")
    tiny_tokenizer().save_pretrained(root / f"four-{head}")
    return str(root / f"four-{head}"), model.eval()


def test_a_policy_stored_in_four_bits_is_loaded_as_it_is(tmp_path):
    folder, stored = four_bit_folder(tmp_path, transformers.AutoModelForCausalLM, "lm")
    with pytest.raises(ValueError, match=r"four-lm holds 4-bit weights, which cannot be trained; give lora="):
        load_policy(folder)
    with pytest.raises(ValueError, match="holds 4-bit weights, which cannot be trained whole"):
        from_base(folder, context=4)
    lora, ids = LoraSettings(rank=2), torch.tensor([[2, 3, 4]])
    packed = {name: weight for name, weight in stored.named_parameters() if weight.dtype == torch.uint8}
    for asked in ({"dtype": "bfloat16"}, {"four_bit": True}, {}):
        policy = load_policy(folder, lora=lora, **asked)
        held = dict(policy.language_model.named_parameters())
        assert all(torch.equal(held[name.replace(".weight", ".base_layer.weight")], packed[name]) for name in packed
                   if name.replace(".weight", ".base_layer.weight") in held)  # fmt: skip
        others = {weight.dtype for name, weight in held.items() if "lora" not in name} - {torch.uint8}
        assert others == {policy.compute_dtype}
        assert all(weight.dtype == torch.float32 for weight in policy.parameters())
    with torch.no_grad():
        gap = policy.language_model(ids).logits - stored(ids).logits
    assert 0 < gap.abs().max() < 0.3  # it computes in float32, the other in bfloat16
    (tmp_path / "adapter").mkdir()
    policy.save(str(tmp_path / "adapter"))
    assert load_policy(str(tmp_path / "adapter")).vocab_size == 32


def test_a_reward_model_stored_in_four_bits_is_loaded_as_it_is(tmp_path):
    folder, stored = four_bit_folder(tmp_path, transformers.AutoModelForSequenceClassification, "classifier")
    with torch.no_grad():
        own = stored(torch.tensor([[2, 3, 4]])).logits[0]
    for four_bit in (False, True):
        found = load_reward_model(folder, score="single_logit", four_bit=four_bit).score_ids([[2, 3, 4]])
        torch.testing.assert_close(found, own.float(), atol=1e-3, rtol=5e-2)
