"""Two trainers on one policy: each measures what it would measure alone."""

from dataclasses import replace

import pytest
import torch
from fakes import TablePolicy, small_run

from models import load_policy
from models.tiny import save_tiny
from redistributors import Sparse
from rlhf_core import PPOTrainer, TokenReward
from rlhf_core.config import KLConfig

PROMPTS = [[2], [3], [4], [5]]
COLD, WARM = 0.4, 1.5


def trainer(policy, temperature, **changes):
    reward = TokenReward(lambda prompts, rows: [float(len(row)) for row in rows])
    return PPOTrainer(policy, reward, Sparse(), replace(small_run(), temperature=temperature, **changes))


def numbers(rollout):
    """Everything that a temperature decides."""
    return [x.tolist() for x in (rollout.sequences.response_ids, rollout.logprobs, rollout.ref_logprobs, rollout.kl)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("shared"), "llama")


@pytest.mark.parametrize("kind", ["k1", "full"])
def test_the_second_trainers_temperature_is_not_the_firsts(folder, kind):
    settings = {"kl": KLConfig(init_coef=0.05, kind=kind)}
    alone = [numbers(trainer(load_policy(folder), t, **settings).collect(PROMPTS)) for t in (COLD, WARM)]
    assert alone[0] != alone[1]
    policy = load_policy(folder)
    cold, warm = (trainer(policy, t, **settings) for t in (COLD, WARM))
    assert [numbers(each.collect(PROMPTS)) for each in (warm, cold, warm)] == [alone[1], alone[0], alone[1]]
    assert cold.policy is warm.policy is policy


def test_interleaved_steps_keep_the_ratio_at_one_and_train_one_policy(folder):
    policy = load_policy(folder)
    cold, warm = trainer(policy, COLD, first_step_checks="warn"), trainer(policy, WARM, first_step_checks="warn")
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    first = cold.step(PROMPTS)
    with pytest.warns(RuntimeWarning, match="policy and reference differ"):  # cold has trained it
        warm.collect(PROMPTS)
    second = cold.step(PROMPTS)
    assert first["first_log_ratio_max"] < 1e-5
    assert second["first_log_ratio_max"] < 1e-5
    assert any(not torch.equal(was, now) for was, now in zip(before, policy.parameters(), strict=True))


class Noted(TablePolicy):
    """Writes down the temperature of every call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def sample(self, *given, temperature):
        self.calls.append(("sample", temperature))
        return super().sample(*given, temperature=temperature)

    def evaluate(self, *given, temperature):
        self.calls.append(("update" if torch.is_grad_enabled() else "evaluate", temperature))
        return super().evaluate(*given, temperature=temperature)

    def reference_logprobs(self, *given, temperature):
        self.calls.append(("reference", temperature))
        return super().reference_logprobs(*given, temperature=temperature)


@pytest.mark.parametrize("temperature", [COLD, WARM])
def test_every_call_of_a_run_is_at_its_trainers_temperature(temperature, tmp_path):
    """Sampling, old, new and reference log-probabilities, evaluation, and the measurement that tells runs apart."""
    policy = Noted()
    trainer(policy, temperature).fit(PROMPTS, 1, out=tmp_path / "run", eval_prompts=PROMPTS)
    assert set(policy.calls) == {(call, temperature) for call in ("sample", "evaluate", "update", "reference")}


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(folder, bad):
    policy = load_policy(folder)
    sequences = trainer(policy, 1.0).collect(PROMPTS).sequences
    with pytest.raises(ValueError, match=f"temperature divides the logits .* above 0, got {bad}"):
        policy.reference_logprobs(sequences, temperature=bad)
