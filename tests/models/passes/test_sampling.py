"""Sampling: what is drawn is the distribution that is trained, whatever happens to the batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from models import CausalPolicy, load_policy
from models.passes.distribution import entropy, full_kl, token_distribution
from models.passes.sampling import READ_EVERY, inverse_cdf, sample_responses
from models.tiny import save_tiny
from rlhf_core.types import TENSORS, Limits, Sequences

INF = float("inf")
CPU = torch.device("cpu")


class Table:
    """A decoder whose next-token logits are a fixed function of the last token and the row's name (its first token)."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits  # (name, last token, next token)
        self.batch_sizes: list[int] = []

    def start(self, ids, mask):
        self.names = torch.stack([row[keep][0] for row, keep in zip(ids, mask, strict=True)])
        return self.advance(ids[:, -1])

    def advance(self, tokens):
        self.batch_sizes.append(len(tokens))
        return self.logits[self.names, tokens]

    def keep(self, rows):
        self.names = self.names[rows]


def uniforms(n: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def limits(low, high) -> Limits:
    return Limits(min_lengths=torch.tensor(low), max_lengths=torch.tensor(high))


def drawn(logits, prompts, bounds, u, eos_ids=(1,)) -> Sequences:
    return sample_responses(Table(logits), prompts, bounds, u, eos_ids=eos_ids, temperature=1.0, device=CPU)


def one_response(prompt: list[int], response: list[int], min_length: int) -> Sequences:
    return Sequences(
        prompt_ids=torch.tensor([prompt]),
        prompt_mask=torch.ones(1, len(prompt), dtype=torch.bool),
        response_ids=torch.tensor([response]),
        response_mask=torch.ones(1, len(response), dtype=torch.bool),
        min_lengths=torch.tensor([min_length]),
        max_lengths=torch.tensor([9]),
        finished=torch.tensor([False]),
    )


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def policy(request, tmp_path_factory) -> CausalPolicy:
    folder = save_tiny(tmp_path_factory.mktemp("policy"), request.param, dropout=0.1)
    return load_policy(folder)


# -- the inverse CDF


def test_inverse_cdf_by_hand():
    logprobs = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]).log().expand(6, -1)
    u = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logprobs, u).tolist() == [1, 1, 3, 3, 4, 4]


def test_a_token_of_probability_zero_is_never_drawn():
    generator = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(4000, 9, generator=generator)
    logits = logits.masked_fill(torch.rand(4000, 9, generator=generator) < 0.5, -INF)
    logits[:, 4] = 0.0
    logprobs = logits.log_softmax(-1)
    edges = torch.tensor([0.0, 2**-60, 0.5, 1 - 2**-53], dtype=torch.float64).repeat(1000)
    assert (logprobs.gather(1, inverse_cdf(logprobs, edges)[:, None]) > -INF).all()


