"""What holds for every redistributor, return, loss and statistic on whatever finite numbers come: ragged rows, extreme
scores, several dtypes, garbage on padding."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from fakes import one_row, rollout_of, sequences_of
from generated import refused, tries
from hypothesis import example, given
from hypothesis import strategies as st

from redistributors import REDISTRIBUTORS
from redistributors.parts.credit import normalised
from rlhf_core import AdaptiveKL, Experience, RolloutBuffer, ScoreConfig, policy_loss, value_loss
from rlhf_core.batching import micro_batches, row_batches
from rlhf_core.evidence import AttentionTap
from rlhf_core.kl import KL_ESTIMATORS, kl_estimate
from rlhf_core.masking import last_token, masked_mean, masked_var, masked_whiten
from rlhf_core.returns import discounted_returns, generalized_advantages, lambda_returns
from rlhf_core.rewards import ScoreMoments, normalise_scores, penalised
from rlhf_core.types import ReportsMetrics

LARGE, SQUARABLE = 1e30, 1e15
NAN = float("nan")
lengths = st.lists(st.integers(1, 7), min_size=1, max_size=5)
shares = st.floats(0, 1)
SHAPES = {
    "zero": lambda normal, uniform: 0 * normal,
    "equal": lambda normal, uniform: 0 * normal + uniform.flatten()[0],
    "normal": lambda normal, uniform: (normal / 5).clip(-1, 1),
    "extremes": lambda normal, uniform: np.sign(normal),
    "any magnitude": lambda normal, uniform: np.sign(normal) * 10 ** (-75 * uniform),
    "many zeros": lambda normal, uniform: normal.clip(-1, 1) * (uniform < 0.3),
    "almost equal": lambda normal, uniform: 0.5 + 1e-7 * uniform,
}


def numbers(draw, shape, largest):
    """Finite float32 numbers of one of the kinds above, none beyond ``largest``; drawn here from a seed, as hypothesis
    takes a hundred times as long over single floats."""
    kind, scale = draw(st.sampled_from(sorted(SHAPES))), draw(st.sampled_from([largest, min(1.0, largest)]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = scale * SHAPES[kind](generator.normal(size=shape), generator.uniform(size=shape))
    return torch.tensor(found, dtype=torch.float32)


@st.composite
def ragged(draw, *largest):
    """A mask of ragged rows, and a tensor of finite numbers for each of ``largest``, 0 on padding."""
    rows = draw(lengths)
    mask = torch.arange(max(rows)) < torch.tensor(rows)[:, None]
    return mask, [torch.where(mask, numbers(draw, mask.shape, most), 0) for most in largest]


@st.composite
def score_lists(draw):
    return numbers(draw, draw(st.integers(1, 8)), LARGE).tolist()


def spoiled(x, mask, garbage=NAN):
    return torch.where(mask, x, garbage)


def widened(x):
    return torch.nn.functional.pad(x, (0, 3))


def alone(row, mask, *tensors):
    """One row of everything, without its padding."""
    width = int(mask[row].sum())
    return mask[row : row + 1, :width], [x[row : row + 1, :width] for x in tensors]


# -- redistributors


def drawn_rollout(draw, method):
    rows = draw(lengths)
    sequences = sequences_of([[1]] * len(rows), [[2] * n for n in rows])
    mask = sequences.response_mask
    scores = numbers(draw, len(rows), LARGE)
    needs = sorted(method.needs, key=repr)
    return rollout_of(sequences, scores, {request: drawn_evidence(draw, request, mask) for request in needs})


def drawn_evidence(draw, request, mask):
    """Weights of any size for attention; for attributions numbers of both signs, no larger than scores are."""
    shape = request.shape(*mask.shape)
    outside = ~mask.reshape(*mask.shape, *(1 for _ in shape[2:])) if len(shape) > 1 else torch.tensor(False)
    if isinstance(request, AttentionTap):
        return numbers(draw, shape, draw(st.sampled_from([1.0, 3e38]))).abs().masked_fill(outside, 0)
    return numbers(draw, shape, draw(st.sampled_from([1.0, LARGE]))).masked_fill(outside, 0)


def signed_evidence(rollout):
    return [x for request, x in rollout.evidence.items() if not isinstance(request, AttentionTap)]


def drawn_method(draw, name):
    """No strategy: the type checks of these tests draw items of tuples, which is not for strategies to do."""
    known = {field.name for field in fields(REDISTRIBUTORS[name]())}
    drawn = {"beta": shares, "shift": st.sampled_from([0, 1])}
    return REDISTRIBUTORS[name](**{setting: draw(values) for setting, values in drawn.items() if setting in known})


@pytest.mark.parametrize("name", sorted(REDISTRIBUTORS))
@tries(30)
@given(data=st.data())
def test_a_redistributor_keeps_its_contract_whatever_the_rollout(name, data):
    method = drawn_method(data.draw, name)
    rollout = drawn_rollout(data.draw, method)
    mask = rollout.sequences.response_mask
    token_scores = method(rollout)
    assert token_scores.shape == mask.shape
    assert token_scores.isfinite().all()
    assert not token_scores[~mask].any()
    largest = max([1.0, *(float(x.abs().max()) for x in signed_evidence(rollout))])  # what sums are rounded at
    if method.conserving:
        torch.testing.assert_close(token_scores.sum(1), rollout.scores, rtol=1e-5, atol=1e-5 * largest)
    garbage = {request: spoiled(x, mask) if x.shape == mask.shape else x for request, x in rollout.evidence.items()}
    assert torch.equal(method(replace(rollout, evidence=garbage)), token_scores)
    for row in range(len(mask)):
        one = one_row(rollout, row)
        apart = 1e-5 * largest if signed_evidence(rollout) else 1e-30
        torch.testing.assert_close(method(one)[0], token_scores[row][mask[row]], rtol=1e-5, atol=apart)
        assert all(math.isfinite(value) for value in getattr(method, "metrics", lambda _: {})(one).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@tries(25)
@given(ragged(6e4))
@example((torch.ones(1, 300, dtype=torch.bool), [torch.ones(1, 300)]))  # bfloat16 would sum 1/300 to 0.98
def test_credit_sums_to_one_in_every_dtype(dtype, case):
    mask, (evidence,) = case
    credit = normalised(evidence.abs().to(dtype), mask)
    torch.testing.assert_close(credit.sum(1), torch.ones(len(mask), dtype=credit.dtype), rtol=1e-5, atol=1e-5)
    assert (credit >= 0).all()


@pytest.mark.parametrize("name", sorted(name for name in REDISTRIBUTORS if REDISTRIBUTORS[name]().needs))
@pytest.mark.parametrize("change", [lambda x: {}, lambda x: {next(iter(x)): torch.ones(4, 1)}], ids=["none", "narrow"])
def test_missing_or_misshapen_evidence_is_named(name, change):
    method = REDISTRIBUTORS[name]()
    sequences = sequences_of([[1]] * 4, [[2, 2]] * 4)
    rollout = rollout_of(sequences, [1.0] * 4, change(dict.fromkeys(method.needs)))
    assert type(method).__name__ in refused(lambda: method(rollout), "evidence", "needs")
    if isinstance(method, ReportsMetrics):
        refused(lambda: method.metrics(rollout), "evidence", "needs")


# -- returns


@tries(50)
@given(ragged(LARGE, LARGE), shares, shares)
def test_returns_are_finite_and_read_nothing_but_their_own_row(case, gamma, lam):
    mask, (rewards, values) = case
    discounts = {"gamma": gamma, "lam": lam}
    for function, inputs, keywords in (
        (generalized_advantages, (rewards, values), discounts),
        (lambda_returns, (rewards, values), discounts),
        (discounted_returns, (rewards,), {"gamma": gamma}),
    ):
        found = function(*inputs, mask, **keywords)
        assert found.isfinite().all()
        assert not found[~mask].any()
        assert torch.equal(function(*(spoiled(x, mask) for x in inputs), mask, **keywords), found)
        assert torch.equal(function(*map(widened, inputs), widened(mask), **keywords), widened(found))
        for row in range(len(mask)):
            own, some = alone(row, mask, *inputs)
            assert torch.equal(function(*some, own, **keywords)[0], found[row][mask[row]])


# -- losses and KL


ONE_ROW = torch.ones(1, 2, dtype=torch.bool)


@tries(50)
@given(ragged(1e4, 1e4, 1e6), st.floats(1e-3, 0.5))
@example((ONE_ROW, [torch.zeros(1, 2), torch.full((1, 2), -200.0), torch.zeros(1, 2)]), 0.2)  # 0 times infinity
@example((ONE_ROW, [torch.zeros(1, 2), torch.full((1, 2), -200.0), torch.ones(1, 2)]), 0.2)  # the same in the gradient
def test_the_policy_loss_and_its_gradient_are_finite_whatever_the_ratio(case, clip_range):
    mask, (new, old, advantages) = case
    results = []
    for make in (lambda x: x, lambda x: spoiled(x, mask)):
        leaf = make(new).clone().requires_grad_()
        loss, stats = policy_loss(leaf, make(old), make(advantages), mask, clip_range=clip_range)
        loss.backward()
        assert all(value.isfinite() for value in (loss, *stats.values()))
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[~mask].any()
        results.append((loss.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("largest", [SQUARABLE, LARGE])
@tries(30)
@given(data=st.data(), clip_range=st.floats(1e-3, 100))
def test_the_value_loss_is_never_nan_and_finite_where_squares_are(largest, data, clip_range):
    mask, tensors = data.draw(ragged(largest, largest, largest))
    new, *others = tensors
    losses = []
    for make in (lambda x: x, lambda x: spoiled(x, mask)):
        leaf = make(new).clone().requires_grad_()
        loss, stats = value_loss(leaf, *map(make, others), mask, clip_range=clip_range)
        loss.backward()
        assert not any(value.isnan() for value in (loss, *stats.values()))
        assert not leaf.grad.isnan().any()
        assert not leaf.grad[~mask].any()
        losses.append(loss)
        if largest == SQUARABLE:
            assert all(value.isfinite() for value in (loss, *stats.values()))
            assert leaf.grad.isfinite().all()
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", sorted(KL_ESTIMATORS))
@tries(25)
@given(case=ragged(40.0, 40.0))
def test_kl_estimates_are_finite_zero_on_padding_and_where_policies_agree(kind, case):
    mask, (ours, theirs) = case
    found = kl_estimate(ours, theirs, kind)
    assert found.isfinite().all()
    assert not found[~mask].any()
    assert not kl_estimate(ours, ours, kind).any()
    if kind != "k1":
        assert (found >= -1e-4).all()


@tries(30)
@given(st.floats(0, 10), st.floats(1e-6, 1e6), st.integers(1, 10**6), st.lists(st.floats(-1e300, 1e300), max_size=8))
@example(0.2, 6.0, 2, [0.0])  # 100 responses in a horizon of 10: the coefficient would be -0.2
def test_an_adaptive_coefficient_is_never_negative_nor_nan(coef, target, responses_per_horizon, kls):
    horizon, responses = 10.0, 5 * responses_per_horizon
    controller = AdaptiveKL(coef, target, horizon)
    for kl in kls:
        if 0.2 * responses >= horizon:
            refused(lambda kl=kl: controller.update(kl, responses), "horizon")
        else:
            controller.update(kl, responses)
        assert 0 <= controller.coef < math.inf


@pytest.mark.parametrize("bad", [{"init_coef": -1.0}, {"init_coef": NAN}, {"target": 0.0}, {"horizon": 0.0}], ids=str)
def test_an_impossible_controller_is_refused(bad):
    refused(lambda: AdaptiveKL(**{"init_coef": 0.1, "target": 6.0, "horizon": 100.0, **bad}), next(iter(bad)))
    controller = AdaptiveKL(0.1, 6.0, 100.0)
    for kl in (NAN, math.inf):
        refused(lambda kl=kl: controller.update(kl, 1), "KL")


# -- scores, whitening, batches


@tries(100)
@given(
    score_lists(),
    st.sampled_from(["none", "running_mean"]),
    st.sampled_from(["none", "running_std"]),
    st.one_of(st.none(), st.floats(1e-3, 100)),
)
@example([0.1] * 7, "none", "running_std", None)  # equal scores have no spread but that of rounding
@example([0.0, 1e-45], "running_mean", "running_std", None)  # one over this spread is infinite
def test_normalised_scores_are_finite_in_order_and_of_their_own_scale(raw, centring, scaling, clip):
    scores = torch.tensor(raw)
    moments = ScoreMoments().including(scores)
    config = ScoreConfig(centring=centring, scaling=scaling, clip=clip)
    found, scale = normalise_scores(scores, moments, config)
    assert found.isfinite().all()
    assert 0 < scale < 3.4e38
    order = scores.argsort()
    assert (found[order].diff() >= 0).all()
    if clip is not None:
        assert found.abs().max() <= clip
    if len(set(raw)) == 1:
        assert scale == 1
    elif scaling == "running_std" and centring == "running_mean":
        assert found.abs().max() <= len(raw)


@tries(25)
@given(ragged(SQUARABLE, SQUARABLE), st.floats(0, SQUARABLE))
def test_a_penalty_is_finite_and_absent_from_padding(case, coef):
    mask, (token_scores, kl) = case
    rewards = penalised(token_scores, kl, coef)
    assert rewards.isfinite().all()
    assert not rewards[~mask].any()
    assert torch.equal(penalised(token_scores, kl, 0.0), token_scores)


@tries(50)
@given(ragged(LARGE))
@example((torch.ones(1, 2, dtype=torch.bool), [torch.tensor([[-1e30, 1e30]])]))  # would whiten to 0, 0
def test_whitening_has_mean_0_and_variance_1_or_says_that_squares_overflow(case):
    mask, (x,) = case
    squares = float(x[mask].double().std(correction=0) ** 2) * int(mask.sum())
    if squares > 1e38:  # float32 ends at 3.4e38; near it, rounding decides
        for function in (masked_var, masked_whiten) if squares > 4e38 else ():
            refused(lambda function=function: function(x, mask), "scale them")
        return
    white = masked_whiten(x, mask)
    assert white.isfinite().all()
    assert not white[~mask].any()
    assert torch.equal(masked_whiten(spoiled(x, mask), mask), white)
    assert torch.equal(masked_var(spoiled(x, mask), mask), masked_var(x, mask))
    assert torch.equal(masked_mean(spoiled(x, mask), mask), masked_mean(x, mask))
    spread = float(x[mask].double().var()) if int(mask.sum()) > 1 else 0.0
    if spread > 1e-2 and spread > 1e-8 * float(x.abs().max()) ** 2:
        assert float(masked_mean(white, mask)) == pytest.approx(0, abs=1e-2)
        assert float(masked_var(white, mask)) == pytest.approx(1, abs=1e-2)


@tries(30)
@given(ragged(*[SQUARABLE] * 4), st.integers(1, 6), st.integers(0, 2**32))
def test_a_buffer_hands_out_every_row_once_with_finite_advantages(case, size, seed):
    mask, (old, values, advantages, returns) = case
    rows = mask.sum(1).tolist()
    sequences = sequences_of([[1]] * len(rows), [[i + 1] * n for i, n in enumerate(rows)])
    buffer = RolloutBuffer()
    buffer.add(
        Experience(
            sequences=sequences, logprobs=old, ref_logprobs=old, values=values, advantages=advantages, returns=returns
        )
    )
    seen = []
    for batch in buffer.minibatches(size, np.random.default_rng(seed)):
        assert batch.advantages.isfinite().all()
        for row, response in enumerate(batch.sequences.responses()):
            seen.append(response)
            original = response[0] - 1
            assert torch.equal(batch.returns[row][: len(response)], returns[original][mask[original]])
    assert sorted(seen) == sorted(sequences.responses())


@tries(30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(-5, 10**19))
def test_batches_under_any_budget_hold_every_row_once(rows, budget):
    sequences = sequences_of([[1]] * len(rows), [[2] * n for n in rows])
    totals = torch.tensor(rows) + 1
    for batches in (list(micro_batches(sequences, budget)), list(row_batches(totals, budget))):
        assert sorted(torch.cat(batches).tolist()) == list(range(len(rows)))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * int(totals[batch].max()) <= budget


@tries(25)
@given(lengths)
def test_the_last_token_is_one_a_row_and_ends_it(rows):
    mask = torch.arange(max(rows)) < torch.tensor(rows)[:, None]
    last = last_token(mask)
    assert last.sum(1).tolist() == [1] * len(rows)
    assert (last.int().argmax(1) + 1).tolist() == rows
