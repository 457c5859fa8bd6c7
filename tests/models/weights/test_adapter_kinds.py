"""Adapters of every kind that PEFT makes: what is trained is in float32, and a checkpoint holds all of it."""

import json
import os
import shutil
import warnings
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from models import LoraSettings, load_policy
from models.tiny import save_tiny, tiny_tokenizer
from models.weights.adapter_weights import BESIDE, WEIGHTS, require_wide

IDS = torch.tensor([[2, 21, 22, 25, 30, 3]])
NEW_IDS = torch.tensor([[2, 32, 3, 33, 25]])
RESERVED = {"modules_to_save": ["embed_tokens", "lm_head"]}


def logits(model, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def drawn(parameters, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in parameters:
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))


def adapter(tmp_path: Path, *, rows: int = 32, embeddings="auto", moved: bool = False, tied: bool = False, **kind):
    """PEFT's own model and the folder it writes; ``moved`` embeddings are new in the base that is adapted."""
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "base", "llama", tie_word_embeddings=tied))
    tokenizer = tiny_tokenizer()
    if rows > 32:
        tokenizer.add_special_tokens({"additional_special_tokens": [f"<new{number}>" for number in range(rows - 32)]})
        model.resize_token_embeddings(rows)
    if moved:
        drawn([model.get_input_embeddings().weight], 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(task_type="CAUSAL_LM", r=4, **{"target_modules": ["q_proj"], **kind})
        tuned = get_peft_model(model, config).eval()
        drawn([weight for weight in tuned.parameters() if weight.requires_grad], 1)
        tuned.save_pretrained(tmp_path / "sft", save_embedding_layers=embeddings)
    tokenizer.save_pretrained(tmp_path / "sft")
    return tuned, str(tmp_path / "sft")


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        ({"moved": True, "embeddings": True}, IDS),
        ({"target_modules": ["embed_tokens", "q_proj"]}, IDS),
        (RESERVED, IDS),
        ({"modules_to_save": ["layers.1"]}, IDS),
        ({"trainable_token_indices": [21, 22]}, IDS),
        ({"use_dora": True}, IDS),
        ({"lora_bias": True}, IDS),
        ({"rows": 34}, NEW_IDS),
        ({"rows": 34, **RESERVED}, NEW_IDS),
        ({"rows": 34, "modules_to_save": ["embed_tokens"]}, NEW_IDS),
        ({"rows": 34, "tied": True}, NEW_IDS),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_computes_what_was_trained(tmp_path, kind, ids):
    tuned, folder = adapter(tmp_path, **kind)
    policy = load_policy(folder)
    started = logits(policy.language_model, ids)
    torch.testing.assert_close(started, logits(tuned, ids), atol=1e-5, rtol=0)
    drawn(policy.parameters(), 2)
    trained = logits(policy.language_model, ids)
    assert not torch.allclose(started, trained, atol=1e-3)
    with policy._network.reference.active():
        assert torch.equal(logits(policy.language_model, ids), started)
    policy.save(str(tmp_path / "saved"))
    assert torch.equal(logits(load_policy(str(tmp_path / "saved")).language_model, ids), trained)
    drawn(policy.parameters(), 4)
    policy.restore(str(tmp_path / "saved"))
    assert torch.equal(logits(policy.language_model, ids), trained)


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["norm"], ["layers.1"]])
def test_modules_trained_whole_are_float32_in_a_bfloat16_model(tmp_path, modules):
    _, folder = adapter(tmp_path, modules_to_save=modules)
    policy = load_policy(folder, dtype="bfloat16")
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    stored = load_file(Path(folder, WEIGHTS)).values()  # to the bit: nothing went through bfloat16
    assert all(any(torch.equal(weight, tensor) for tensor in stored) for weight in policy.parameters()[:-2])
    model = policy.language_model
    started = logits(model)
    assert started.dtype == torch.bfloat16
    with policy._network.reference.active():
        assert torch.equal(logits(model), started)
    model(input_ids=IDS).logits.float().log_softmax(-1)[..., 3].sum().backward()
    assert all(bool(weight.grad.abs().sum() > 0) for weight in model.parameters() if weight.requires_grad)


