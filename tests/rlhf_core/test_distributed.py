"""Two processes see what one process would: threads that meet wherever numbers of several processes do."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from fakes import TablePolicy, WithCritic, ragged_sequences, rollout_of

from redistributors import Uniform
from rlhf_core import (
    Experience,
    PPOConfig,
    PPOTrainer,
    Rollout,
    RolloutBuffer,
    TokenReward,
    distributed,
    masking,
    metrics,
    rewards,
    update,
)
from rlhf_core.masking import masked_var, masked_whiten
from rlhf_core.rewards import ScoreMoments
from rlhf_core.update import ppo_update


@dataclass
class Pair:
    """Runs a stage on two shards at once; each reduction waits for the other's value."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=20))
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def reduction(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def meet(value: torch.Tensor) -> torch.Tensor:
            if not threading.current_thread().name.startswith("shard"):
                return value
            self.values[threading.get_ident()] = value
            self.barrier.wait()
            both = torch.stack([self.values[thread] for thread in sorted(self.values)])
            self.barrier.wait()
            return reduce(both)

        return meet

    def run(self, stage, shards):
        with ThreadPoolExecutor(2, thread_name_prefix="shard") as pool:
            return list(pool.map(stage, shards))


@pytest.fixture
def pair(monkeypatch) -> Pair:
    processes = Pair()
    reductions = {
        "global_sum": lambda both: both.sum(0),
        "global_min": lambda both: both.amin(0),
        "global_max": lambda both: both.amax(0),
    }
    for name, reduce in reductions.items():
        for module in (masking, metrics, rewards, update):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, processes.reduction(reduce))
    return processes


def shards_of(x, mask, first):
    return [(x[:first], mask[:first]), (x[first:], mask[first:])]


@pytest.mark.parametrize("selected", ["some in both", "none in the first"])
def test_moments_and_whitening_are_those_of_one_process(pair, selected):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator) + torch.tensor([9.0, 8, 0, 0, 0])[:, None]  # the shards' ranges differ
    mask = torch.rand(5, 4, generator=generator) < 0.7
    if selected == "none in the first":
        mask[:2] = False
    white, variance = masked_whiten(x, mask), masked_var(x, mask)
    parts = pair.run(lambda shard: (masked_whiten(*shard), masked_var(*shard)), shards_of(x, mask, 2))
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), white)
    assert all(float(part[1]) == pytest.approx(float(variance)) for part in parts)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-6)


def test_nothing_selected_in_any_process_is_an_error(pair):
    def refused(shard):
        with pytest.raises(ValueError, match="selects nothing"):
            masked_whiten(*shard)
        return True

    assert all(pair.run(refused, shards_of(torch.ones(4, 3), torch.zeros(4, 3, dtype=torch.bool), 1)))


def part_of(rollout: Rollout, rows: list[int]) -> Rollout:
    chosen = torch.tensor(rows)
    sequences = rollout.sequences.select(chosen)
    width = sequences.response_ids.shape[1]
    per_token = {name: getattr(rollout, name)[chosen, :width] for name in ("logprobs", "ref_logprobs", "values", "kl")}
    per_row = {name: getattr(rollout, name)[chosen] for name in ("raw_scores", "scores")}
    return replace(rollout, sequences=sequences, **per_token, **per_row)


def trainer() -> PPOTrainer:
    return PPOTrainer(TablePolicy(), TokenReward(lambda prompts, responses: []), Uniform(), PPOConfig())


def test_the_kl_controller_is_fed_the_responses_of_all_processes(pair):
    rollout, fed = rollout_of(ragged_sequences(), [1.0, -2.0, 0.5, 3.0]), []

    def conclude(part):
        learner = trainer()
        learner.kl_controller.update = lambda kl, n: fed.append((kl, n))
        learner.conclude(part)

    conclude(rollout)
    pair.run(conclude, [part_of(rollout, [0]), part_of(rollout, [1, 2, 3])])
    assert fed[1:] == [(pytest.approx(fed[0][0]), 4)] * 2
    assert fed[0][1] == 4


def test_score_moments_are_those_of_one_process(pair):
    scores = torch.tensor([1.0, 5.0, -2.0, 0.0, 7.0])
    first, second = [scores[:1], scores[1:]], [scores[3:] * 2, scores[:3] * 2]
    whole = ScoreMoments().including(scores).including(scores * 2)
    for moments in pair.run(
        lambda shard: ScoreMoments().including(shard[0]).including(shard[1]), list(zip(first, second))
    ):
        assert (moments.count, moments.mean) == (10, pytest.approx(whole.mean))
        assert moments.std == pytest.approx(whole.std) == pytest.approx(np.std([*scores, *(2 * scores)], ddof=1))


@pytest.mark.parametrize(("policy_of", "warmup"), [(TablePolicy, 0), (WithCritic, 0), (WithCritic, 1)])
def test_an_update_measures_and_whitens_over_all_processes(pair, policy_of, warmup):
    """The learning rate is 0, so that what differs between processes is not the weights."""
    rollout = rollout_of(ragged_sequences(), [0.0] * 4)
    random = rollout.values * torch.tensor([[5.0], [1], [1], [1]])

    def figures(rows):
        part = part_of(replace(rollout, kl=random), rows)
        buffer = RolloutBuffer()
        tensors = {
            "logprobs": part.logprobs - 1,
            "ref_logprobs": part.logprobs,
            "values": part.values,
            "advantages": part.kl,
            "returns": part.kl,
        }
        buffer.add(Experience(sequences=part.sequences, **tensors))
        policy = policy_of()
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
        config = PPOConfig(minibatch_size=8, epochs=1, micro_batch_tokens=12, ratio_threshold=1e6, critic_warmup=warmup)
        return ppo_update(policy, optimizer, buffer, config, step=0, check_first=lambda largest, mean: None)

    whole = figures([0, 1, 2, 3])
    for part in pair.run(figures, [[0, 1], [2, 3]]):
        for name in whole.keys() - {"gradient_norm", "critic_gradient_norm"}:
            assert part[name] == pytest.approx(whole[name], rel=1e-5), name


def test_one_process_meets_nobody():
    value = torch.tensor([1.0, -2.0])
    for reduction in (distributed.global_sum, distributed.global_min, distributed.global_max):
        assert reduction(value) is value
