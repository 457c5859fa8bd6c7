"""The same rollout under every method: credit as the trainer has it, gradients by hand, and how noise is told."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from fakes import TablePolicy, ragged_sequences, rollout_of
from PIL import Image
from rich.console import Console
from table_task import TableTask

from benchmarks import gradient_quality
from benchmarks.compare_on import compare_on, gradient_variance, reference_gradient
from benchmarks.credit.gradients import (
    cosine,
    expected_cosine,
    gram,
    inverted,
    jackknifed,
    policy_gradients,
    relative_variance,
    signal_to_noise,
    squared_norm_of_expectation,
)
from benchmarks.gradient_quality import Settings, bootstrapped, draw, run, stages
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.statistics import Summary, band
from models import load_policy
from models.tiny import save_tiny
from redistributors import RewardAttention, Sparse, Uniform
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.checks import HealthError

CONFIG = PPOConfig(rollout_batch_size=8, minibatch_size=4, min_length=1, max_length=(3, 6), lam=0.9)
SCORES = [2.0, -1.0, 0.5, 3.0]
METHODS = {"sparse": Sparse(), "uniform": Uniform(), "zero": Uniform(beta=0.0)}


def drawn(seed=0, responses_per_prompt=1, **changes):
    config = replace(CONFIG, seed=seed, responses_per_prompt=responses_per_prompt, **changes)

    def scorer(prompts, responses):
        return [float(row.count(3)) - 0.1 * len(row) for row in responses]

    policy = TablePolicy()
    with torch.no_grad():
        policy.value += torch.linspace(-1, 1, 6)
    trainer = PPOTrainer(policy, TokenReward(scorer), Sparse(), config)
    return trainer, trainer.collect([[1 + i % 5] for i in range(8 // responses_per_prompt)])


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
    found = compare_on(rollout, METHODS, config=CONFIG, kl_coef=0.2, policy=trainer.policy)
    for name, credit in found.items():
        expected = by_hand(trainer.policy, rollout.sequences, credit.advantages)
        torch.testing.assert_close(credit.gradient, expected, atol=1e-6, rtol=1e-4, msg=name)
    assert cosine(found["sparse"].gradient, found["sparse"].gradient) == pytest.approx(1)
    assert cosine(found["sparse"].gradient, found["uniform"].gradient) < 0.99


def test_a_gradient_costs_nothing_but_time():
    trainer, rollout = drawn()
    held = torch.ones(6, 6)
    trainer.policy.logits.grad = held.clone()
    before = trainer.policy.logits.detach().clone()
    compare_on(rollout, METHODS, config=CONFIG, kl_coef=0.2, policy=trainer.policy)
    assert trainer.policy.logits.equal(before)
    assert trainer.policy.logits.grad.equal(held)
    assert trainer.policy.value.grad is None


def test_one_pass_serves_all_methods_however_it_is_cut(tmp_path):
    policy = load_policy(save_tiny(str(tmp_path / "policy"), family="gpt2", seed=1))
    sequences = ragged_sequences()
    generator = torch.Generator().manual_seed(1)
    advantages = {name: torch.randn(4, 6, generator=generator) for name in "abc"}
    together = policy_gradients(policy, sequences, advantages, 4096, temperature=1.0)
    for name, some in advantages.items():
        alone = policy_gradients(policy, sequences, {name: some}, 8, temperature=1.0)[name]
        assert float(alone.norm()) > 0.01
        torch.testing.assert_close(together[name], alone, atol=1e-6, rtol=1e-4)


def test_uniform_without_a_share_is_sparse():
    trainer, rollout = drawn()
    found = compare_on(rollout, METHODS, config=CONFIG, kl_coef=0.2, policy=trainer.policy)
    for name in ("token_scores", "rewards", "returns", "advantages", "gradient"):
        assert getattr(found["zero"], name).equal(getattr(found["sparse"], name)), name
    assert found["zero"].figures == found["sparse"].figures
    assert found["sparse"].figures["credit_concentration"] == pytest.approx(1)


@pytest.mark.parametrize("name", METHODS)
def test_credit_is_what_the_trainer_would_have_learned_from(name):
    trainer, rollout = drawn()
    trainer.redistributor = METHODS[name]
    trainer.kl_controller.coef = 0.7
    rollout = replace(rollout, kl=torch.where(rollout.sequences.response_mask, rollout.values.abs(), 0))
    scores = trainer.redistribute(rollout)
    experience = trainer.estimate_returns(rollout, scores)
    credit = compare_on(rollout, METHODS, config=trainer.config, kl_coef=0.7, policy=None)[name]
    assert credit.token_scores.equal(scores)
    torch.testing.assert_close(credit.rewards, scores - 0.7 * rollout.kl)
    assert credit.returns.equal(experience.returns)
    assert credit.advantages.equal(experience.advantages)
    logged = trainer.measure(rollout, scores, experience)
    assert credit.figures.items() <= logged.items()
    assert {"explained_variance", "explained_variance_over_position"} <= credit.figures.keys()
    assert credit.gradient is None


def test_without_a_critic_conserving_methods_are_one():
    trainer, rollout = drawn(responses_per_prompt=4, advantages="rloo")
    found = compare_on(rollout, METHODS, config=trainer.config, kl_coef=0.2, policy=trainer.policy)
    assert cosine(found["sparse"].gradient, found["uniform"].gradient) == pytest.approx(1, abs=1e-5)
    assert "explained_variance" not in found["sparse"].figures
    assert found["sparse"].returns.equal(rollout.values)


def test_what_cannot_be_compared_is_refused():
    _, rollout = drawn()

    def compared(method, **changes):
        return compare_on(rollout, {"it": method}, config=replace(CONFIG, **changes), kl_coef=0.2, policy=None)

    with pytest.raises(ValueError, match="needs .* which this rollout does not hold"):
        compared(RewardAttention())
    with pytest.raises(ValueError, match="with gamma 0.9 that changes which response is best"):
        compared(Uniform(), gamma=0.9)
    with pytest.raises(ValueError, match="expected 4 responses to each prompt"):
        compared(Sparse(), responses_per_prompt=4, advantages="rloo")
    with pytest.raises(HealthError, match="on padding"):
        compared(OnPadding())


def test_a_method_sees_no_evidence_that_another_asked_for():
    _, rollout = drawn()
    rollout = replace(rollout, evidence=dict.fromkeys(RewardAttention().needs, rollout.logprobs))
    with pytest.raises(ValueError, match="needs .* which this rollout does not hold"):
        compare_on(rollout, {"it": Undeclared()}, config=CONFIG, kl_coef=0.2, policy=None)


class Undeclared(RewardAttention):
    """Reads what it does not ask for."""

    needs = frozenset()


@dataclass(frozen=True, kw_only=True)
class OnPadding:
    needs = frozenset()
    causal = True
    conserving = False

    def __call__(self, rollout):
        return torch.ones_like(rollout.logprobs)


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
    assert relative_variance(products) == pytest.approx(2 / 3)
    assert signal_to_noise(products) == pytest.approx(3 / 2)
    assert signal_to_noise(gram(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))) == pytest.approx(-1 / 2)
    assert signal_to_noise(gram(torch.ones(2, 3))) == np.inf
    assert np.isnan(signal_to_noise(gram(torch.zeros(2, 3))))
    assert np.isnan(relative_variance(gram(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))))
    with pytest.raises(ValueError, match="2 repetitions or more, got 1"):
        relative_variance(gram(torch.ones(1, 3)))


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


def test_gradients_of_the_same_rollout_do_not_vary():
    trainer, rollout = drawn()
    policy, settings = trainer.policy, {"config": CONFIG, "kl_coef": 0.2}
    assert gradient_variance(policy, [rollout] * 3, Uniform(), **settings) == pytest.approx(0, abs=1e-6)
    others = [drawn(seed=seed)[1] for seed in range(4)]
    varied = gradient_variance(policy, others, Sparse(), **settings)
    gradients = [by_hand(policy, r.sequences, one(r, policy).advantages) for r in others]
    stacked = torch.stack(gradients).numpy()
    trace = stacked.var(0, ddof=1).sum()
    assert varied == pytest.approx(trace / (np.square(stacked.mean(0)).sum() - trace / 4), rel=1e-3)
    with pytest.raises(ValueError, match="2 repetitions or more, got 0"):
        gradient_variance(policy, [], Sparse(), **settings)


def one(rollout, policy):
    return compare_on(rollout, {"sparse": Sparse()}, config=CONFIG, kl_coef=0.2, policy=policy)["sparse"]


def test_nothing_is_needed_of_a_policy_for_credit_alone():
    rollout = rollout_of(ragged_sequences(), SCORES)
    found = compare_on(rollout, {"uniform": Uniform()}, config=CONFIG, kl_coef=0.0, policy=None)["uniform"]
    lengths = torch.tensor([4.0, 1, 6, 3])
    torch.testing.assert_close(found.token_scores[:, 0], torch.tensor(SCORES) / lengths)
    assert found.figures["credit_concentration"] == pytest.approx(float(lengths.mean()))


CHOSEN = Settings(
    redistributors="sparse,sparse@lam=1,uniform,sparse@advantages=rloo",
    prompts=3,
    responses_per_prompt=2,
    repetitions=4,
    reference_repetitions=4,
    sparse_steps=(1, 0),
)


def test_the_script_measures_every_policy_and_arm(tmp_path):
    made = run(CHOSEN, TableTask())
    assert [row[:2] for row in made.rows[:5]] == [
        ("sparse", 0), ("sparse-lam1", 0), ("uniform", 0), ("sparse-advantagesrloo", 0), ("sparse", 1)
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
    for stage in stages(TableTask().load(), chosen, chosen.config(TableTask())):
        (rollout,) = stage.rollouts(range(1), frozenset())
        sparse, counting = stage.credits(rollout).values()
        assert counting.token_scores.equal(3 * sparse.token_scores)
        assert sparse.token_scores.any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"redistributors": "uniform"}, "name sparse among the redistributors"),
        ({"redistributors": "sparse,sparse@seed=1"}, "cannot set its own"),
        ({"redistributors": "sparse,sparse@temperature=2"}, "temperature would change the rollout"),
        ({"repetitions": 2}, "repetitions must be 3 or more, got 2"),
        ({"sparse_steps": (3, 3)}, "sparse_steps must be different numbers"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(CHOSEN, **changes)


def test_what_the_task_cannot_give_is_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match="prompts 4 exceed the task's 3 held-out prompts"):
        run(replace(CHOSEN, prompts=4), TableTask())
    with pytest.raises(ValueError, match="advantages 'rloo' compares responses to one prompt"):
        run(replace(CHOSEN, responses_per_prompt=1), TableTask())
    with pytest.raises(ValueError, match="RewardAttention"):
        run(replace(CHOSEN, redistributors="sparse,abc"), TableTask())


def test_the_command_line_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Settings, "make_task", lambda self: TableTask())
    with pytest.raises(SystemExit) as ended:
        gradient_quality.main(["--redistributors", "uniform", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "name sparse among" in capsys.readouterr().err
    arguments = ["--prompts", "3", "--repetitions", "3", "--reference_repetitions", "2", "--out", str(tmp_path / "out")]
    gradient_quality.main([*arguments, "--redistributors", "sparse,uniform", "--sparse_steps", "[0]"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "run.json", "table.md", "table.csv", "gradient_quality.png", "gradient_quality.pdf"
    }  # fmt: skip
    with pytest.raises(SystemExit, match="is not empty; choose another --out"):
        gradient_quality.main([*arguments, "--redistributors", "sparse,uniform"])