def test_training_in_less_than_float32_is_refused_on_every_road():
    with pytest.raises(ValueError, match=r"weight \(torch.bfloat16\).*less than float32.*dtype='float32'"):
        require_wide(torch.nn.Linear(2, 2, dtype=torch.bfloat16))
    require_wide(torch.nn.Linear(2, 2).requires_grad_(True))
    require_wide(torch.nn.Linear(2, 2, dtype=torch.bfloat16).requires_grad_(False))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication=.*repeat once more; merge"),
        ({"rows": 34, "embeddings": False}, "ids up to 33.*embeddings of 32 tokens.*save_embedding_layers=True"),
        ({"tied": True, "target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "lm_head.*no place; merge"),
        ({"rows": 34, "target_modules": ["embed_tokens"]}, "vocabulary of 34, its base has 32.*lacks.*lm_head"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_that_cannot_go_on_is_refused_with_the_way_out(tmp_path, kind, said):
    _, folder = adapter(tmp_path, **kind)
    with pytest.raises(ValueError, match=said):
        load_policy(folder)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tensor_that_is_missing_or_has_no_place_is_named(tmp_path):
    _, folder = adapter(tmp_path)
    file = Path(folder, WEIGHTS)
    stored = load_file(file)
    lost, tensor = stored.popitem()
    save_file(stored, file)
    with pytest.raises(ValueError, match=r"lacks base_model.*q_proj"):
        load_policy(folder)
    save_file({**stored, lost: tensor, "base_model.model.model.layers.0.mlp.gate_proj.weight2": tensor.clone()}, file)
    with pytest.raises(ValueError, match=r"holds base_model.*weight2, for which LlamaForCausalLM"):
        load_policy(folder)


SHAPE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 1,
         "pad_token_id": None}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "targets", "adapted"),
    [
        ("Phi3", None, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("Olmo2", None, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("Mixtral", None, {"q_proj", "v_proj"}),  # PEFT's default
        ("Llama", None, {"q_proj", "v_proj"}),
        ("Llama", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_default_targets_are_pefts_or_all_linear_layers_but_the_head(tmp_path, family, targets, adapted):
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**SHAPE))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), lora=LoraSettings(rank=2, target_modules=targets))
    trained = [name for name, weight in policy.language_model.named_parameters() if weight.requires_grad]
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} == adapted


def test_targets_that_fit_nothing_are_told_what_there_is(tmp_path):
    base = save_tiny(tmp_path, "llama")
    with pytest.raises(ValueError, match=r"target_modules=\('nosuch',\).*down_proj.*'all-linear'"):
        load_policy(base, lora=LoraSettings(target_modules=("nosuch",)))


@pytest.mark.parametrize("moved", ["working directory", "whole tree", "adapter alone"])
def test_an_adapter_finds_its_base_from_anywhere(tmp_path, monkeypatch, moved):
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    monkeypatch.chdir(home)
    policy = load_policy(save_tiny("base", "llama"), lora=LoraSettings(rank=2))
    drawn(policy.parameters(), 1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = home / "run" / "policy"
    policy.save(str(folder))
    assert json.loads((folder / BESIDE).read_text()) == {"folder": os.path.join("..", "..", "base")}
    assert not (folder / "README.md").exists()  # PEFT's card names folders of this machine
    if moved == "whole tree":
        shutil.move(home, tmp_path / "new")
        folder = tmp_path / "new" / "run" / "policy"
    if moved == "adapter alone":
        folder = Path(shutil.move(folder, tmp_path / "alone"))
    assert torch.equal(logits(load_policy(str(folder)).language_model), logits(policy.language_model))
    if moved == "adapter alone":
        shutil.rmtree(home / "base")
        with pytest.raises(FileNotFoundError, match="base_model_name_or_path"):
            load_policy(str(folder))


@pytest.fixture
def made_by_peft(tmp_path, monkeypatch):
    """home/runs/sft, made by plain PEFT in home on the relative base models/base; and a working directory elsewhere."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    save_tiny("models/base", "llama")
    lm = AutoModelForCausalLM.from_pretrained("models/base")
    tuned = get_peft_model(lm, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
    drawn([p for p in tuned.parameters() if p.requires_grad], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained("runs/sft")
    assert json.loads(Path("runs/sft/adapter_config.json").read_text())["base_model_name_or_path"] == "models/base"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tuned, home


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_of_plain_peft_finds_its_relative_base_from_anywhere(made_by_peft, tmp_path):
    tuned, home = made_by_peft
    found = load_policy(str(home / "runs/sft")).language_model
    torch.testing.assert_close(logits(found), logits(tuned), atol=1e-5, rtol=0)
    other = save_tiny(tmp_path / "elsewhere/models/base", "llama", seed=5)  # the working directory comes first
    again = load_policy("../home/runs/sft")
    assert Path(again.language_model.name_or_path).samefile(other)
    assert not torch.equal(logits(again.language_model), logits(found))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_base_that_is_nowhere_is_named_with_the_places_that_were_tried(made_by_peft, tmp_path, monkeypatch):
    _, home = made_by_peft
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    shutil.move(home / "models/base", tmp_path / "moved")
    with pytest.raises(FileNotFoundError) as refused:
        load_policy(str(home / "runs/sft"))
    for words in (
        f"{home / 'runs/sft'} is an adapter on 'models/base', and that base was not found: "
        "there is no folder models/base, "
        f"{home / 'runs/sft/models/base'}, {home / 'runs/models/base'}, {home / 'models/base'}, ",
        f"write where it is into base_model_name_or_path of {home / 'runs/sft/adapter_config.json'}",
    ):
        assert words in str(refused.value)
    file = home / "runs/sft/adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "moved")}))
    load_policy(str(home / "runs/sft"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_auxiliary_that_carries_embeddings_leaves_the_policy_alone(tmp_path):
    tuned, folder = adapter(tmp_path, moved=True, embeddings=True)
    base, alone = str(tmp_path / "base"), LoraSettings(rank=2)
    policy = load_policy(base, lora=alone, auxiliaries={"other": folder})
    assert torch.equal(logits(policy.language_model), logits(load_policy(base, lora=alone).language_model))
    beside = policy._network.auxiliaries["other"]
    with beside.active():
        torch.testing.assert_close(logits(beside.lm), logits(tuned), atol=1e-5, rtol=0)
