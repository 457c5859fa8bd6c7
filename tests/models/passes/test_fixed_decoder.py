"""Decoding in steps of fixed shapes: the logits of the ordinary decoder, in buffers that stay."""

import pytest
import torch
from attention_families import VOCAB, build
from torch._dynamo.exc import Unsupported
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

from models.passes import fixed_steps_check
from models.passes.fixed_decoder import COLUMNS, ROWS, FixedSteps
from models.passes.fixed_steps_check import check_fixed_steps
from models.passes.rotary import read_rows_alone
from models.passes.sampling import CachedDecoder, left_padded

CPU = torch.device("cpu")
PROMPTS = [[2, 3, 4, 5, 6], [7], [8, 9, 1], [10, 11]]


@pytest.fixture(autouse=True)
def no_gradient():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def lm():
    return build("llama", AutoModelForCausalLM)


def walked(decoder, prompts=PROMPTS, steps=6) -> list[torch.Tensor]:
    """Logits of every step; a row leaves after the second, and two after the fourth."""
    logits, rows = [decoder.start(*left_padded(prompts, CPU))], torch.arange(len(prompts))
    for step in range(steps):
        logits.append(decoder.advance((7 * rows + 3 * step + 2) % VOCAB))
        kept = {1: [0, 2, 3], 3: [1]}.get(step)
        if kept is not None:
            decoder.keep(torch.tensor(kept))
            rows = rows[kept]
    return logits


def require_alike(lm, decoder, prompts=PROMPTS, steps=6) -> None:
    wanted = walked(CachedDecoder(lm, torch.full((len(prompts),), steps)), prompts, steps)
    for mine, theirs in zip(walked(decoder, prompts, steps), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)


def room(tokens: int) -> torch.Tensor:
    return torch.tensor([1, tokens, 2, tokens])


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "qwen3", "gpt_neox", "opt", "gemma", "falcon-alibi", "bloom"])
def test_steps_of_fixed_shapes_give_the_ordinary_logits(family):
    lm = build(family, AutoModelForCausalLM)
    check_fixed_steps(lm, VOCAB)
    require_alike(lm, FixedSteps(lm, lm).decoder(room(6)))


def test_a_rollout_that_fits_uses_the_same_buffers(lm):
    steps = FixedSteps(lm, lm)
    require_alike(lm, steps.decoder(room(6)))
    buffers = steps._buffers
    layer = buffers.cache.layers[0]
    assert layer.keys.shape[:3:2] == buffers.mask.shape == (ROWS, COLUMNS)
    where = layer.keys.data_ptr()
    require_alike(lm, steps.decoder(torch.tensor([COLUMNS - 9] * 5)), [*PROMPTS, [3] * 9])  # the last that fits
    require_alike(lm, steps.decoder(room(6)))
    assert steps._buffers is buffers
    assert buffers.cache.layers[0].keys.data_ptr() == where


@pytest.mark.parametrize(
    ("prompts", "tokens", "shape"),
    [([*PROMPTS, [3] * 9], COLUMNS - 8, (ROWS, 2 * COLUMNS)), ([*PROMPTS, *PROMPTS, [5]], 6, (2 * ROWS, COLUMNS))],
)
def test_one_that_does_not_fit_gets_larger_ones(lm, prompts, tokens, shape):
    steps = FixedSteps(lm, lm)
    require_alike(lm, steps.decoder(room(6)))
    require_alike(lm, steps.decoder(torch.tensor([tokens] * len(prompts))), prompts)
    assert steps._buffers.mask.shape == shape


def test_a_rollout_of_numbers_that_are_none_leaves_nothing_behind(lm):
    steps = FixedSteps(lm, lm)
    walked(steps.decoder(room(6)))
    for layer in steps._buffers.cache.layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.inf)
    require_alike(lm, steps.decoder(room(6)))


def test_rows_may_be_repeated_before_the_first_step(lm):
    decoder, other = FixedSteps(lm, lm).decoder(room(3)), CachedDecoder(lm, torch.full((5,), 3))
    copies = [1, 1, 3, 0, 1]
    decoder.start(*left_padded(PROMPTS, CPU))
    other.start(*left_padded([PROMPTS[row] for row in copies], CPU))
    decoder.keep(torch.tensor(copies))
    tokens = torch.tensor([2, 3, 4, 5, 6])
    torch.testing.assert_close(decoder.advance(tokens), other.advance(tokens), rtol=1e-4, atol=2e-5)
    for one in (decoder, other):
        one.keep(torch.tensor([0, 2, 4]))
    torch.testing.assert_close(decoder.advance(tokens[:3]), other.advance(tokens[:3]), rtol=1e-4, atol=2e-5)


LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def phi3():
    lm = Phi3ForCausalLM(
        Phi3Config(
            **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1},
            **{"num_attention_heads": 4, "max_position_embeddings": 64, "original_max_position_embeddings": 16},
            **{"pad_token_id": 0, "rope_parameters": {**LONG_ROPE, "original_max_position_embeddings": 16}},
        )
    ).eval()
    read_rows_alone(lm)
    return lm


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: build("mistral", AutoModelForCausalLM), r"MistralFor.* \(StaticSlidingWindowLayer\)"),
        (lambda: build("mamba", AutoModelForCausalLM), "MambaForCausalLM .* recurrent state"),
        (lambda: build("gpt_neo", AutoModelForCausalLM), "GPTNeoForCausalLM .* one graph"),
        (phi3, "Phi3ForCausalLM .*LongRoPE"),
    ],
    ids=["sliding window", "recurrent", "not one graph", "rotary"],
)
def test_models_that_keep_something_else_are_refused_by_name(make, reason):
    with pytest.raises(ValueError, match=f"{reason}.*; load the policy without compile_decoding"):
        check_fixed_steps(make(), VOCAB)


class Strange(torch.nn.Module):
    """A model whose own code meets a cache of fixed shapes otherwise than it should."""

    def __init__(self, lm, answer) -> None:
        super().__init__()
        self.lm, self.answer = lm, answer

    def forward(self, **inputs):
        return self.answer(self.lm, inputs)


def fails(lm, inputs):
    raise IndexError("index 7")


def forgets(lm, inputs):
    """The first columns."""
    inputs["attention_mask"] = inputs["attention_mask"].index_fill(1, torch.tensor([0, 1]), 0)
    return lm(**inputs)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(fails, r"fails with transformers' StaticCache \(IndexError: index 7"), (forgets, "differ .* by .* nats")],
    ids=["fails", "forgets"],
)
def test_models_that_say_something_else_are_refused_by_name(lm, answer, reason, monkeypatch):
    monkeypatch.setattr(fixed_steps_check, "FixedSteps", lambda lm, run: FixedSteps(lm, Strange(lm, answer)))
    with pytest.raises(ValueError, match=f"LlamaForCausalLM cannot .* {reason}"):
        check_fixed_steps(lm, VOCAB)


def test_a_step_that_cannot_be_compiled_says_what_to_turn_off(lm):
    def refuses(**_):
        raise Unsupported("no compiler")

    decoder = FixedSteps(lm, refuses).decoder(room(3))
    decoder.start(*left_padded(PROMPTS, CPU))
    with pytest.raises(RuntimeError, match=r"of LlamaForCausalLM here: Unsupported: no compiler .* Turn compile"):
        decoder.advance(torch.tensor([2, 3, 4, 5]))
