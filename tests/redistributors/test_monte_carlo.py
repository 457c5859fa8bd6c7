"""Differences of values from continuations: by hand, as exact shaping, and in training."""

from dataclasses import replace

import pytest
import torch
from fakes import TablePolicy, rollout_of, sequences_of, unchecked
from generated import tries
from hypothesis import given
from hypothesis import strategies as st

from models import load_policy, load_reward_model
from models.tiny import save_tiny
from redistributors import EnsembleCredit, MonteCarlo, Sparse
from rlhf_core import PerTokenReward, PPOConfig, PPOTrainer, TokenReward
from rlhf_core.returns import generalized_advantages

SCORE = 5.0
CONFIG = PPOConfig(rollout_batch_size=4, minibatch_size=4, min_length=2, max_length=(4, 9))


def rollout_with(method, values, lengths, scores, tokens=0.0):
    sequences = sequences_of([[1]] * len(lengths), [[2] * length for length in lengths])
    evidence = torch.stack([values, torch.full_like(values, tokens)], dim=2)
    return rollout_of(sequences, scores, {method.request: evidence})


@pytest.mark.parametrize(
    ("settings", "values", "wanted"),
    [
        ({"span": 2}, [0, 0, 3, 0, 1, 0, 0], [0, 3, 0, -2, 0, 5 - 1]),
        ({"span": 2, "positions": 1}, [0, 0, 3, 0, 0, 0, 0], [0, 3, 0, 0, 0, 5 - 3]),
        ({"span": 1}, [0, 1, 2, 4, 8, 7, 0], [1, 1, 2, 4, -1, 5 - 7]),
        ({"span": 6}, [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 5]),
    ],
)
def test_by_hand(settings, values, wanted):
    """Credit on the last token of a span; the first counts from 0 and the last ends with the score."""
    method = MonteCarlo(**settings)
    rollout = rollout_with(method, torch.tensor([[float(value) for value in values[:6]]]), [6], [SCORE])
    assert method(rollout)[0].tolist() == pytest.approx(wanted)
    scaled = replace(rollout, score_scale=0.5)
    of_values = [0.5 * one for one in wanted]
    of_values[-1] += 0.5 * SCORE  # the score has been scaled already
    assert method(scaled)[0].tolist() == pytest.approx(of_values)


def test_a_value_on_the_first_token_would_not_be_read():
    method = MonteCarlo(span=2)
    assert method(rollout_with(method, torch.tensor([[9.0, 9.0, 3.0]]), [3], [SCORE]))[0].tolist() == [0, 3, 2]


@tries(30)
@given(
    seed=st.integers(0, 2**32),
    lam=st.floats(0, 1),
    scale=st.floats(0.1, 10),
    span=st.integers(1, 4),
    most=st.integers(1, 4),
)
def test_it_is_the_sparse_score_with_the_critic_shifted(seed, lam, scale, span, most):
    """A critic of the shaped reward is V − Φ (Wiewiora 2003); Φ is the last value before a token, whatever it is."""
    method = MonteCarlo(span=span, positions=most)
    values = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    rollout = replace(rollout_with(method, values, [7, 1, 4], [1.0, -2.0, 0.5]), score_scale=scale)
    mask, token_scores = rollout.sequences.response_mask, method(rollout)
    torch.testing.assert_close(token_scores.sum(1), rollout.scores, atol=1e-5, rtol=1e-5)
    potential = torch.zeros_like(values)
    for row, time in mask.nonzero().tolist():
        before = [t for t in range(span, time + 1, span) if t <= span * most]
        potential[row, time] = scale * values[row, before[-1]] if before else 0
    plain = generalized_advantages(Sparse()(rollout), rollout.values, mask, gamma=1.0, lam=lam)
    moved = generalized_advantages(token_scores, rollout.values - potential, mask, gamma=1.0, lam=lam)
    torch.testing.assert_close(moved, plain, atol=1e-4, rtol=1e-4)


