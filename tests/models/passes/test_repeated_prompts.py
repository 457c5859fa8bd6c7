"""A prompt that stands in a batch several times is read once, and nothing else changes."""

from contextlib import nullcontext

import pytest
import torch
from attention_families import VOCAB, build
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_flops import sampling_flops
from transformers import AutoModelForCausalLM

from models import load_policy
from models.passes.repeated_prompts import every_copy_read, first_copies
from models.passes.sampling import CachedDecoder, left_padded
from models.tiny import save_tiny, tiny_gpt2
from rlhf_core.types import Limits

CPU = torch.device("cpu")
POOL = ([5, 6, 7], [6, 7], [0, 6, 7], [8], [9, 3, 1, 2, 2, 4], [5, 6])
CACHES = ["gpt2", "llama-gqa", "mistral", "gpt_neo", "bloom", "falcon", "gemma2", "mamba"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def policy(request, tmp_path_factory):
    return load_policy(save_tiny(tmp_path_factory.mktemp("policy"), request.param, std=0.2))


def rows_read(lm):
    """(rows, tokens) of each pass from now on."""
    shapes = []
    lm.get_input_embeddings().register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    return shapes


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=12))
def test_first_copies_stand_in_order_and_make_up_all_rows(numbers):
    rows = torch.tensor(numbers)
    first, copies = first_copies(rows)
    assert rows[first][copies].equal(rows)
    assert first.tolist() == [i for i, row in enumerate(numbers) if row not in numbers[:i]]
    with every_copy_read():
        assert [found.tolist() for found in first_copies(rows)] == [list(range(len(rows)))] * 2


def test_each_prompt_is_read_once_and_padding_is_no_part_of_it(policy):
    shapes = rows_read(policy.language_model)
    prompts = [POOL[i] for i in (1, 0, 1, 2, 0, 1)]
    limits = Limits(min_lengths=torch.full((6,), 3), max_lengths=torch.full((6,), 3))
    numbers = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = policy.sample(prompts, limits, numbers)
    assert shapes == [(3, 3), (6, 1), (6, 1)]
    assert drawn.prompts() == prompts


@settings(max_examples=8, deadline=None)
@given(
    chosen=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12)), min_size=1, max_size=9), seed=st.integers(0, 99)
)
def test_any_repeats_in_any_order_draw_the_tokens_of_rows_read_apart(policy, chosen, seed):
    """Copies have limits of their own, and leave when they end."""
    prompts = [POOL[which] for which, _ in chosen]
    most = torch.tensor([length for _, length in chosen])
    limits = Limits(min_lengths=most // 3, max_lengths=most)
    numbers = torch.rand(len(chosen), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    once = policy.sample(prompts, limits, numbers)
    with every_copy_read():
        each = policy.sample(prompts, limits, numbers)
    assert once.responses() == each.responses()
    assert once.finished.equal(each.finished)


def test_copies_end_at_eos_one_by_one(policy):
    n = 12
    limits = Limits(min_lengths=torch.zeros(n, dtype=torch.long), max_lengths=torch.full((n,), 20))
    numbers = torch.rand(n, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = policy.sample([POOL[0]] * n, limits, numbers)
    assert len(set(drawn.response_lengths[drawn.finished].tolist())) > 1
    for row in (0, 5, 11):
        part = torch.tensor([row])
        own = Limits(min_lengths=limits.min_lengths[part], max_lengths=limits.max_lengths[part])
        assert policy.sample([POOL[0]], own, numbers[part]).responses() == drawn.responses()[row : row + 1]


@torch.no_grad()
@pytest.mark.parametrize("family", CACHES)
def test_every_kind_of_cache_gives_its_rows_to_copies(family):
    """Plain, in a sliding window and recurrent: logits are those of rows read apart, up to rounding."""
    lm, found = build(family, AutoModelForCausalLM), []
    prompts = [POOL[i] for i in (0, 3, 0, 4, 3, 0)]
    tokens = torch.randint(2, VOCAB, (8, 6), generator=torch.Generator().manual_seed(0))
    for reading in (nullcontext, every_copy_read):
        with reading():
            decoder = CachedDecoder(lm, room=torch.full((6,), 8))
            steps = [decoder.start(*left_padded(prompts, CPU)), *map(decoder.advance, tokens[:5])]
        decoder.keep(torch.tensor([0, 2, 4, 5]))
        found.append([*steps, *(decoder.advance(step[:4]) for step in tokens[5:])])
    assert float((found[0][1][0] - found[0][1][2]).abs().max()) > 0.1, "copies part ways, or nothing is tested"
    for once, each in zip(*found, strict=True):
        torch.testing.assert_close(once, each, rtol=1e-4, atol=1e-5)


def test_four_responses_need_a_quarter_of_the_prefill():
    model, prompt = tiny_gpt2(), [2 + place % 20 for place in range(48)]
    once = sampling_flops(model, prompt, response=9, times=4)
    with every_copy_read():
        each = sampling_flops(model, prompt, response=9, times=4)
    assert each.prefill == 4 * once.prefill
    assert each.whole - once.whole == each.prefill - once.prefill
