"""Tiny models: what the tests of everything else stand on."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from models.tiny import save_tiny, tiny_gpt2, tiny_llama, tiny_llama_classifier, tiny_tokenizer


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("padding", ["none", "eos", "own"])
def test_folders_load_with_model_and_tokenizer(tmp_path, family, padding):
    lm = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "lm", family, padding=padding, seed=3))
    classifier = AutoModelForSequenceClassification.from_pretrained(
        save_tiny(tmp_path / "rm", family, head="classifier", num_labels=2, padding=padding)
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
    ids = torch.tensor([[2, 3, 4]])
    original = {"gpt2": tiny_gpt2, "llama": tiny_llama}[family](seed=3)
    assert torch.equal(lm(ids).logits, original(ids).logits)
    assert classifier.config.num_labels == 2
    assert tokenizer("w2 w5 <eos> what").input_ids == [2, 5, 1, 0]
    assert tokenizer.pad_token_id == {"none": None, "eos": 1, "own": 31}[padding] == lm.config.pad_token_id


def test_the_seed_decides_the_weights_and_the_logits_are_far_from_flat():
    ids = torch.tensor([[2, 3, 4]])
    first, again, other = (tiny_llama(seed=seed)(ids).logits for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std() > 0.5
    assert tiny_llama_classifier(num_labels=1).score.weight.std() > 0.1


def test_one_setting_reaches_every_dropout():
    gpt2, llama = tiny_gpt2(dropout=0.1).train(), tiny_llama(dropout=0.1).train()
    assert {m.p for m in gpt2.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert all(layer.self_attn.attention_dropout == 0.1 for layer in llama.model.layers)


def test_words_are_the_callers_and_too_many_are_refused():
    tokenizer = tiny_tokenizer(vocab_size=6, words=["good", "bad"], padding="own")
    assert tokenizer("good bad good").input_ids == [2, 3, 2]
    assert tokenizer.pad_token_id == 4
    with pytest.raises(ValueError, match="5 tokens with specials, but vocab_size is 4"):
        tiny_tokenizer(vocab_size=4, words=["a", "b"], padding="own")
