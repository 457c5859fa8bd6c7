"""Integrated gradients: captum at the same points, completeness, and each row to its own tolerance."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import TablePolicy, ragged_sequences, rollout_of, sequences_of, unchecked
from judges import by_hand, judge_of

from redistributors import IntegratedGradients
from redistributors.integrated_gradients import RULES, BaselineScores, PathIntegral
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.checks import check_needs

SEQUENCES = ragged_sequences()
PAIRS = list(zip(SEQUENCES.prompts(), SEQUENCES.responses()))
CAPTUM = {"gauss": "gausslegendre", "midpoint": "riemann_middle"}


@pytest.fixture(params=["gpt2", "llama"])
def judge(request):
    return judge_of(request.param)


def measure(judge, request, sequences=SEQUENCES):
    return request.measure(judge.probe(sequences))


def differences(judge):
    """r(x, y) − r(x, null tokens), each row run by hand."""
    null = judge.tokenizer.pad_token_id
    return torch.tensor([by_hand(judge, x + y) - by_hand(judge, x + [null] * len(y)) for x, y in PAIRS]).double()


@pytest.mark.parametrize("rule", ["gauss", "midpoint"])
@pytest.mark.parametrize("baseline", ["null", "zero"])
def test_it_is_captums_integrated_gradients_at_as_many_steps(judge, rule, baseline):
    from captum.attr import IntegratedGradients as Captum

    found = measure(judge, PathIntegral(baseline=baseline, rule=rule, steps=5, max_steps=5))
    embedding = judge.model.get_input_embeddings()
    null = 0 if baseline == "zero" else embedding.weight.detach()[judge.tokenizer.pad_token_id]
    for row, (prompt, response) in enumerate(PAIRS):
        embedded = embedding(torch.tensor([prompt + response])).detach()
        start = embedded.clone()
        start[0, len(prompt) :] = null

        def score(inputs):
            return judge.model.score(judge.model.base_model(inputs_embeds=inputs).last_hidden_state[:, -1])[:, 0]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = Captum(score).attribute(embedded, start, n_steps=5, method=CAPTUM[rule]).sum(-1).detach()
        assert wanted[0, : len(prompt)].abs().max() == 0
        torch.testing.assert_close(found[row, : len(response)], wanted[0, len(prompt) :], atol=1e-5, rtol=1e-5)
        assert not found[row, len(response) :].any()


@pytest.mark.parametrize(("rule", "tolerance"), [("gauss", 0.1), ("gauss", 0.003), ("midpoint", 0.02)])
def test_attributions_sum_to_the_difference_from_the_baseline(rule, tolerance):
    judge = judge_of("gpt2")
    request = PathIntegral(rule=rule, steps=2, tolerance=tolerance, max_steps=512)
    difference = differences(judge)
    gaps = (measure(judge, request).sum(1) - difference).abs()
    assert (gaps <= 1.01 * tolerance * difference.abs().clamp(min=1)).all()
    coarse = (measure(judge, replace(request, max_steps=2)).sum(1) - difference).abs()
    assert (coarse > 2 * tolerance).any()


def test_the_baselines_score_is_that_of_a_response_of_null_tokens(judge):
    found = judge.score(SEQUENCES, frozenset({BaselineScores()}))
    wanted = torch.tensor([by_hand(judge, x + y) for x, y in PAIRS]) - differences(judge)
    torch.testing.assert_close(found.evidence[BaselineScores()].double(), wanted, atol=1e-5, rtol=1e-5)
    zero = measure(judge, BaselineScores(baseline="zero"))
    with torch.no_grad():
        e = judge.model.get_input_embeddings()(torch.tensor([PAIRS[0][0] + PAIRS[0][1]]))
        e[0, len(PAIRS[0][0]) :] = 0
        logits = judge.model(inputs_embeds=e, attention_mask=torch.ones(e.shape[:2])).logits
    assert float(zero[0]) == pytest.approx(float(logits[0, 0]), abs=1e-5)


@pytest.mark.parametrize("rule", ["gauss", "midpoint"])
@pytest.mark.parametrize("baseline", ["null", "zero"])
def test_one_step_is_exact_on_a_linear_model(rule, baseline):
    judge = judge_of("gpt2")
    judge.model.transformer.h = torch.nn.ModuleList()
    judge.model.transformer.ln_f = torch.nn.Identity()
    found = measure(judge, PathIntegral(baseline=baseline, rule=rule, steps=1, max_steps=1))
    embeddings, weight = judge.model.get_input_embeddings().weight.detach(), judge.model.score.weight.detach()[0]
    null = 0 if baseline == "zero" else embeddings[judge.tokenizer.pad_token_id]
    for row, (_, response) in enumerate(PAIRS):
        wanted = [0.0] * (len(response) - 1) + [float(weight @ (embeddings[response[-1]] - null))]
        assert found[row, : len(response)].tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("rule", "degree"), [("gauss", 9), ("midpoint", 1)])
def test_five_points_integrate_polynomials(rule, degree):
    points, weights = RULES[rule](5)
    exact = [float(weights @ points**n) == pytest.approx(1 / (n + 1), abs=1e-12) for n in range(11)]
    assert exact.index(False) == degree + 1
    assert ((points > 0) & (points < 1)).all()
    assert (np.diff(points) > 0).all()


REQUEST = PathIntegral(steps=2, tolerance=0.1, max_steps=16)


def points_of(judge, row):
    """How many points a row took alone."""
    probe = judge.probe(SEQUENCES.select(torch.tensor([row])))
    REQUEST.measure(probe)
    return probe.cost.backwards - 1  # one for the baseline


def test_each_row_keeps_the_first_sum_within_its_own_tolerance():
    """A row that needs few steps does not change beside one that needs many, and is not paid for again."""
    judge = judge_of("gpt2")
    probe = judge.probe(SEQUENCES)
    together = REQUEST.measure(probe)
    counts = [points_of(judge, row) for row in range(4)]
    assert set(counts) <= {2, 6, 14, 30}  # 2, 2 + 4, 2 + 4 + 8, ...
    assert len(set(counts)) > 1
    assert probe.cost.backwards == sum(counts) + 4
    assert probe.cost.forwards == sum(counts) + 8
    for row, (_, response) in enumerate(PAIRS):
        alone = measure(judge, REQUEST, SEQUENCES.select(torch.tensor([row])))
        torch.testing.assert_close(alone[0], together[row, : len(response)], atol=1e-6, rtol=1e-6)
        last = (counts[row] + 2) // 2
        fixed = measure(judge, replace(REQUEST, steps=last, max_steps=last))
        torch.testing.assert_close(fixed[row], together[row], atol=1e-6, rtol=1e-6)


def test_what_max_steps_leaves_is_logged():
    judge = judge_of("gpt2")
    method = IntegratedGradients(steps=1, tolerance=1e-6, max_steps=3)
    scored = judge.score(SEQUENCES, method.needs)
    rollout = rollout_of(SEQUENCES, scored.scores, scored.evidence)
    sums = measure(judge, PathIntegral(steps=2, max_steps=2)).sum(1)
    gap = float((sums - differences(judge)).abs().max())
    assert gap > 0.1
    figures = method.metrics(rollout)
    assert figures["completeness_gap"] == pytest.approx(gap, rel=1e-4)
    assert figures["incomplete"] == 1


def test_metrics_by_hand():
    """Sums 3 and 1; differences 2 − (−1) = 3 and 4 − 1 = 3: gaps 0 and 2, in raw units; the second is beyond 0.5 of
    3. At a scale of 2 the scores 4 and 8 are given 6 and 2."""
    method = IntegratedGradients(tolerance=0.5)
    evidence = {
        method.request: torch.tensor([[1.0, 2.0], [1.0, 0.0]]),
        BaselineScores(): torch.tensor([-1.0, 1.0]),
    }
    rollout = rollout_of(sequences_of([[1], [1]], [[2, 3], [4]]), [2.0, 4.0], evidence)
    rollout = replace(rollout, scores=torch.tensor([4.0, 8.0]), score_scale=2.0)
    assert method.metrics(rollout) == {"completeness_gap": 2, "incomplete": 0.5, "credit_residual": 4}
    relaxed = replace(method, tolerance=0.7)
    evidence[relaxed.request] = evidence[method.request]
    assert relaxed.metrics(rollout)["incomplete"] == 0
    assert method(rollout).tolist() == [[2, 2], [8, 0]]
    assert replace(method, residual="uniform")(rollout).tolist() == [[1, 3], [8, 0]]
    left_out = replace(method, residual="nowhere")
    assert left_out(rollout).tolist() == [[2, 4], [2, 0]]
    assert not left_out.conserving


def test_two_steps_of_training_through_it():
    config = PPOConfig(rollout_batch_size=4, minibatch_size=4, min_length=1, max_length=(2, 5))
    learner = PPOTrainer(TablePolicy(), judge_of(), IntegratedGradients(), config)
    for _ in range(2):
        figures = learner.step([[1], [2, 3], [4], [5]])
        assert figures["conservation_error"] < 1e-5
        assert figures["incomplete"] == 0
        assert figures["completeness_gap"] < 0.2


def test_what_cannot_be_is_refused():
    for name, values in {
        "baseline": ("mean", None),
        "residual": ("first", None),
        "rule": ("simpson", ["gauss"]),
        "steps": (0, 2.0, True, None),
        "max_steps": (7, 64.0, None),
        "tolerance": (0, -1.0, float("nan"), True, "0.1"),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^IntegratedGradients: {name} .*, got "):
                unchecked(IntegratedGradients, **{name: value})
    fixed = TokenReward(lambda prompts, responses: [0.0] * len(prompts))
    with pytest.raises(ValueError, match=r"^integrated-gradients.*but not embedding_gradients"):
        check_needs(IntegratedGradients(), TablePolicy(), fixed)
