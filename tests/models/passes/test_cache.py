"""The cache with room: what a model reads from it is what transformers' own would hold."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from benchmarks.cost.tensor_meter import TensorMeter
from models.passes.cache import RoomyLayer, make_room


def states(rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, 2, tokens, 3, generator=generator) for _ in range(2))


def filled(rows: int = 4, tokens: int = 5) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(2):
        cache.update(*states(rows, tokens, layer), layer)
    return cache


def test_growing_and_losing_rows_is_what_concatenation_does():
    roomy, plain = filled(), filled()
    make_room(roomy, 6)
    assert all(type(layer) is RoomyLayer for layer in roomy.layers)
    rows = 4
    for step, kept in enumerate(([0, 1, 2, 3], [0, 2, 3], [0, 1, 2], [1, 2], [1], [0])):
        for layer in range(2):
            new = states(rows, 1, 10 + step)
            for mine, theirs in zip(roomy.update(*new, layer), plain.update(*new, layer), strict=True):
                assert torch.equal(mine, theirs)
        for cache in (roomy, plain):
            cache.reorder_cache(torch.tensor(kept))
        rows = len(kept)
        assert roomy.get_seq_length() == plain.get_seq_length() == 6 + step
    with pytest.raises(RuntimeError, match="room for 11 tokens was given token 12"):
        roomy.update(*states(rows, 1, 0), 0)


def test_a_new_token_moves_no_old_one():
    cache = filled()
    make_room(cache, 3)
    where = cache.layers[0].keys.data_ptr()
    cache.update(*states(4, 1, 7), 0)
    assert cache.layers[0].keys.data_ptr() == where


def test_other_layers_and_other_caches_stay_as_they_are():
    class Windowed(DynamicLayer):
        """Stands for a layer that is not plain."""

    cache = filled()
    cache.layers[1] = other = Windowed()
    make_room(cache, 3)
    assert cache.layers[1] is other
    both = EncoderDecoderCache(filled(), DynamicCache())
    for whatever in (None, "state", both):
        make_room(whatever, 3)
    assert type(both.self_attention_cache.layers[0]) is DynamicLayer


def test_old_and_new_layers_are_not_held_together():
    with TensorMeter() as meter:
        cache = DynamicCache()
        for layer in range(10):
            cache.update(*states(4, 50, layer), layer)
        meter.reset()
        held = meter.peak()
        make_room(cache, 5)
    assert meter.peak() < 1.1 * held + 0.25 * held
