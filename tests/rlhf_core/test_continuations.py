"""Values of states from continuations: against enumeration, and what they depend on."""

import itertools
from dataclasses import replace

import pytest
import torch
from enumerable import ODD, Eighths, expected
from fakes import TablePolicy, sequences_of

from redistributors import MonteCarlo, Sparse
from rlhf_core import Limits, PPOConfig, PPOTrainer, Sequences, TokenReward, continuations
from rlhf_core.batching import Budgets
from rlhf_core.continuations import Continuations, continuation_values, prompt_uniforms
from rlhf_core.evidence import ContinuationValues
from rlhf_core.rewards import ScoreMoments
from rlhf_core.rollout import measure

LIMITS = Limits(min_lengths=torch.tensor([2, 0, 0]), max_lengths=torch.tensor([3, 2, 3]))
DRAWN = sequences_of([[1, 2], [1], [2]], [[2, 1, 0], [1, 2], [1, 1, 1]], LIMITS)
EVERY = ContinuationValues(span=1, positions=9, continuations=8)


def values(sequences, request=EVERY, *, seed=0, tokens=4096, policy=None, reward=ODD):
    config = PPOConfig(temperature=1.0, sampling_tokens=tokens, seed=seed)
    budget = Budgets.of(config).sampling
    return continuation_values(request, policy or Eighths(), reward, sequences, config=config, budget=budget)


def test_positions_by_hand():
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    at = ContinuationValues(span=2, positions=2, continuations=1).at(mask)
    assert [row.nonzero().flatten().tolist() for row in at] == [[2, 4], [2], []]
    assert ContinuationValues(span=1, positions=9, continuations=1).at(mask).sum(1).tolist() == [6, 3, 0]
    assert ContinuationValues(span=9, positions=9, continuations=1).at(mask).sum() == 0


def test_values_are_those_of_all_continuations(monkeypatch):
    """Every combination of eight equally spaced numbers at three positions draws every continuation as often as the
    policy would."""
    grid = [[(i + 0.5) / 8 for i in some] for some in itertools.product(range(8), repeat=3)]
    every = torch.tensor(grid, dtype=torch.float64).expand(3, -1, -1)
    monkeypatch.setattr(continuations, "prompt_uniforms", lambda seed, sequences, draws: every)
    request = ContinuationValues(span=1, positions=2, continuations=len(grid))
    found = values(DRAWN, request, tokens=10**6)
    assert not found[:, 0].any()
    for row, (prompt, response) in enumerate(zip(DRAWN.prompts(), DRAWN.responses())):
        low, high = int(LIMITS.min_lengths[row]), int(LIMITS.max_lengths[row])
        wanted = [expected(Eighths(), prompt, response[:t], low, high) for t in range(1, len(response))]
        assert found[row, 1 : len(response), 0].tolist() == pytest.approx(wanted, abs=1e-5)
        assert not found[row, len(response) :].any()


def test_equal_states_have_equal_values_whatever_comes_after_or_beside_them():
    """Rows of one prompt and one beginning, and a row alone, with other budgets: the same value, to the bit. Another
    seed draws others."""
    longer = Limits(min_lengths=torch.zeros(4, dtype=torch.long), max_lengths=torch.full((4,), 6))
    sequences = sequences_of([[1, 2]] * 3 + [[2]], [[2, 1, 0], [2, 1, 1, 1, 2, 2], [2, 2], [2, 1, 1, 1]], longer)
    found = values(sequences)
    assert torch.equal(found[0, 1:3], found[1, 1:3])
    assert torch.equal(found[0, 1], found[2, 1])
    assert not torch.equal(found[0, 1], found[3, 1])
    assert torch.equal(values(sequences.select(torch.tensor([1])))[0], found[1])
    assert torch.equal(values(sequences, tokens=12), found)
    assert not torch.equal(values(sequences, seed=1), found)


def test_the_tokens_that_were_drawn_are_counted():
    """Responses of three tokens, always: after one there are two to draw, after two there is one."""
    fixed = Limits(min_lengths=torch.tensor([3]), max_lengths=torch.tensor([3]))
    found = values(sequences_of([[1]], [[2, 1, 1]], fixed))
    assert found[0, :, 1].tolist() == [0, 8 * 2, 8 * 1]


