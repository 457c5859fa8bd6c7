"""Advantages without a critic: hand tables, what must not change them, and a trainer that has no use for values."""

import json
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args, get_type_hints

import pytest
import torch
from fakes import TablePolicy, ragged_sequences, rollout_of, sequences_of
from hypothesis import given, settings
from hypothesis import strategies as st

from redistributors import Sparse, Uniform
from rlhf_core import (
    Experience,
    KLConfig,
    PPOConfig,
    PPOTrainer,
    RolloutBuffer,
    ScoreConfig,
    TokenReward,
    leave_one_out_advantages,
    ppo_update,
)
from rlhf_core.advantages import ESTIMATORS, OF_A_CRITIC
from rlhf_core.checks import HealthError
from rlhf_core.config import OF_GROUPS, OF_TOTALS
from rlhf_core.evidence import GreedyScores
from rlhf_core.kl import FixedKL
from rlhf_core.prompts import prompt_groups, repeated, shuffled_batch
from rlhf_core.surrogates import LOSS_MEANS, SURROGATES
from rlhf_core.types import Limits

CONFIG = PPOConfig.from_paper(
    "positive_generation",
    rollout_batch_size=12,
    responses_per_prompt=4,
    advantages="rloo",
    minibatch_size=6,
    epochs=2,
    learning_rate=5e-2,
    min_length=2,
    max_length=(4, 7),
)
PROMPTS = [[1, 2], [3], [4, 5, 1]]


def threes(prompts, responses):
    return [float(row.count(3)) for row in responses]


class SharedTable(TablePolicy):
    """Values move with the logits, as those of a head on a shared trunk do."""

    def evaluate(self, sequences, needs, **settings):
        evaluation = super().evaluate(sequences, needs, **settings)
        previous, _, mask = self._states(sequences)
        return replace(evaluation, values=evaluation.values + torch.where(mask, self.logits[previous, 3], 0))


@dataclass(frozen=True)
class Bonus:
    """Credit on the last token that does not claim to sum to the score, for PRIME, which adds the score itself."""

    needs, causal, conserving = frozenset(), True, False

    def __call__(self, rollout):
        return Sparse()(rollout)


def trainer(config=CONFIG, redistributor=None, scorer=threes):
    own = Bonus() if config.advantages == "prime" else Sparse()
    policy = SharedTable()
    with torch.no_grad():
        policy.value += torch.tensor([0.5, -1.0, 2.0, 0.3, -0.7, 1.1])
    return PPOTrainer(policy, TokenReward(scorer), redistributor or own, config)


