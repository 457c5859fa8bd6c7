"""Gradients of the same rollout under every method: by hand, and how noise is told."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from fakes import TablePolicy, ragged_sequences
from PIL import Image
from rich.console import Console
from table_task import TableTask

from benchmarks import gradient_quality
from benchmarks.credit.gradient_report import draw
from benchmarks.credit.gradient_study import arms_of, bootstrapped, config_of, stages, studied
from benchmarks.credit.gradients import (
    cosine,
    expected_cosine,
    gram,
    inverted,
    jackknifed,
    policy_gradients,
    reference_gradient,
    signal_to_noise,
    squared_norm_of_expectation,
)
from benchmarks.credit.settings import GradientSettings
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.statistics import Summary, band
from models import load_policy
from models.tiny import save_tiny
from redistributors import Sparse, compare_on
from rlhf_core import PPOConfig, PPOTrainer, TokenReward

CONFIG = PPOConfig(rollout_batch_size=8, minibatch_size=4, min_length=1, max_length=(3, 6), lam=0.9)
METHODS = ("sparse", "uniform")


def drawn(seed=0, responses_per_prompt=1, **changes):
    config = replace(CONFIG, seed=seed, responses_per_prompt=responses_per_prompt, **changes)

    def scorer(prompts, responses):
        return [float(row.count(3)) - 0.1 * len(row) for row in responses]

    policy = TablePolicy()
    with torch.no_grad():
        policy.value += torch.linspace(-1, 1, 6)
    trainer = PPOTrainer(policy, TokenReward(scorer), Sparse(), config)
    return trainer, trainer.collect([[1 + i % 5] for i in range(8 // responses_per_prompt)])


def compared(trainer, rollout):
    """Advantages and gradients by method."""
    found = compare_on(rollout, METHODS, config=trainer.config, kl_coef=0.2)
    advantages = {name: credit.advantages for name, credit in found.items()}
    return advantages, policy_gradients(trainer.policy, rollout.sequences, advantages, trainer.config)


def by_hand(policy, sequences, advantages):
    """−1/n Σ Â (1[v = y] − p_v) on the row of the previous token, in numpy, token by token."""
    table = policy.logits.detach().double().numpy()
    mask = sequences.response_mask.numpy()
    chosen = advantages.double().numpy()[mask]
    white = (advantages.double().numpy() - chosen.mean()) / chosen.std(ddof=1)
    found = np.zeros_like(table)
    for i, (prompt, response) in enumerate(zip(sequences.prompts(), sequences.responses(), strict=True)):
        for t, token in enumerate(response):
            previous = ([*prompt, *response])[len(prompt) + t - 1]
            odds = np.exp(table[previous])
            if t < int(sequences.min_lengths[i]):
                odds[0] = 0.0  # EOS is banned
            found[previous] -= white[i, t] * (np.eye(6)[token] - odds / odds.sum()) / mask.sum()
    return torch.from_numpy(np.concatenate([found.ravel(), np.zeros(6)])).float()  # the value head is not reached


def test_gradients_are_those_of_whitened_advantages_on_log_probabilities():
    trainer, rollout = drawn()
    advantages, gradients = compared(trainer, rollout)
    for name, gradient in gradients.items():
        expected = by_hand(trainer.policy, rollout.sequences, advantages[name])
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4, msg=name)
    assert cosine(gradients["sparse"], gradients["sparse"]) == pytest.approx(1)
    assert cosine(gradients["sparse"], gradients["uniform"]) < 0.99


def test_a_gradient_costs_nothing_but_time():
    trainer, rollout = drawn()
    held = torch.ones(6, 6)
    trainer.policy.logits.grad = held.clone()
    before = trainer.policy.logits.detach().clone()
    compared(trainer, rollout)
    assert trainer.policy.logits.equal(before)
    assert trainer.policy.logits.grad.equal(held)
    assert trainer.policy.value.grad is None


def test_one_pass_serves_all_methods_however_it_is_cut(tmp_path):
    policy = load_policy(save_tiny(str(tmp_path / "policy"), family="gpt2", seed=1))
    sequences = ragged_sequences()
    generator = torch.Generator().manual_seed(1)
    advantages = {name: torch.randn(4, 6, generator=generator) for name in "abc"}
    together = policy_gradients(policy, sequences, advantages, CONFIG)
    for name, some in advantages.items():
        alone = policy_gradients(policy, sequences, {name: some}, replace(CONFIG, micro_batch_tokens=8))[name]
        assert float(alone.norm()) > 0.01
        torch.testing.assert_close(together[name], alone, atol=1e-6, rtol=1e-4)


def test_without_a_critic_conserving_methods_are_one():
    trainer, rollout = drawn(responses_per_prompt=4, advantages="rloo")
    _, gradients = compared(trainer, rollout)
    assert cosine(gradients["sparse"], gradients["uniform"]) == pytest.approx(1, abs=1e-5)


def test_cosine():
    a = torch.tensor([3.0, 4.0])
    assert cosine(a, torch.tensor([-6.0, -8.0])) == pytest.approx(-1)
    assert cosine(a, torch.tensor([4.0, -3.0])) == pytest.approx(0)
    assert cosine(a, torch.tensor([1.0, 0.0])) == pytest.approx(0.6)
    assert np.isnan(cosine(a, torch.zeros(2)))


def test_noise_by_hand():
    """Two gradients, (1, 0) and (3, 0): variance 2, and ⟨g₁, g₂⟩ = 3 estimates the squared norm of the mean."""
    products = gram(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    assert squared_norm_of_expectation(products) == pytest.approx(3)
    assert signal_to_noise(products) == pytest.approx(3 / 2)
    assert signal_to_noise(gram(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))) == pytest.approx(-1 / 2)
    assert signal_to_noise(gram(torch.ones(2, 3))) == np.inf
    assert np.isnan(signal_to_noise(gram(torch.zeros(2, 3))))
    with pytest.raises(ValueError, match="2 repetitions or more, got 1"):
        signal_to_noise(gram(torch.ones(1, 3)))


def test_noise_is_told_from_signal_with_few_repetitions():
    """Expectation (2, 0, ...), noise of variance 4 in each of 50 dimensions: 200 / 4 = 50, far above 12 repetitions."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.cat([torch.tensor([2.0]), torch.zeros(49)])
    signals, traces, cosines = [], [], []
    for _ in range(400):
        gradients = truth + 2 * torch.randn(12, 50, generator=generator)
        products = gram(gradients)
        signals.append(squared_norm_of_expectation(products))
        traces.append(float(products.trace()) / 12 - signals[-1])
        cosines.append(float(gradients.double().mean(0) @ truth.double()) / float(truth.norm()))
    assert np.mean(signals) == pytest.approx(4, rel=0.1)
    assert np.mean(traces) == pytest.approx(200, rel=0.02)
    assert np.mean(cosines) / np.mean(signals) ** 0.5 == pytest.approx(1, rel=0.05)