def test_where_no_position_is_reached_nothing_is_drawn():
    class Mute(Eighths):
        def sample(self, *given, **settings):
            raise AssertionError

    assert not values(DRAWN, replace(EVERY, span=4), policy=Mute()).any()


def test_a_state_that_draws_the_token_itself_goes_on_as_the_next_state_does():
    going_on = Continuations(policy=Eighths(), temperature=1.0, sequences=DRAWN, uniforms=prompt_uniforms(0, DRAWN, 32))
    first, second = (going_on.completed(torch.tensor([(0, t, j) for j in range(32)])).responses() for t in (0, 1))
    alike = [before == after for before, after in zip(first, second) if before[0] == 2]
    assert all(alike)
    assert 4 < len(alike) < 32
    assert len(set(map(tuple, second))) > 3


def test_uniforms_are_those_of_the_prompt_and_a_longer_limit_appends_some():
    wide = Sequences.concatenate([DRAWN, sequences_of([[1]], [[2] * 9])])
    short, long = (prompt_uniforms(3, some, 4) for some in (DRAWN, wide))
    assert torch.equal(short, long[:3, :, :3])
    assert torch.equal(long[1], long[3])  # of one prompt
    assert not torch.equal(long[0], long[1])


CONFIG = PPOConfig(rollout_batch_size=4, minibatch_size=4, min_length=2, max_length=(4, 9), learning_rate=0.05)
PROMPTS = [[1], [2, 3], [4, 5], [1, 1]]


def lengths(prompts, responses):
    return [float(len(row)) for row in responses]


def test_the_stream_of_responses_is_left_alone():
    """Responses, and the whole training of another method, are the same with and without continuations."""
    state = torch.get_rng_state()
    steps = []
    for methods in ([], [MonteCarlo(span=2)]):
        trainer = PPOTrainer(TablePolicy(), TokenReward(lengths), Sparse(), CONFIG)
        rollouts = []
        for _ in range(3):
            rollouts.append(trainer.collect(PROMPTS, methods))
            trainer.update(trainer.estimate_returns(rollouts[-1], trainer.redistribute(rollouts[-1])))
            trainer.conclude(rollouts[-1])
        steps.append((rollouts, trainer.policy.logits.detach().clone()))
    (plain, weights), (beside, same) = steps
    assert torch.equal(weights, same)
    for one, other in zip(plain, beside):
        assert one.sequences.responses() == other.sequences.responses()
        assert not one.evidence
        assert other.evidence[MonteCarlo(span=2).request][..., 0].any()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_function_that_asks_for_a_column_is_given_it_for_every_continuation():
    def praised(prompts, responses, worth):
        assert len(worth) == len(responses)
        return [w * len(row) for w, row in zip(worth, responses)]

    rows = [{"prompt": prompt, "worth": 10.0**i} for i, prompt in enumerate(PROMPTS)]
    config = replace(CONFIG, min_length=6, max_length=(6, 6))
    rollout = PPOTrainer(TablePolicy(), TokenReward(praised), MonteCarlo(span=3), config).collect(rows)
    found = rollout.evidence[MonteCarlo(span=3).request][..., 0]
    assert found[:, 3].tolist() == pytest.approx([6 * 10.0**i for i in range(4)])


def test_a_score_of_a_continuation_that_is_not_finite_is_named():
    def bad(prompts, responses):
        return [float("nan") if 5 in row else 0.0 for row in responses]

    policy = TablePolicy()
    with torch.no_grad():
        policy.logits[:, 5] = 3.0
    trainer = PPOTrainer(policy, TokenReward(bad), MonteCarlo(span=1), CONFIG)
    sequences = sequences_of([[1]], [[1, 1, 1]], Limits(min_lengths=torch.tensor([3]), max_lengths=torch.tensor([3])))
    with pytest.raises(FloatingPointError, match="evidence ContinuationValues.* 1 of 1 rows are not finite"):
        measure(policy, trainer.reward, sequences, trainer.redistributor.needs, config=CONFIG, moments=ScoreMoments())
