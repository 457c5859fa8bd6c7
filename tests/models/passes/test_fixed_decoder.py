"""Decoding in steps of fixed shapes: the same tokens as the ordinary decoder's, from one graph."""

from collections.abc import Callable

import pytest
import torch
from policies import HIGH, LOW, PROMPTS, build, folders, sample  # noqa: F401

from models import CausalPolicy, load_policy
from models.passes.fixed_decoder import COLUMNS, ROWS, FixedSteps, compiled
from models.passes.sampling import CachedDecoder, left_padded, sample_responses
from models.policy import loading
from models.tiny import save_tiny
from rlhf_core.types import TENSORS, Limits

CPU = torch.device("cpu")


def uncompiled(lm):
    return lm


@pytest.fixture
def plain(monkeypatch):
    """The steps of fixed shapes as they are, without a compiler."""
    monkeypatch.setattr(loading, "compiled", uncompiled)


@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_same(plain, folders, kind):
    ordinary, fixed = (build(folders, "gpt2", kind, compile_decoding=x) for x in (False, True))
    a, b = sample(ordinary), sample(fixed)
    for name in TENSORS:
        assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_eager(folders, monkeypatch):
    import inspect
    from models.passes.fused import VocabularyHead, _InParts
    monkeypatch.setattr(_InParts, "forward", staticmethod(inspect.unwrap(_InParts.forward)))
    monkeypatch.setattr(VocabularyHead, "forward", inspect.unwrap(VocabularyHead.forward))
    monkeypatch.setattr(loading, "compiled", lambda lm: torch.compile(lm, fullgraph=True, backend="eager"))
    ordinary, fixed = (build(folders, "gpt2", "lora", compile_decoding=x) for x in (False, True))
    a, b = sample(ordinary), sample(fixed)
    for name in TENSORS:
        assert torch.equal(getattr(a, name), getattr(b, name))