def test_the_cosine_of_expectations_ignores_noise_but_not_bias():
    generator = torch.Generator().manual_seed(1)
    truth = torch.cat([torch.tensor([3.0, 4.0]), torch.zeros(98)])
    biased = torch.cat([torch.tensor([4.0, 3.0]), torch.zeros(98)])  # cosine 24 / 25
    noisy = torch.randn(4000, 100, generator=generator)
    halves = [(truth + torch.randn(4000, 100, generator=generator)).mean(0) for _ in range(2)]
    reference, signal = (halves[0] + halves[1]) / 2, float(halves[0] @ halves[1])
    for gradients, expected in ((truth + noisy, 1.0), (biased + noisy, 0.96), (-truth + noisy, -1.0)):
        found = expected_cosine(gram(gradients), gradients @ reference, signal)
        assert found == pytest.approx(expected, abs=0.01)
        assert abs(np.mean([cosine(row, reference) for row in gradients[:200]])) < 0.6  # one by one they are lost in it
    assert np.isnan(expected_cosine(gram(truth + noisy), noisy @ reference, -1.0))


def test_the_jackknife_of_a_mean_is_its_t_interval():
    values = torch.tensor([1.0, 4.0, 2.0, 7.0, 3.0], dtype=torch.float64)
    found = jackknifed(lambda chosen: float(values[chosen].mean()), 5)
    mean, low, high, _ = band(values.numpy()[:, None])
    assert (found.mean, found.low, found.high) == pytest.approx((mean[0], low[0], high[0]))
    assert np.isnan(jackknifed(lambda chosen: float("nan"), 5).low)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ((2.0, 1.0, 4.0), (0.5, 0.25, 1.0)),
        ((2.0, -1.0, 4.0), (0.5, 0.25, np.inf)),
        ((-1.0, -4.0, 2.0), (np.inf, 0.5, np.inf)),
        ((-2.0, -3.0, -1.0), (np.nan, np.nan, np.nan)),
        ((np.nan, np.nan, np.nan), (np.nan, np.nan, np.nan)),
    ],
)
def test_an_interval_of_a_ratio_turned_over(ratio, expected):
    found = inverted(Summary(mean=ratio[0], low=ratio[1], high=ratio[2], kind="95 % interval"))
    np.testing.assert_equal((found.mean, found.low, found.high), expected)


def test_bootstrapped_leaves_out_what_is_undefined():
    found = bootstrapped([1.0, 2.0, float("nan"), 3.0])
    assert found.mean == pytest.approx(2)
    assert 1 <= found.low < 2 < found.high <= 3
    assert np.isnan(bootstrapped([1.0, float("nan")]).mean)