def test_hand_computed_table():
    nan = float("nan")
    rewards = torch.tensor([[1.0, 2, nan], [4, nan, nan], [0, 0, 2], [10, nan, nan], [1, -7, nan]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    groups = torch.tensor([0, 0, 0, 1, 1])
    # totals 3, 4, 2 | 10, -6: each minus the mean of the others
    expected = torch.tensor([[0.0, 0, 0], [1.5, 0, 0], [-1.5, -1.5, -1.5], [16, 0, 0], [-16, -16, 0]])
    assert torch.equal(leave_one_out_advantages(rewards, mask, groups), expected)


def one_by_one(rewards, mask, groups):
    """Every row against a plain mean over a plain list."""
    rows = []
    for i, own in enumerate(groups.tolist()):
        others = [
            float(rewards[j][mask[j]].double().sum()) for j in range(len(groups)) if j != i and int(groups[j]) == own
        ]
        advantage = float(rewards[i][mask[i]].double().sum()) - sum(others) / len(others)
        rows.append([advantage if keep else 0.0 for keep in mask[i].tolist()])
    return torch.tensor(rows)


@st.composite
def batches(draw):
    sizes = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    groups = torch.tensor([group for group, size in enumerate(sizes) for _ in range(size)])
    order = torch.tensor(draw(st.permutations(range(len(groups)))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = torch.randint(1, 7, (len(groups),), generator=generator)
    mask = torch.arange(6) < lengths[:, None]
    return torch.randn(mask.shape, generator=generator) * 3, mask, groups[order], generator


@settings(max_examples=40, deadline=None)
@given(batches())
def test_it_is_the_plain_mean_of_the_others_wherever_they_stand(batch):
    rewards, mask, groups, _ = batch
    advantages = leave_one_out_advantages(rewards, mask, groups)
    torch.testing.assert_close(advantages, one_by_one(rewards, mask, groups), atol=1e-5, rtol=1e-5)
    for group in groups.unique():
        assert float(advantages[groups == group, 0].sum()) == pytest.approx(0, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_neither_true_shaping_nor_another_place_in_the_response_changes_it(batch):
    rewards, mask, groups, generator = batch
    advantages = leave_one_out_advantages(rewards, mask, groups)
    potential = torch.where(mask, torch.randn(mask.shape, generator=generator), 0)  # of the state before each token
    potential[:, 0] = torch.randn(10, generator=generator)[groups]  # at first that state is the prompt
    shaped = rewards + torch.nn.functional.pad(potential[:, 1:], (0, 1)) - potential
    torch.testing.assert_close(leave_one_out_advantages(shaped, mask, groups), advantages, atol=1e-5, rtol=1e-5)
    moved = torch.where(mask, torch.randn(mask.shape, generator=generator), 0)
    moved = torch.where(mask, moved - moved.sum(1, keepdim=True) / mask.sum(1, keepdim=True), 0)
    torch.testing.assert_close(
        leave_one_out_advantages(rewards + moved, mask, groups), advantages, atol=1e-5, rtol=1e-5
    )


def test_a_process_that_holds_whole_groups_needs_no_other():
    generator = torch.Generator().manual_seed(0)
    rewards, mask = torch.randn(6, 4, generator=generator), torch.ones(6, 4, dtype=torch.bool)
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    parts = [leave_one_out_advantages(rewards[rows], mask[rows], groups[rows]) for rows in (slice(0, 3), slice(3, 6))]
    assert torch.equal(leave_one_out_advantages(rewards, mask, groups), torch.cat(parts))


def test_a_response_without_another_to_its_prompt_is_refused():
    with pytest.raises(ValueError, match="row 2 is the only response of group 7"):
        leave_one_out_advantages(torch.ones(3, 1), torch.ones(3, 1, dtype=torch.bool), torch.tensor([0, 0, 7]))


def test_every_prompt_gets_different_responses_one_after_the_other():
    rollout = trainer().collect(PROMPTS)
    assert rollout.sequences.prompts() == [prompt for prompt in PROMPTS for _ in range(4)]
    for first in range(0, 12, 4):
        assert len({tuple(row) for row in rollout.sequences.responses()[first : first + 4]}) == 4
    groups = prompt_groups(rollout.sequences, 4)
    assert groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    again = trainer(replace(CONFIG, advantages="gae")).collect(PROMPTS)
    assert again.sequences.responses() == rollout.sequences.responses()  # the draw knows nothing of the estimator


def test_rows_that_are_not_k_to_a_prompt_are_refused():
    same = sequences_of([[1], [1], [2], [2]], [[3]] * 4)
    assert prompt_groups(same, 2).tolist() == [0, 0, 1, 1]
    assert repeated([[1], [2]], 2) == same.prompts()
    with pytest.raises(ValueError, match="expected 4 responses to each prompt.* in the 4 rows, but row 2 has another"):
        prompt_groups(same, 4)
    with pytest.raises(ValueError, match="in the 3 rows, but the last has 1"):
        prompt_groups(same.select(torch.tensor([0, 1, 2])), 2)
    with pytest.raises(ValueError, match="give collect or step each prompt once"):
        trainer().estimate_returns(rollout_of(ragged_sequences(), [0.0] * 4), torch.zeros(4, 6))


TOTALS = sorted(name for name, estimator in ESTIMATORS.items() if not estimator.reaches_tokens)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_credit_reaches_the_tokens_or_is_refused(name):
    """What an estimator declares is what it does: with equal totals, other tokens change the advantages, or do not."""
    learner = trainer(replace(CONFIG, advantages=name, first_step_checks="warn"))
    rollout = learner.collect(PROMPTS)
    learner.trained = True
    sparse, uniform = (learner.estimate_returns(rollout, method(rollout)) for method in (Sparse(), Uniform()))
    alike = torch.allclose(sparse.advantages, uniform.advantages, atol=1e-5, rtol=1e-5)
    assert alike is not ESTIMATORS[name].reaches_tokens


@pytest.mark.parametrize("name", TOTALS)
def test_dense_credit_that_would_be_lost_is_refused(name):
    learner = trainer(replace(CONFIG, advantages=name), Uniform())
    with pytest.raises(HealthError, match=f"advantages '{name}' add up .* the credit is lost, .* Use advantages 'rloo"):
        learner.step(PROMPTS)
    with pytest.warns(RuntimeWarning, match="the credit is lost"):
        trainer(replace(CONFIG, advantages=name, first_step_checks="warn"), Uniform()).step(PROMPTS)


def test_one_warning_of_a_score_that_would_be_counted_twice():
    """PRIME adds the score itself, so it expects credit that is not the score again."""
    config = replace(CONFIG, advantages="prime")
    with pytest.warns(RuntimeWarning, match="'prime' add .* credit of sparse sums .* such as log-ratio, or") as said:
        learner = trainer(config, Sparse())
    assert [one.filename for one in said] == [__file__]
    learner.step(PROMPTS)
    trainer(config, Bonus()).step(PROMPTS)


def test_every_estimator_says_what_the_config_takes_from_it():
    assert set(TOTALS) == OF_TOTALS
    for name in ESTIMATORS:
        refused = False
        try:
            replace(CONFIG, advantages=name, responses_per_prompt=1)
        except ValueError:
            refused = True
        assert refused == (name in OF_GROUPS)


SLOW = pytest.mark.slow
COMBINED = list(product(LOSS_MEANS, SURROGATES, ESTIMATORS))


# every seventh is a fast test: each name is met, and a step from one to the next changes all three
@pytest.mark.parametrize(
    ("mean", "surrogate", "name"),
    [pytest.param(*names, marks=() if place % 7 == 0 else SLOW) for place, names in enumerate(COMBINED)],
)
def test_every_combination_learns_the_same_from_micro_batches_of_any_size(mean, surrogate, name):
    config = replace(CONFIG, advantages=name, surrogate=surrogate, loss_mean=mean, micro_batch_tokens=10_000)
    whole, split = trainer(config), trainer(replace(config, micro_batch_tokens=12))
    for learner in (whole, split):
        before = learner.policy.logits.clone()
        figures = learner.step(PROMPTS)
        assert not learner.policy.logits.equal(before)
    torch.testing.assert_close(whole.policy.logits, split.policy.logits, atol=1e-5, rtol=1e-5)
    assert whole.step(PROMPTS)["policy_loss"] == pytest.approx(split.step(PROMPTS)["policy_loss"], abs=1e-4)
    assert ("value_loss" in figures) is ESTIMATORS[name].critic


@pytest.mark.parametrize(("kind", "slope"), [("k2", lambda x: x), ("k3", lambda x: 1 - torch.exp(-x))])
def test_a_penalty_in_the_loss_has_the_stated_gradient(kind, slope):
    config = replace(CONFIG, epochs=1, minibatch_size=12, max_grad_norm=None, value_coef=0.0)
    policy, sequences = TablePolicy(), ragged_sequences()
    with torch.no_grad():
        old = policy.evaluate(sequences, frozenset())
    mask, generator = sequences.response_mask, torch.Generator().manual_seed(0)
    reference = torch.where(mask, old.logprobs + torch.randn(mask.shape, generator=generator), 0)
    buffer = RolloutBuffer(lambda advantages, mask: advantages)
    zeros = torch.zeros_like(old.logprobs)
    buffer.add(
        Experience(
            sequences=sequences,
            logprobs=old.logprobs,
            ref_logprobs=reference,
            values=zeros,
            advantages=zeros,
            returns=zeros,
        )
    )
    penalised = replace(config, kl=KLConfig(kind=kind, place="loss"))
    found = []
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: found.append(policy.logits.grad.clone()))
    ppo_update(policy, optimizer, buffer, penalised, step=0, check_first=lambda *_: None, kl_coef=0.5)
    own = TablePolicy()
    new = own.evaluate(sequences, frozenset()).logprobs
    (0.5 * slope((new - reference).detach())[mask] * new[mask]).mean().backward()
    torch.testing.assert_close(found[0], own.logits.grad, atol=1e-6, rtol=1e-4)


def test_a_penalty_is_in_one_place_only():
    config = replace(CONFIG, kl=KLConfig(kind="k3", place="loss"))
    learner = trainer(config)
    rollout = learner.collect(PROMPTS)
    rollout = replace(rollout, kl=torch.where(rollout.sequences.response_mask, 9.0, 0))
    found = learner.estimate_returns(rollout, Sparse()(rollout))
    free = trainer(replace(CONFIG, kl=KLConfig(init_coef=0.0))).estimate_returns(rollout, Sparse()(rollout))
    assert found.advantages.equal(free.advantages)
    both = trainer(config), trainer(replace(CONFIG, kl=KLConfig(init_coef=0.0)))
    for one in both:
        one.step(PROMPTS)
        one.step(PROMPTS)
    assert not both[0].policy.logits.equal(both[1].policy.logits)


def test_the_critic_may_learn_from_another_lambda():
    learner = trainer(replace(CONFIG, advantages="gae", lam=0.5, value_lam=1.0))
    rollout = learner.collect(PROMPTS)
    found = learner.estimate_returns(rollout, Uniform()(rollout))
    plain, ones = (
        trainer(replace(CONFIG, advantages="gae", lam=lam)).estimate_returns(rollout, Uniform()(rollout))
        for lam in (0.5, 1.0)
    )
    assert found.advantages.equal(plain.advantages)
    torch.testing.assert_close(found.returns, ones.returns)


def test_lambda_may_follow_the_length():
    config = replace(CONFIG, advantages="gae", lam_length_share=0.5)
    rollout = trainer(config).collect(PROMPTS)
    found = trainer(config).estimate_returns(rollout, Uniform()(rollout)).advantages
    lengths = rollout.sequences.response_mask.sum(1).tolist()
    for row, length in enumerate(lengths):
        lam = 1 - 1 / (0.5 * length)
        one = trainer(replace(CONFIG, advantages="gae", lam=lam)).estimate_returns(rollout, Uniform()(rollout))
        torch.testing.assert_close(found[row], one.advantages[row], atol=1e-5, rtol=1e-5)


def test_conserving_credit_decides_nothing():
    learner = trainer(replace(CONFIG, first_step_checks="warn"))
    learner.trained = True
    rollout = learner.collect(PROMPTS)
    sparse, uniform = (learner.estimate_returns(rollout, method(rollout)) for method in (Sparse(), Uniform()))
    torch.testing.assert_close(sparse.advantages, uniform.advantages, atol=1e-5, rtol=1e-5)
    assert sparse.returns.equal(rollout.values)


def test_the_penalty_counts():
    learner = trainer()
    rollout = replace(learner.collect(PROMPTS), scores=torch.zeros(12))
    rollout = replace(rollout, kl=torch.where(rollout.sequences.response_mask, rollout.values, 0))
    learner.kl_controller = FixedKL(0.5)
    totals = -0.5 * rollout.kl.sum(1)
    advantages = learner.estimate_returns(rollout, Sparse()(rollout)).advantages[:, 0]
    assert float(advantages[0]) == pytest.approx(float(totals[0] - totals[1:4].mean()), abs=1e-5)


def test_no_critic_is_trained_or_spoken_of():
    learner, plain = trainer(), trainer(replace(CONFIG, advantages="gae"))
    before = learner.policy.value.clone(), learner.policy.logits.clone()
    for _ in range(3):
        figures, with_critic = learner.step(PROMPTS), plain.step(PROMPTS)
    assert learner.policy.value.equal(before[0])
    assert not learner.policy.logits.equal(before[1])
    assert not plain.policy.value.equal(before[0])
    assert with_critic.keys() - figures.keys() == OF_A_CRITIC | {"value_loss_normalised"}
    assert figures["advantage_variance"] > 0


def test_the_weight_of_the_value_loss_and_lam_change_nothing():
    learners = [trainer(), trainer(replace(CONFIG, value_coef=5.0)), trainer(replace(CONFIG, lam=0.3))]
    for learner in learners:
        learner.step(PROMPTS)
    assert learners[0].policy.logits.equal(learners[1].policy.logits)
    assert learners[0].policy.logits.equal(learners[2].policy.logits)


def test_it_learns():
    learner = trainer()
    scores = [learner.step(PROMPTS)["score"] for _ in range(25)]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 1


def test_a_run_draws_as_many_prompts_as_there_are_groups(tmp_path):
    ids = [[i] for i in range(1, 7)]
    seen = [prompt[0] for step in range(2) for prompt in shuffled_batch(ids, CONFIG, step)]
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    learner = trainer(scorer=lambda prompts, responses: [float(len(row)) for row in responses])
    learner.fit([[1], [2], [3], [4], [5]], 2, out=tmp_path / "run", eval_prompts=[[1], [2]])
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert "value_loss" not in lines[0]
    assert lines[-1]["eval_length"] > 0


def test_every_estimator_can_be_asked_for():
    assert set(get_args(get_type_hints(PPOConfig)["advantages"])) == set(ESTIMATORS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"responses_per_prompt": 1},
            "advantages 'rloo' compares responses to one prompt, and responses_per_prompt is 1",
        ),
        ({"responses_per_prompt": 5}, "rollout_batch_size 12 is no multiple of responses_per_prompt 5"),
        ({"responses_per_prompt": 0}, "responses_per_prompt must be at least 1, got 0"),
        ({"gamma": 0.9}, "gamma must be 1, got 0.9"),
        ({"value_lam": 1.0}, "value_lam 1.0 belongs to advantages 'gae', and they are 'rloo'; leave it out"),
        ({"lam_length_share": 0.05}, "lam_length_share 0.05 belongs to advantages 'gae'"),
        ({"lam_length_share": 0.0}, "lam_length_share must be above 0 and at most 1, got 0.0"),
        ({"dual_clip": 1.0}, "dual_clip must be a finite number above 1, got 1.0"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "surrogate 'cispo' has no such bound"),
        (
            {"loss_mean": "tokens"},
            "loss_mean must be one of token, response, fixed, got 'tokens'",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(CONFIG, **changes)


REMAX = replace(CONFIG, advantages="remax", max_length=(7, 7))


def test_remax_scores_one_greedy_response_per_prompt():
    scored = []

    def noted(prompts, responses):
        scored.append(len(responses))
        return [10.0 * len(prompt) + row.count(3) for prompt, row in zip(prompts, responses, strict=True)]

    one = trainer(REMAX, scorer=noted)
    scored.clear()
    rollout = one.collect(PROMPTS)
    assert scored == [12, 3]  # four responses to each of three prompts, then one greedy one each
    limits = Limits(min_lengths=torch.full((3,), 2), max_lengths=torch.full((3,), 7))
    greedy = one.policy.sample(PROMPTS, limits, torch.zeros(3, 7, dtype=torch.float64), temperature=0.0)
    expected = [score for score in noted(PROMPTS, greedy.responses()) for _ in range(4)]
    assert rollout.evidence[GreedyScores()].tolist() == expected
    assert one.step(PROMPTS)["skipped_minibatches"] == 0


def test_a_greedy_score_is_centred_and_scaled_as_the_others_are():
    score = ScoreConfig(centring="running_mean", scaling="running_std")
    one = trainer(replace(REMAX, score=score))
    rollout = one.collect(PROMPTS)
    raw = trainer(REMAX).collect(PROMPTS).evidence[GreedyScores()]
    slope = rollout.score_scale
    centre = float((rollout.raw_scores - rollout.scores / slope).mean())
    torch.testing.assert_close(rollout.evidence[GreedyScores()], (raw - centre) * slope)


def test_remax_says_what_a_rollout_without_greedy_scores_lacks():
    one, other = trainer(REMAX), trainer(replace(REMAX, advantages="reinforce_plus_plus"))
    rollout = other.collect(PROMPTS)
    with pytest.raises(ValueError, match="needs the scores of greedy responses, and this rollout has none"):
        one.estimate_returns(rollout, rollout.scores[:, None] * rollout.sequences.response_mask)
