"""Log-probability and entropy with our own backward pass, against autograd through log_softmax."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost.tensor_meter import TensorMeter
from models.passes import token_statistics
from models.passes.distribution import CHUNK_CELLS, Distribution, Targets, entropy, token_distribution
from models.passes.token_statistics import recomputed_statistics, token_logprobs
from models.passes.token_statistics import token_statistics as statistics

TOKENS, VOCAB, HIDDEN = 11, 23, 6
DISTRIBUTION = Distribution(eos_ids=(1, 4), temperature=0.7)


def targets() -> Targets:
    generator = torch.Generator().manual_seed(0)
    return Targets(
        tokens=torch.randint(5, VOCAB, (TOKENS,), generator=generator),
        steps=torch.arange(TOKENS) % 4,
        min_lengths=torch.full((TOKENS,), 2),
    )


def logits(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(TOKENS, VOCAB, generator=torch.Generator().manual_seed(1)).mul(3).to(dtype).requires_grad_()


def by_autograd(x: torch.Tensor, of: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    every = token_distribution(x, DISTRIBUTION.eos_ids, of.steps, of.min_lengths, DISTRIBUTION.temperature)
    return every.gather(1, of.tokens[:, None])[:, 0], entropy(every)


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, TOKENS, generator=torch.Generator().manual_seed(2)).unbind()


@pytest.fixture(params=[2**21, 3 * VOCAB, 1])
def _chunked(request, monkeypatch):
    monkeypatch.setitem(CHUNK_CELLS, "cpu", request.param)


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("used", ["logprobs", "entropies", "both"])
def test_values_and_gradients_are_autograds(used):
    mine, theirs, (a, b) = logits(), logits(), weights()
    a, b = a * (used != "entropies"), b * (used != "logprobs")
    found, wanted = statistics(mine, targets(), DISTRIBUTION), by_autograd(theirs, targets())
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
    parts = {"logprobs": found[:1], "entropies": found[1:], "both": found}[used]
    factors = {"logprobs": (a,), "entropies": (b,), "both": (a, b)}[used]
    sum((f * x).sum() for f, x in zip(factors, parts, strict=True)).backward()
    (a * wanted[0] + b * wanted[1]).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    assert mine.grad[0, 1] == 0 == mine.grad[0, 4]  # banned
    torch.testing.assert_close(mine.grad.sum(1), torch.zeros(TOKENS), atol=1e-5, rtol=0)  # a shift changes nothing


def test_a_banned_token_has_no_gradient_of_its_own():
    of = targets()
    of.tokens[0] = 1
    gradients = []
    for function in (lambda x: statistics(x, of, DISTRIBUTION), lambda x: by_autograd(x, of)):
        x = logits()
        found, _ = function(x)
        assert found[0] == -torch.inf
        gradients += torch.autograd.grad(found, x, torch.ones(TOKENS))
    torch.testing.assert_close(*gradients)
    assert gradients[0][0, 1] == 0


def test_half_precision_logits_get_a_gradient_of_their_kind():
    mine, theirs, (a, b) = logits(torch.bfloat16), logits(), weights()
    theirs.data = mine.data.float()
    for x, (logprobs, entropies) in (
        (mine, statistics(mine, targets(), DISTRIBUTION)),
        (theirs, by_autograd(theirs, targets())),
    ):
        assert logprobs.dtype == torch.float32
        (a * logprobs + b * entropies).sum().backward()
        assert x.grad.dtype == x.dtype
    torch.testing.assert_close(mine.grad.float(), theirs.grad, atol=5e-3, rtol=1e-2)


def test_without_gradient_the_logprobs_are_the_same():
    assert torch.equal(token_logprobs(logits(), targets(), DISTRIBUTION), by_autograd(logits(), targets())[0])


def test_recomputed_logits_give_the_same_and_are_never_held_together(monkeypatch):
    monkeypatch.setattr(token_statistics, "RECOMPUTED_CELLS", 4 * VOCAB)
    head = torch.nn.Linear(HIDDEN, VOCAB, bias=False)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    (a, b), of = weights(), targets()
    gradients = []
    for found in (
        statistics(head(hidden), of, DISTRIBUTION),
        recomputed_statistics(hidden, head, VOCAB, of, DISTRIBUTION),
    ):
        gradients.append(torch.autograd.grad((a * found[0] + b * found[1]).sum(), [hidden, head.weight]))
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-5)


def peak_and_flops(of) -> tuple[int, int]:
    """Peak bytes and floating-point operations of a forward and backward pass at a vocabulary of 5,000."""
    head, hidden = torch.nn.Linear(32, 5000, bias=False), torch.randn(1000, 32, requires_grad=True)
    some = Targets(tokens=torch.arange(1000), steps=torch.arange(1000), min_lengths=torch.zeros(1000).long())
    with TensorMeter() as meter, FlopCounterMode(display=False) as counter:
        of(hidden, head, some)[0].sum().backward()
        return meter.peak(), counter.get_total_flops()


def test_what_each_way_of_doing_it_takes(monkeypatch):
    """Bytes a (token, vocab) cell: autograd keeps four float32, we the logits and their gradient, or a part of them."""
    monkeypatch.setattr(token_statistics, "RECOMPUTED_CELLS", 100 * 5000)
    monkeypatch.setitem(CHUNK_CELLS, "cpu", 20 * 5000)
    cells = 1000 * 5000
    autograd, work = peak_and_flops(lambda hidden, head, some: by_autograd(head(hidden), some))
    ours, same_work = peak_and_flops(lambda hidden, head, some: statistics(head(hidden), some, DISTRIBUTION))
    parts, more_work = peak_and_flops(lambda h, head, some: recomputed_statistics(h, head, 5000, some, DISTRIBUTION))
    assert autograd > 15 * cells
    assert 8 * cells < ours < 9.5 * cells
    assert parts < 2.5 * cells
    assert same_work == work
    assert more_work == work * 4 / 3