def test_the_reference_is_the_mean_of_sparse_at_lam_one():
    trainer, first = drawn()
    second = drawn(seed=1)[1]
    by_reward_to_go = []
    for rollout in (first, second):
        mask = rollout.sequences.response_mask
        togo = torch.where(mask, rollout.scores[:, None] - rollout.values, 0)  # no KL: the policy is its reference
        by_reward_to_go.append(by_hand(trainer.policy, rollout.sequences, togo))
    config = replace(CONFIG, responses_per_prompt=4, advantages="rloo")  # of which it takes no notice
    found = reference_gradient(trainer.policy, iter([first, second]), config=config, kl_coef=0.2)
    torch.testing.assert_close(found, (by_reward_to_go[0] + by_reward_to_go[1]) / 2, atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="no rollouts were given"):
        reference_gradient(trainer.policy, [], config=CONFIG, kl_coef=0.2)


CHOSEN = GradientSettings(
    redistributors="sparse,sparse@lam=1,uniform,sparse@advantages=rloo",
    prompts=3,
    responses_per_prompt=2,
    repetitions=4,
    reference_repetitions=4,
    sparse_steps=(1, 0),
)


def test_the_script_measures_every_policy_and_arm(tmp_path):
    made = studied(CHOSEN, TableTask())
    assert [row[:2] for row in made.rows[:5]] == [
        ("sparse", "0"), ("sparse-lam1", "0"), ("uniform", "0"), ("sparse-advantagesrloo", "0"), ("sparse", "1")
    ]  # fmt: skip
    columns = {name: [row[i] for row in made.rows] for i, name in enumerate(made.columns)}
    assert [columns["cosine to sparse"][i].mean for i in (0, 4)] == pytest.approx([1, 1])
    assert columns["explained variance"][3] is None
    assert all(-1 <= value.low <= value.mean <= value.high <= 1 for value in columns["cosine to reference"])
    publish(made, {"gradient_quality": draw(made)}, tmp_path, Console(quiet=True))
    with Image.open(tmp_path / "gradient_quality.png") as image:
        assert image.width > 1000
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 9


@dataclass(frozen=True, kw_only=True)
class Counting(Sparse):
    """The score for every rollout it has observed."""

    seen: list = field(default_factory=list)
    conserving: ClassVar = False

    def __call__(self, rollout):
        return Sparse.__call__(self, rollout) * len(self.seen)

    def observe(self, rollout):
        self.seen.append(rollout)

    def state(self):
        return {}

    def load_state(self, state):
        pass


def test_methods_that_learn_are_measured_after_they_have():
    chosen = replace(CHOSEN, redistributors=f"sparse,{__name__}.Counting", warm=3)
    for stage in stages(TableTask().load(), chosen, config_of(chosen, TableTask())):
        (rollout,) = stage.rollouts(range(1), frozenset())
        sparse, counting = stage.credits(rollout).values()
        assert counting.token_scores.equal(3 * sparse.token_scores)
        assert sparse.token_scores.any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"redistributors": "uniform"}, "redistributors must name sparse"),
        ({"redistributors": "sparse,sparse@seed=1"}, "cannot set its own"),
        ({"redistributors": "sparse,sparse@temperature=2"}, "temperature would change the rollout"),
        ({"repetitions": 2}, "repetitions must be 3 or more, got 2"),
        ({"sparse_steps": (3, 3)}, "sparse_steps must be different numbers"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        arms_of(replace(CHOSEN, **changes))


def test_what_the_task_cannot_give_is_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match="prompts 4 exceed the task's 3 held-out prompts"):
        studied(replace(CHOSEN, prompts=4), TableTask())
    with pytest.raises(ValueError, match="advantages 'rloo' compares responses to one prompt"):
        studied(replace(CHOSEN, responses_per_prompt=1), TableTask())
    with pytest.raises(ValueError, match="^abc needs"):
        studied(replace(CHOSEN, redistributors="sparse,abc"), TableTask())


def test_the_command_line_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.credit.gradient_study.make_task", lambda *_, **__: TableTask())
    with pytest.raises(SystemExit) as ended:
        gradient_quality.main(["--redistributors", "uniform", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "redistributors must name sparse" in capsys.readouterr().err
    arguments = ["--prompts", "3", "--repetitions", "3", "--reference_repetitions", "2", "--out", str(tmp_path / "out")]
    gradient_quality.main([*arguments, "--redistributors", "sparse,uniform", "--sparse_steps", "[0]"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "run.json", "table.md", "table.csv", "gradient_quality.png", "gradient_quality.pdf"
    }  # fmt: skip
    with pytest.raises(SystemExit):
        gradient_quality.main([*arguments, "--redistributors", "sparse,uniform"])
    assert "is not empty; choose another --out" in capsys.readouterr().err