def test_figures_say_what_was_drawn():
    method = MonteCarlo(span=2, positions=2, continuations=3)
    rollout = rollout_with(method, torch.zeros(2, 6), [6, 3], [1.0, 1.0], tokens=4.0)
    assert method.metrics(rollout) == {"continuations": 3 * (2 + 1) / 2, "continuation_tokens": 4 * (6 + 3) / 2}


def test_a_policy_that_always_writes_the_same_has_its_credit_in_the_first_span():
    """What comes later was expected: V is the score from the first position on."""
    policy = TablePolicy()
    with torch.no_grad():
        policy.logits[:] = -50.0
        policy.logits[:, 2] = 50.0
    policy.reference = policy.logits.detach().clone()
    reward = TokenReward(lambda prompts, responses: [float(sum(row)) for row in responses])
    config = replace(CONFIG, min_length=6, max_length=(6, 6))
    trainer = PPOTrainer(policy, reward, MonteCarlo(span=2), config)
    token_scores = trainer.redistribute(trainer.collect([[1], [2], [3], [4]]))
    assert token_scores[0].tolist() == pytest.approx([0, 12, 0, 0, 0, 0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_steps_on_real_architectures_with_what_they_cost(tmp_path, family):
    policy = load_policy(save_tiny(tmp_path / "policy", family))
    reward = load_reward_model(save_tiny(tmp_path / "reward", family, head="classifier"), score="single_logit")
    trainer = PPOTrainer(policy, reward, MonteCarlo(span=2, positions=2, continuations=2), CONFIG)
    for _ in range(2):
        figures = trainer.step([[2, 3], [4], [5, 6, 7], [8]])
        assert figures["conservation_error"] < 1e-5
        assert 0 < figures["continuations"] <= 4
        assert figures["continuation_tokens"] >= figures["continuations"]


def test_a_value_is_the_mean_score_of_what_the_policy_writes_after_the_position(tmp_path):
    """Against responses drawn from the beginning as a prompt, by the trainer's own sampling."""
    policy = load_policy(save_tiny(tmp_path / "policy", std=0.3))
    reward = TokenReward(lambda prompts, responses: [float(row[-1] % 7) for row in responses])
    config = replace(CONFIG, min_length=6, max_length=(6, 6))
    method = MonteCarlo(span=3, positions=1, continuations=600)
    rollout = PPOTrainer(policy, reward, method, config).collect([[2, 3]] * 4)
    begun = rollout.sequences.prompts()[0] + rollout.sequences.responses()[0][:3]
    drawn = replace(config, rollout_batch_size=600, minibatch_size=600, min_length=3, max_length=(3, 3))
    others = PPOTrainer(policy, reward, Sparse(), drawn).collect([begun] * 600).raw_scores
    value, error = float(rollout.evidence[method.request][0, 3, 0]), float(others.std() / 600**0.5)
    assert abs(value - float(others.mean())) < 4 * 2**0.5 * error


def test_every_reward_works_and_a_discount_is_refused():
    for reward in (TokenReward(lambda p, r: [0.0] * len(r)), PerTokenReward(lambda p, r: [[0.0] * len(x) for x in r])):
        PPOTrainer(TablePolicy(), reward, MonteCarlo(), CONFIG).collect([[1]] * 4)
    trainer = PPOTrainer(
        TablePolicy(),
        TokenReward(lambda p, r: [float(len(x)) for x in r]),
        MonteCarlo(span=1),
        replace(CONFIG, gamma=0.9, max_length=(4, 9)),
    )
    with pytest.raises(ValueError, match="conserves the score but places it before the last token"):
        trainer.redistribute(trainer.collect([[1]] * 4))


def test_an_ensemble_is_told_to_take_it_as_it_is():
    with pytest.raises(ValueError, match=r"EnsembleCredit: monte-carlo.* give it to the trainer itself"):
        EnsembleCredit(inner=MonteCarlo())


@pytest.mark.parametrize("name", ["span", "positions", "continuations"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, None])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^MonteCarlo: {name} must be a whole number from 1 on, got {value!r}$"):
        unchecked(MonteCarlo, **{name: value})