def test_inverse_cdf_agrees_with_a_loop():
    logprobs = (2 * torch.randn(200, 7, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    u = uniforms(200, 1)[:, 0]
    for row, threshold, token in zip(
        logprobs.double().exp().numpy(), u.tolist(), inverse_cdf(logprobs, u), strict=True
    ):
        running = np.array([sum(row[: k + 1]) for k in range(7)])
        expected = next(k for k in range(7) if running[k] > threshold * running[6])
        assert int(token) == expected


# -- the distribution


def test_distribution_bans_every_eos_below_the_minimum_length_only():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    steps, low = torch.tensor([0, 1, 2]), torch.tensor([2, 2, 2])
    p = token_distribution(logits, (1, 4), steps, low, 0.7).exp()
    assert p[:2, [1, 4]].eq(0).all()
    assert p[2].gt(0).all()
    expected = np.exp(logits[0, [0, 2, 3]].numpy() / 0.7)
    np.testing.assert_allclose(p[0, [0, 2, 3]], expected / expected.sum(), rtol=1e-5)


def test_entropy_and_full_kl_of_banned_tokens_are_finite_and_have_finite_gradients():
    logits = torch.randn(2, 4, requires_grad=True)
    other = torch.randn(2, 4)
    steps, low = torch.zeros(2, dtype=torch.long), torch.tensor([1, 0])
    mine, theirs = (token_distribution(x, (3,), steps, low, 1.0) for x in (logits, other))
    p, q = mine.detach().double().exp().numpy(), theirs.double().exp().numpy()
    for row, kept in ((0, 3), (1, 4)):
        pr, qr = p[row, :kept], q[row, :kept]
        assert float(entropy(mine).detach()[row]) == pytest.approx(-(pr * np.log(pr)).sum(), abs=1e-6)
        assert float(full_kl(mine, theirs).detach()[row]) == pytest.approx((pr * np.log(pr / qr)).sum(), abs=1e-6)
    (entropy(mine) + full_kl(mine, theirs)).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 3] == 0


# -- the loop


def test_rows_end_at_eos_or_at_their_own_limit_and_leave_the_batch():
    logits = torch.full((4, 6, 6), -INF)
    logits[2, :, 5] = 0.0  # never ends
    logits[3, 3, 4], logits[3, 4, 1] = 0.0, 0.0  # 3 -> 4 -> EOS
    table = Table(logits)
    s = sample_responses(
        table,
        [[2], [3], [2, 5], [3]],
        limits([0, 0, 0, 0], [4, 4, 1, 1]),
        uniforms(4, 4),
        eos_ids=(1,),
        temperature=1.0,
        device=CPU,
    )
    assert s.responses() == [[5, 5, 5, 5], [4, 1], [5], [4]]
    assert s.finished.tolist() == [False, True, False, False]
    assert s.prompts() == [[2], [3], [2, 5], [3]]
    assert table.batch_sizes == [4, 2, 1, 1]


def test_several_eos_ids_end_a_response():
    logits = torch.full((5, 5, 5), -INF)
    logits[2, :, 3], logits[4, :, 1] = 0.0, 0.0
    s = drawn(logits, [[2], [4]], limits([0, 0], [3, 3]), uniforms(2, 3), eos_ids=(1, 3))
    assert s.responses() == [[3], [1]]
    assert s.finished.all()


def test_min_length_bans_eos_on_exactly_that_many_tokens():
    logits = torch.zeros(3, 3, 3)
    logits[..., 1] = 50.0  # EOS almost surely
    s = drawn(logits, [[2]] * 3, limits([0, 2, 5], [9, 9, 5]), uniforms(3, 9))
    assert s.response_lengths.tolist() == [1, 3, 5]
    assert s.finished.tolist() == [True, True, False]


def test_logits_that_are_no_distribution_name_their_rows():
    logits = torch.zeros(5, 5, 5)
    logits[3, 3, 2], logits[4, :, 0] = float("nan"), INF
    with pytest.raises(FloatingPointError, match=r"token 0 .* rows \[1, 3\]"):
        drawn(logits, [[2], [3], [2], [4]], limits([0] * 4, [3] * 4), uniforms(4, 3))
    only_eos = torch.full((5, 5, 5), -INF)
    only_eos[..., 1] = 0.0
    with pytest.raises(FloatingPointError, match=r"rows \[0\]"):
        drawn(only_eos, [[2]], limits([1], [3]), uniforms(1, 3))


@pytest.mark.parametrize(
    ("bounds", "u", "message"),
    [
        (limits([0], [3]), torch.zeros(1, 2), r"\(1, 3 or more\), got \(1, 2\)"),
        (limits([0, 0], [3, 3]), torch.zeros(2, 3), "1 prompts"),
        (limits([0], [3]), torch.ones(1, 3), r"\[0, 1\)"),
        (limits([0], [0]), torch.zeros(1, 3), "max_lengths"),
        (limits([4], [3]), torch.zeros(1, 3), "max_lengths"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(bounds, u, message):
    with pytest.raises(ValueError, match=message):
        drawn(torch.zeros(3, 3, 3), [[2]], bounds, u)


# -- real models


PROMPTS = [[2, 3, 4, 5, 6], [7], [8, 9, 1], [10, 11], [12, 1, 1, 13], [3, 3, 3, 3, 3, 3, 3]]
BOUNDS = limits([0, 3, 0, 5, 2, 0], [12, 9, 1, 12, 7, 10])


def test_reordering_dropping_and_redoing_rows_changes_no_token(policy):
    u = uniforms(6, 12, seed=3)
    together = policy.sample(PROMPTS, BOUNDS, u).responses()
    for rows in ([5, 3, 1, 0, 2, 4], [3], [2, 4], [0, 0, 5]):
        chosen = limits(BOUNDS.min_lengths[rows].tolist(), BOUNDS.max_lengths[rows].tolist())
        again = policy.sample([PROMPTS[i] for i in rows], chosen, u[rows]).responses()
        assert again == [together[i] for i in rows]


def test_cached_sampling_draws_what_the_teacher_forced_pass_says(policy):
    """Walk each row token by token through plain forward passes of the unpadded prefix, with the same uniforms."""
    u = uniforms(6, 12, seed=4)
    s = policy.sample(PROMPTS, BOUNDS, u)
    for i, (prompt, response) in enumerate(zip(s.prompts(), s.responses(), strict=True)):
        for t, token in enumerate(response):
            with torch.no_grad():
                p = policy._lm(torch.tensor([prompt + response[:t]])).logits[0, -1].double().softmax(0)
            if t < int(BOUNDS.min_lengths[i]):
                p[1] = 0.0
            below, above = float(p[:token].sum() / p.sum()), float(p[: token + 1].sum() / p.sum())
            assert below - 1e-5 <= float(u[i, t]) <= above + 1e-5
        assert bool(s.finished[i]) == (response[-1] == 1)
        assert bool(s.finished[i]) or len(response) == int(BOUNDS.max_lengths[i])


@pytest.mark.parametrize(("min_length", "temperature"), [(0, 1.0), (1, 1.0), (0, 0.7), (2, 0.7)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sampled_frequencies_match_the_trained_probabilities(tmp_path, family, min_length, temperature):
    """On 8 tokens, in a folder that asks generate() for top_p 0.33, top_k 2 and more: none of it may matter."""
    folder = save_tiny(tmp_path, family, vocab_size=8, hidden_size=16, n_layers=1, std=0.2, dropout=0.1)
    wishes = {"do_sample": True, "top_p": 0.33, "top_k": 2, "temperature": 0.1, "repetition_penalty": 2.0}
    Path(folder, "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **wishes}))
    policy = load_policy(folder)
    n, prompt = 8000, [3, 5]
    policy._lm.train()
    bounds, uniform = limits([min_length] * n, [2] * n), uniforms(n, 2, seed=min_length)
    s = policy.sample([prompt] * n, bounds, uniform, temperature=temperature)

    def probabilities(prefix):
        rows = [one_response(prompt, [*prefix, token], min_length) for token in range(8)]
        with torch.no_grad():
            found = policy.evaluate(Sequences.concatenate(rows), frozenset(), temperature=temperature)
        return found.logprobs[:, -1].double().exp().numpy()

    def fits(counts, p):
        assert counts[p == 0].sum() == 0
        assert chisquare(counts[p > 0], counts.sum() * p[p > 0] / p.sum()).pvalue > 1e-3

    first = np.bincount(s.response_ids[:, 0], minlength=8)
    fits(first, probabilities([]))
    assert (first[1] == 0) == (min_length > 0)
    favourite = int(np.argmax(np.where(np.arange(8) == 1, 0, first)))
    after = s.response_ids[(s.response_ids[:, 0] == favourite) & s.response_mask[:, -1], 1]
    fits(np.bincount(after, minlength=8), probabilities([favourite]))


def test_greedy_tokens_of_the_cached_pass_are_those_of_the_full_pass(policy):
    """One wrong position or mask changes the argmax."""
    s = policy.sample(PROMPTS, limits([12] * 6, [12] * 6), uniforms(6, 12), temperature=0.0)
    near = policy.sample(PROMPTS, limits([12] * 6, [12] * 6), uniforms(6, 12), temperature=1e-4)
    assert s.responses() == near.responses()
    for prompt, response in zip(s.prompts(), s.responses(), strict=True):
        with torch.no_grad():
            logits = policy._lm(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].clone()
        logits[:, 1] = -INF
        assert logits.argmax(-1).tolist() == response


@pytest.mark.parametrize("every", [2, 8, 50])
def test_rows_that_wait_to_leave_change_nothing(policy, every, monkeypatch):
    """As on a card, where the host asks only now and then who has ended; positions go beyond the context there."""
    prompts, bounds = [[5], [6, 7, 8, 9], [4] * 60, [9, 3]], limits([1, 2, 0, 3], [12, 20, 4, 7])
    numbers = uniforms(4, 20, seed=3)
    at_once = policy.sample(prompts, bounds, numbers)
    monkeypatch.setitem(READ_EVERY, "cpu", every)
    later = policy.sample(prompts, bounds, numbers)
    assert later.responses() == at_once.responses()
    assert len({len(row) for row in later.responses()}) > 2
    for name in TENSORS:
        assert torch.equal(getattr(later, name), getattr(at_once, name)), name


def test_logits_that_are_not_numbers_are_told_with_their_first_step(monkeypatch):
    logits = torch.zeros(4, 5, 5)
    logits[3, :, 4] = 50.0
    logits[3, 4] = torch.nan  # row 1 draws token 4, and has nothing to draw after it
    monkeypatch.setitem(READ_EVERY, "cpu", 8)
    with pytest.raises(FloatingPointError, match=r"at response token 1 are NaN, .* in rows \[1\]"):
        drawn(logits, [[2], [3], [2]], limits([6] * 3, [6] * 3), uniforms(3, 6))


def test_under_deterministic_algorithms_the_same_tokens_are_drawn():
    logprobs, numbers = torch.randn(50, 9).log_softmax(-1), uniforms(50, 1)[:, 0]
    expected = inverse_cdf(logprobs, numbers)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(inverse_cdf(logprobs, numbers), expected)
    finally:
        torch.use_deterministic_algorithms(False)
