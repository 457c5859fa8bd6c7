"""How long a text a model was built for, whatever its config calls that."""

import pytest
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from models.passes.context_length import context_length

SMALL = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
CASES = {
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=20)), 20),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=8, max_position_embeddings=20)),
        20,
    ),
    "mpt": (lambda: MptForCausalLM(MptConfig(vocab_size=16, d_model=8, n_layers=1, n_heads=2, max_seq_len=20)), 20),
    "bloom": (lambda: BloomForCausalLM(BloomConfig(vocab_size=16, hidden_size=8, n_layer=1, n_head=2)), None),
    "roberta": (
        lambda: RobertaForSequenceClassification(
            RobertaConfig(**SMALL, intermediate_size=8, max_position_embeddings=20, pad_token_id=1)
        ),
        18,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_context_is_what_the_model_was_built_for(name):
    build, length = CASES[name]
    assert context_length(build()) == length
