"""The whole loop on a thirty-line policy: it learns, it is deterministic, it stops on wrong numbers."""

import json
import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import jaxtyping
import numpy as np
import pytest
import torch
from fakes import EOS, TablePolicy, ragged_sequences, rollout_of, sequences_of, unchecked
from table_trainer import CONFIG, PROMPTS, Learner, batch, share_of_threes, trainer

from redistributors import DecoderAttention, Gradient, LeaveOneOut, RewardAttention, Shapley, Sparse, Uniform
from rlhf_core import (
    Experience,
    HealthError,
    JSONLines,
    KLConfig,
    PPOTrainer,
    Rollout,
    RolloutBuffer,
    TokenReward,
)
from rlhf_core.checks import why_not_repeated
from rlhf_core.metrics import credit_metrics, critic_metrics, rollout_metrics, within_position_variance
from rlhf_core.run.checkpoint import newest_complete
from rlhf_core.step_guard import Diverged, StepGuard
from rlhf_core.types import Scored
from rlhf_core.update import ppo_update


@pytest.mark.parametrize("redistributor", [Sparse(), pytest.param(Uniform(), marks=pytest.mark.slow)])
def test_it_learns(redistributor):
    learner = trainer(redistributor)
    for _ in range(40):
        figures = learner.step(batch())
    assert figures["score"] > 0.9


def test_two_runs_are_bit_equal_and_the_stages_compose_to_a_step():
    whole, by_hand = trainer(), trainer()
    for _ in range(3):
        figures = whole.step(batch())
        rollout = by_hand.collect(batch())
        token_scores = by_hand.redistribute(rollout)
        experience = by_hand.estimate_returns(rollout, token_scores)
        again = by_hand.figures(rollout, token_scores, experience) | by_hand.update(experience)
        by_hand.conclude(rollout)
        assert again.items() <= figures.items()
    assert torch.equal(whole.policy.logits, by_hand.policy.logits)
    assert whole.kl_controller.coef == by_hand.kl_controller.coef != CONFIG.kl.init_coef


def test_an_update_is_concluded_before_the_next_rollout():
    learner = trainer()
    rollout = learner.collect(batch())
    experience = learner.estimate_returns(rollout, learner.redistribute(rollout))
    learner.update(experience)
    learner.update(experience)  # nothing of a second update looks like a policy that is not its reference
    learner.evaluate(batch())
    with pytest.raises(RuntimeError, match=r"call conclude\(rollout\) with the rollout it learned from"):
        learner.collect(batch())
    learner.conclude(rollout)
    assert learner.step(batch())["kl"] != 0


def test_a_step_that_broke_off_can_be_taken_again():
    """Its weights may have moved, and the next rollout must not be told that its reference is wrong."""
    learner = trainer(config=replace(CONFIG, minibatch_size=4))
    evaluate, calls = learner.policy.evaluate, []

    def failing(sequences, needs, **settings):
        calls.append(torch.is_grad_enabled())
        if calls[-1] and sum(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(sequences, needs, **settings)

    learner.policy.evaluate = failing
    with pytest.raises(KeyboardInterrupt):
        learner.step(batch())
    assert learner.step(batch())["kl"] != 0
    assert learner.steps_done == 1


def test_one_rollout_holds_what_all_methods_need_and_the_same_responses():
    reward = TokenReward(lambda prompts, responses: [row.count(3) for row in responses])
    further, needs = (LeaveOneOut(), Shapley(), Sparse()), LeaveOneOut().needs | Shapley().needs
    alone, together = trainer(reward=reward).collect(batch()), trainer(reward=reward).collect(batch(), iter(further))
    assert not alone.evidence
    assert set(together.evidence) == needs
    for name in ("logprobs", "ref_logprobs", "values", "scores"):
        assert torch.equal(getattr(alone, name), getattr(together, name)), name
    for method in further:
        torch.testing.assert_close(method(together).sum(1), together.scores)
    own = trainer(LeaveOneOut(), reward=reward).collect(batch(), [Shapley()])
    assert set(own.evidence) == needs


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (
            [Sparse(), DecoderAttention()],
            "abc-d needs .*, which Wide cannot give: it does not measure such",
        ),
        ([Gradient()], "gradient needs .*, which TokenReward cannot give: a callable .* not embedding_gradients"),
    ],
)
def test_a_method_that_cannot_be_served_is_named_before_anything_is_sampled(methods, words):
    with pytest.raises(ValueError, match=words):
        trainer(policy=Wide()).collect(batch(), methods)


def test_methods_meet_the_same_limits_and_uniforms():
    first, second = trainer(Sparse()).collect(batch()), trainer(Uniform()).collect(batch())
    assert torch.equal(first.sequences.response_ids, second.sequences.response_ids)
    other = trainer(config=replace(CONFIG, seed=1)).collect(batch())
    assert first.sequences.responses() != other.sequences.responses()


def test_limits_are_respected():
    sequences = trainer().collect(batch(64)).sequences
    lengths = sequences.response_lengths
    assert set(sequences.max_lengths.tolist()) == {4, 5, 6, 7, 8}
    assert bool((lengths <= sequences.max_lengths).all())
    for response in sequences.responses():
        assert EOS not in response[: CONFIG.min_length]
    ended = torch.tensor([row[-1] == EOS for row in sequences.responses()])
    assert torch.equal(ended, sequences.finished)


@pytest.mark.parametrize("kind", ["k1", "abs", "k2", "k3"])
def test_the_controller_is_fed_k1_whatever_penalises(kind):
    learner = trainer(config=replace(CONFIG, kl=KLConfig(init_coef=0.01, kind=kind, target=1.0)))
    fed = []
    update = learner.kl_controller.update
    learner.kl_controller.update = lambda kl, n: (fed.append((kl, n)), update(kl, n))
    for _ in range(3):
        figures = learner.step(batch())
    rollout = learner.collect(batch())
    learner.conclude(rollout)
    k1 = float((rollout.logprobs - rollout.ref_logprobs).sum(1).mean())
    assert fed[-1] == (pytest.approx(k1), 16)
    assert (figures["kl"] == pytest.approx(figures["kl_penalty"])) == (kind == "k1")


def test_penalty_and_credit_meet_in_the_rewards():
    learner = trainer(Sparse(), replace(CONFIG, lam=1.0))
    learner.step(batch())
    rollout = learner.collect(batch())
    experience = learner.estimate_returns(rollout, learner.redistribute(rollout))
    expected = rollout.raw_scores - learner.kl_controller.coef * rollout.kl.sum(1)
    torch.testing.assert_close(experience.returns[:, 0], expected)


@pytest.mark.parametrize("budget", [1, 20, 50, 10_000])
def test_micro_batching_never_changes_the_gradient(budget):
    """Exact for sums in another order: fp32 tolerance on the parameters after one whole update."""
    learners = [trainer(config=replace(CONFIG, micro_batch_tokens=b)) for b in (10_000, budget)]
    figures = [learner.step(batch()) for learner in learners]
    torch.testing.assert_close(learners[0].policy.logits, learners[1].policy.logits, atol=1e-5, rtol=1e-5)
    for name in ("policy_loss", "value_loss", "value_loss_paper", "entropy", "clip_fraction", "approx_kl"):
        assert figures[0][name] == pytest.approx(figures[1][name], abs=1e-5)


def test_before_the_first_optimizer_step_every_ratio_is_one():
    figures = trainer().step(batch())
    assert figures["first_log_ratio_max"] < 1e-5
    assert figures["kl"] == 0


class Dropout(TablePolicy):
    """Gives other log-probabilities with gradient than without: the bug the first check is for."""

    def evaluate(self, sequences, needs, **settings):
        evaluation = super().evaluate(sequences, needs, **settings)
        noise = 0.01 * torch.is_grad_enabled()
        return replace(evaluation, logprobs=torch.where(sequences.response_mask, evaluation.logprobs - noise, 0))


class WrongReference(TablePolicy):
    def reference_logprobs(self, sequences, **settings):
        return super().reference_logprobs(sequences, **settings) * 1.01


@pytest.mark.parametrize(
    ("policy", "words"), [(Dropout(), "before the first optimizer step"), (WrongReference(), "not the model that")]
)
def test_silent_bugs_are_errors_on_the_first_step(policy, words):
    before = policy.logits.detach().clone()
    with pytest.raises(HealthError, match=words):
        trainer(policy=policy).step(batch())
    assert torch.equal(policy.logits, before)
    with pytest.warns(RuntimeWarning, match=words):
        trainer(policy=policy, config=replace(CONFIG, first_step_checks="warn")).step(batch())


def test_what_bfloat16_rounds_of_a_pretrained_models_logits_is_no_fault():
    """SmolLM2-135M reaches 0.33 with a mean of 0.04, and 4.4 with a mean of 0.2 under a dropout of 0.01."""
    assert not why_not_repeated(0.33, 0.04, torch.bfloat16)
    for largest, mean in ((4.4, 0.04), (0.33, 0.2)):
        assert "dropout" in why_not_repeated(largest, mean, torch.bfloat16)
    assert "dropout" in why_not_repeated(0.33, 0.00001, torch.float32)


@dataclass(frozen=True, eq=False)
class Broken:
    """A conserving uniform redistributor with one fault."""

    fault: object
    needs: frozenset = field(default_factory=frozenset)
    causal: bool = False
    conserving: bool = True

    def __call__(self, rollout: Rollout) -> torch.Tensor:
        return self.fault(Uniform()(rollout), rollout)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda x, r: x * 1.01, "declares conserving"),
        (lambda x, r: x[:, :-1], "of shape"),
        (lambda x, r: x / 0, "not finite"),
        (lambda x, r: x + ~r.sequences.response_mask, "on padding"),
        (lambda x, r: x.clone().requires_grad_(), "with a gradient"),
    ],
)
def test_a_broken_redistributor_is_named(fault, words):
    with pytest.raises(HealthError, match=words):
        trainer(Broken(fault)).step(batch())


def test_evidence_nobody_can_give_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"abc needs AttentionRow.*TokenReward cannot give"):
        trainer(RewardAttention())
    with pytest.raises(ValueError, match=r"TextReward cannot give"):
        PPOTrainer(TablePolicy(), lambda prompts, responses: [0.0], RewardAttention(), CONFIG)


@pytest.mark.parametrize("method", [Sparse, RewardAttention])
def test_a_redistributors_class_is_refused_with_the_way_out(method):
    with pytest.raises(TypeError, match=rf"give {method.__name__}\(\), not the class"):
        PPOTrainer(TablePolicy(), TokenReward(share_of_threes), method, CONFIG)


@pytest.fixture
def as_users_meet_it():
    """Without the type checker of these tests in front."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("methods", ["abc", ["abc"]])
def test_a_redistributors_name_is_refused_with_the_way_out(methods, as_users_meet_it):
    with pytest.raises(TypeError, match=r"not its name 'abc': give REDISTRIBUTORS\['abc'\]\(\)"):
        trainer(Sparse()).collect(batch(), methods)


@pytest.mark.parametrize("returned", [None, ["good"] * 16, [None] * 16, [[1.0], []] * 8, object()])
@pytest.mark.parametrize("wrap", [TokenReward, lambda fn: fn], ids=["ids", "texts"])
def test_a_reward_callable_that_returns_no_numbers_is_named(returned, wrap):
    def judge(prompts, responses):
        return returned

    learner = PPOTrainer(TablePolicy(), wrap(judge), Sparse(), CONFIG)
    with pytest.raises(ValueError, match=r"reward judge must return a number for each of the 16 responses, got .*"):
        learner.collect(batch())


@pytest.mark.parametrize("shape", [(1,), (15,), (16, 1)])
def test_a_reward_model_that_returns_another_number_of_scores_is_named(shape):
    class Broadcast:
        def score(self, sequences, needs):
            return unchecked(lambda: Scored(scores=torch.ones(16), evidence={}), scores=torch.ones(shape))

        def provides(self, request):
            return False

    with pytest.raises(ValueError, match=r"Broadcast.score returned scores of shape \(.*\) for 16 responses"):
        trainer(Sparse(), reward=Broadcast()).collect(batch())


class Differentiable:
    """A reward model whose scores carry a gradient, as those of a network that is trained elsewhere do."""

    scores = torch.ones(16, requires_grad=True)

    def score(self, sequences, needs):
        return Scored(scores=self.scores, evidence={})

    def provides(self, request):
        return False


@pytest.mark.parametrize("reward", [TokenReward(lambda *_: Differentiable.scores), Differentiable()])
def test_scores_are_detached(reward):
    rollout = trainer(Sparse(), reward=reward).collect(batch())
    assert not rollout.raw_scores.requires_grad
    assert not rollout.scores.requires_grad
    of_callable = TokenReward(lambda *_: Differentiable.scores).score(rollout.sequences, frozenset())
    assert not of_callable.scores.requires_grad


class Speaking(TablePolicy):
    vocabulary: ClassVar = {"<eos>": 0, "good": 1, "bad": 2}


@dataclass(frozen=True)
class SpeakingReward(TokenReward):
    vocabulary: dict = field(default_factory=dict)


def test_different_tokenizers_are_refused_at_construction():
    other = SpeakingReward(share_of_threes, {"<eos>": 0, "bad": 1, "good": 2, "new": 3})
    with pytest.raises(ValueError, match=r"must share a tokenizer, but 3 of their 3 and 4 .*'bad' is 2 and 1"):
        trainer(policy=Speaking(), reward=other)
    assert trainer(policy=Speaking(), reward=SpeakingReward(share_of_threes, Speaking.vocabulary))


@dataclass(frozen=True)
class NearSightedReward(TokenReward):
    """Reads five tokens of an alphabet of ``vocab_size``."""

    vocab_size: int = 6

    def validate(self, prompts, max_length):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) + max_length > 5]
        if rows:
            raise ValueError(f"rows {rows} do not fit with {max_length} response tokens")


class Wide(TablePolicy):
    vocab_size = 6

    def sample(self, prompts, limits, uniforms, **settings):
        raise AssertionError("something was generated")


@pytest.mark.parametrize("use", ["collect", "evaluate", "fit"])
def test_prompts_the_reward_model_cannot_read_are_refused_before_anything_is_generated(use, tmp_path):
    config = replace(CONFIG, max_length=(3, 4))
    learner = trainer(policy=Wide(), reward=NearSightedReward(share_of_threes), config=config)
    call = {"collect": learner.collect, "evaluate": learner.evaluate}
    call["fit"] = lambda prompts: learner.fit(prompts, 1, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"rows \[1, 2\] do not fit with 4 response tokens"):
        call[use](PROMPTS)
    with pytest.raises(ValueError, match=r"rows \[0\] do not fit"):
        learner.fit([[1]], 1, out=tmp_path / "run", eval_prompts=[[1, 2]])
    assert not (tmp_path / "run").exists()


def test_a_policy_that_draws_ids_the_reward_model_cannot_read_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"token ids 0 to 5, but the reward model reads only 0 to 4"):
        trainer(policy=Wide(), reward=NearSightedReward(share_of_threes, vocab_size=5))
    assert trainer(policy=Wide(), reward=NearSightedReward(share_of_threes))
    assert trainer(reward=NearSightedReward(share_of_threes, vocab_size=5))  # the policy's range is unknown


def test_gamma_is_refused_where_conserved_credit_lands_early():
    discounted = replace(CONFIG, gamma=0.99)
    with pytest.raises(ValueError, match=r"uniform .*before the last token: with gamma 0.99"):
        trainer(Uniform(), discounted)
    assert trainer(Sparse(), discounted).step(batch())


def test_credit_that_lands_early_after_all_is_refused_on_the_first_rollout_and_no_earlier():
    """No method is called on invented data: the first rollout it sees is a real one."""
    method = Broken(lambda scores, rollout: scores, causal=True)
    learner = trainer(method, replace(CONFIG, gamma=0.99))
    before = learner.policy.logits.detach().clone()
    with pytest.raises(ValueError, match=r"Broken.*before the last token: with gamma 0.99"):
        learner.step(batch())
    assert torch.equal(learner.policy.logits, before)
    assert trainer(method).step(batch())
    assert trainer(Broken(lambda _, rollout: Sparse()(rollout), causal=True), replace(CONFIG, gamma=0.99)).step(batch())


def test_no_method_is_called_before_a_rollout():
    calls = []
    for gamma in (1.0, 0.99):
        trainer(Broken(lambda _, rollout: calls.append(rollout), causal=True), replace(CONFIG, gamma=gamma))
    assert not calls


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused_with_the_text(bad):
    learner = trainer(reward=TokenReward(lambda prompts, responses: [bad] * len(responses)))
    with pytest.raises(FloatingPointError, match=r"raw_scores: 16 of 16 rows are not finite; row 0: (nan|inf) for '"):
        learner.step(batch())


class Exploding(TablePolicy):
    """Its value gradient becomes NaN, its values do not."""

    def evaluate(self, sequences, needs, **settings):
        evaluation = super().evaluate(sequences, needs, **settings)
        values = evaluation.values
        if values.requires_grad:
            values.register_hook(lambda gradient: gradient * math.nan)
        return evaluation


def test_a_gradient_that_is_not_finite_touches_neither_weights_nor_optimizer_and_ends_the_run_when_it_stays():
    learner = trainer(policy=Exploding())
    before = learner.policy.logits.detach().clone()
    with pytest.raises(Diverged, match=r"4 in a row .* max_skipped is 3; .* gradient norm nan must be finite"):
        learner.step(batch())
    assert torch.equal(learner.policy.logits, before)
    assert not learner.optimizer.state
    assert len(learner.guard.skipped) == 4
    assert len(learner.guard.skipped[0]["rows"]) == CONFIG.minibatch_size


class SickOnce(TablePolicy):
    """The value of one row is NaN in one pass of the update; nothing else is."""

    passes = 0

    def evaluate(self, sequences, needs, **settings):
        evaluation = super().evaluate(sequences, needs, **settings)
        if torch.is_grad_enabled():
            self.passes += 1
            if self.passes == 2:
                self.row = sequences.responses()[1]
                return replace(evaluation, values=evaluation.values.index_fill(0, torch.tensor([1]), math.nan))
        return evaluation


def test_a_loss_that_is_not_finite_is_skipped_counted_and_written_down():
    learner = trainer(policy=SickOnce(), config=replace(CONFIG, epochs=1, minibatch_size=4))
    figures = learner.step(batch())
    assert figures["refused_minibatches"] == 1
    assert learner.optimizer.state[learner.policy.logits]["step"] == 3
    (record,) = learner.guard.skipped
    assert (record["step"], record["what"], record["epoch"]) == (1, "minibatch", 0)
    assert " ".join(map(str, learner.policy.row)) in [row["response"] for row in record["rows"]]
    assert learner.guard.in_a_row == 0
    assert math.isfinite(figures["value_loss"])


def test_a_gradient_that_stands_out_is_skipped_where_asked():
    guard = StepGuard(max_skipped=1, spike_factor=3.0)
    for norm in [1.0, 2.0] * 10:
        assert not guard.why_not_admit(0.0, norm)
        guard.admit(norm)
    assert guard.mean_norm == pytest.approx(1.5)
    assert guard.why_not_admit(0.0, 4.6) == "gradient norm 4.6 exceeds 3.0 x its running mean 1.5"
    assert not guard.why_not_admit(0.0, 4.4)
    guard.skip({"reason": "spike"})
    with pytest.raises(Diverged, match=r"2 in a row had to be skipped \(optimizer steps or rollouts\)"):
        guard.skip({"reason": "spike"})
    again = StepGuard(max_skipped=1, spike_factor=3.0)
    again.restore(guard.state())
    assert (again.why_not_admit(0.0, 4.6), again.in_a_row) == (guard.why_not_admit(0.0, 4.6), 2)
    young, off = StepGuard(max_skipped=1, spike_factor=3.0), StepGuard(max_skipped=1, spike_factor=None)
    for _ in range(19):
        young.admit(1.0)
    for _ in range(50):
        off.admit(1.0)
    assert not young.why_not_admit(0.0, 1e9)
    assert not off.why_not_admit(0.0, 1e9)


def test_a_rollout_that_is_not_finite_is_passed_over_by_a_run_and_ends_it_when_it_stays(tmp_path):
    calls = []

    def moody(prompts, responses):
        calls.append(len(calls))
        bad = len(calls) == 3 or len(calls) > 6
        return [math.nan if bad and row == 1 else 1.0 for row in range(len(responses))]

    learner = trainer(reward=TokenReward(moody))
    with pytest.raises(Diverged, match=r"4 in a row .*raw_scores: 1 of 16 rows"):
        learner.fit(PROMPTS, 20, out=tmp_path / "run", eval_every=100, save_every=1)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped_rollout", 0) for line in lines] == [0, 1, 0, 0, 0, 1, 1, 1]
    skipped = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert [(record["step"], record["what"]) for record in skipped] == [(n, "rollout") for n in (2, 6, 7, 8, 9)]
    assert "row 1: nan for '" in skipped[0]["reason"]
    assert newest_complete(tmp_path / "run")[0].name == "checkpoint-5"  # the last before the damage


def experience_with(logprobs_shift):
    """Experience whose old log-probabilities are off by a shift, so the first ratio is exp(shift)."""
    policy = TablePolicy()
    sequences = ragged_sequences()
    with torch.no_grad():
        evaluation = policy.evaluate(sequences, frozenset())
    mask = sequences.response_mask
    old = torch.where(mask, evaluation.logprobs - logprobs_shift, 0)
    random = torch.where(mask, torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)), 0)
    return policy, Experience(
        sequences=sequences, logprobs=old, ref_logprobs=old, values=evaluation.values, advantages=random, returns=random
    )


def run_update(policy, experience, config):
    buffer = RolloutBuffer()
    buffer.add(experience)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    return ppo_update(policy, optimizer, buffer, config, step=0, check_first=lambda largest, mean: None)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_the_loss_is_a_mean_over_real_tokens(budget):
    """At ratio 1 the gradient is that of −A · logprob, averaged over the tokens of ragged rows laid end to end."""
    policy, experience = experience_with(0.0)
    mask = experience.sequences.response_mask
    advantages = experience.advantages[mask].double()
    advantages = (advantages - advantages.mean()) / advantages.std()
    own = TablePolicy()
    (-advantages * own.evaluate(experience.sequences, frozenset()).logprobs[mask]).mean().backward()
    settings = replace(CONFIG, epochs=1, value_coef=0.0, micro_batch_tokens=budget)
    figures = run_update(policy, experience, settings)
    assert figures["gradient_norm"] == pytest.approx(float(own.logits.grad.norm()), rel=1e-4)


def test_eos_is_learned_from_like_any_other_token():
    """The end of every response is what was good about it; a table moves only where its tokens count."""
    policy, sequences = TablePolicy(), sequences_of([[1], [2]], [[3, EOS], [4, 5, EOS]])
    ends = sequences.response_mask & (sequences.response_ids == EOS)
    with torch.no_grad():
        before = policy.evaluate(sequences, frozenset())
    experience = Experience(
        sequences=sequences,
        logprobs=before.logprobs,
        ref_logprobs=before.logprobs,
        values=before.values,
        advantages=ends.float(),
        returns=torch.zeros_like(before.values),
    )
    run_update(policy, experience, replace(CONFIG, epochs=1))
    gained = policy.evaluate(sequences, frozenset()).logprobs - before.logprobs
    assert gained[ends].min() > 0.01


def test_a_minibatch_above_the_ratio_threshold_is_skipped_without_a_step():
    config = replace(CONFIG, minibatch_size=2, epochs=3, ratio_threshold=1.5)
    policy, experience = experience_with(0.5)  # ratio 1.65
    before = policy.logits.detach().clone()
    figures = run_update(policy, experience, config)
    assert figures["skipped_minibatches"] == 6
    assert figures["value_loss_paper"] == 0
    assert figures["ratio_max"] == pytest.approx(math.exp(0.5))
    assert "policy_loss" not in figures
    assert torch.equal(policy.logits, before)
    assert run_update(*experience_with(0.3), config)["skipped_minibatches"] < 6


def test_target_kl_stops_the_epochs_before_the_step():
    policy, experience = experience_with(-0.5)  # mean(old - new) = 0.5
    before = policy.logits.detach().clone()
    figures = run_update(policy, experience, replace(CONFIG, target_kl=0.3))
    assert figures["stopped_early"] == 1
    assert torch.equal(policy.logits, before)
    assert run_update(*experience_with(-0.5), replace(CONFIG, target_kl=0.34, epochs=1))["stopped_early"] == 0


def test_entropy_bonus_raises_entropy():
    plain, bonus = trainer(), trainer(config=replace(CONFIG, entropy_coef=1.0))
    for _ in range(5):
        plain_figures, bonus_figures = plain.step(batch()), bonus.step(batch())
    assert bonus_figures["entropy"] > plain_figures["entropy"] + 0.05


def test_value_loss_of_single_response_minibatches_is_the_papers_quantity():
    figures = trainer(config=replace(CONFIG, minibatch_size=1)).step(batch())
    assert figures["value_loss_paper"] > 0
    assert figures["value_loss_normalised"] == pytest.approx(
        figures["value_loss"] / figures["return_variance_within_position"]
    )


def test_metrics_by_hand():
    sequences = sequences_of([[1], [1]], [[1, 2, 3], [1]])
    rollout = replace(
        rollout_of(sequences, [1.0, 3.0]),
        logprobs=torch.tensor([[-1.0, -1, -1], [-2, 0, 0]]),
        ref_logprobs=torch.tensor([[-2.0, -1, -1], [-1.5, 0, 0]]),
    )
    figures = rollout_metrics(rollout)
    assert figures["kl"] == pytest.approx((1.0 - 0.5) / 2)
    assert (figures["score"], figures["length"], figures["length_q50"]) == (2, 2, 2)
    assert figures["score_std"] == pytest.approx(2**0.5)
    token_scores = torch.tensor([[0.5, 0.5, 0], [3, 0, 0]])
    credit = credit_metrics(token_scores, rollout)
    assert credit == {"credit_concentration": pytest.approx(1.5), "conservation_error": 0}


def test_a_critic_that_knows_the_position_only_explains_nothing_over_it():
    mask = torch.ones(8, 5, dtype=torch.bool)
    noise = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    returns = torch.tensor([5.0, 4, 3, 2, 1]) * 3 + noise
    sequences = sequences_of([[1]] * 8, [[1] * 5] * 8)

    def figures(values):
        return critic_metrics(
            Experience(
                sequences=sequences,
                logprobs=noise,
                ref_logprobs=noise,
                values=values,
                advantages=noise,
                returns=returns,
            )
        )

    position_only = figures(returns.mean(0, keepdim=True).expand(8, 5))
    assert position_only["explained_variance"] > 0.9
    # in sample: the means were fitted to these very rows, (8 - 1) / 8 of the variance is left
    assert position_only["explained_variance_over_position"] == pytest.approx(1 - 7 / 8, abs=1e-5)
    assert position_only["explained_variance_within_position"] == pytest.approx(0, abs=1e-6)
    assert figures(returns)["explained_variance_over_position"] == 1
    late = figures(returns - torch.arange(5))  # a level that lags at every position hides what the critic knows
    assert late["explained_variance_over_position"] < -1
    assert late["explained_variance_within_position"] == pytest.approx(1, abs=1e-6)
    variance = within_position_variance(returns, mask)
    torch.testing.assert_close(variance, returns.var(0).mean())


def test_what_is_undefined_is_left_out():
    sequences = sequences_of([[1]], [[1, 2]])
    assert within_position_variance(torch.ones(1, 2), sequences.response_mask) is None
    assert "score_std" not in rollout_metrics(rollout_of(sequences, [1.0]))
    assert "credit_concentration" not in credit_metrics(torch.zeros(1, 2), rollout_of(sequences, [0.0]))


def test_fit_writes_metrics_samples_and_checkpoints(tmp_path):
    learner = trainer()
    learner.fit(PROMPTS, 5, out=tmp_path / "run", eval_prompts=[[1], [2]], eval_every=2, save_every=3)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [("eval_score" in row) for row in rows] == [False, True, False, True, True]
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [0, 0, 2, 2, 4, 4, 5, 5]
    assert {"prompt", "response", "score", "length", "finished"} <= samples[0].keys()
    state = json.loads((tmp_path / "run/checkpoint-5/state.json").read_text())
    assert (state["steps_done"], state["config"]["lam"]) == (5, 0.95)
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-5"]
    with pytest.raises(FileExistsError, match="is not empty"):
        learner.fit(PROMPTS, 1, out=tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"metrics\.jsonl is a file; out must name a new folder"):
        learner.fit(PROMPTS, 1, out=tmp_path / "run/metrics.jsonl")


@pytest.mark.parametrize(
    ("lengths", "said"),
    [((3, 3), "of 2 to 3 tokens;"), ((2, 3), "of 2 to 3 tokens (each response's limit is drawn from 2 to 3);")],
)
def test_fit_says_first_how_long_responses_may_be(lengths, said, tmp_path, capsys):
    config = replace(CONFIG, max_length=lengths)
    trainer(config=config).fit(PROMPTS, 1, out=tmp_path / "run")
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith(f"uniform: 1 step of 16 responses {said} {len(PROMPTS)} prompts, minibatches of 8")


def test_fit_goes_on_where_it_stopped_with_the_loggers_of_the_caller(tmp_path):
    lines = JSONLines(tmp_path / "all.jsonl")
    learner = PPOTrainer(TablePolicy(), TokenReward(share_of_threes), Uniform(), CONFIG, loggers=[lines])
    learner.fit(PROMPTS, 2, out=tmp_path / "first")
    learner.fit(PROMPTS, 1, out=tmp_path / "second")
    lines.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "all.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_fit_takes_texts_and_any_callable(tmp_path):
    learner = PPOTrainer(TablePolicy(), lambda prompts, texts: [t.count("3") for t in texts], Sparse(), CONFIG)
    learner.fit(["1", "2 3"], 2, out=tmp_path / "run")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2


def test_evaluations_differ_by_the_policy_alone():
    learner = trainer()
    first = learner.evaluate(batch(8))
    assert learner.evaluate(batch(8)) == first
    for _ in range(5):
        learner.step(batch())
    assert learner.evaluate(batch(8))["score"] > first["score"]


def test_a_learning_redistributor_observes_after_the_update():
    learner = trainer(Learner())
    assert [learner.step(batch())["seen"] for _ in range(3)] == [0, 16, 32]


def test_a_redistributor_that_learns_and_cannot_be_saved_is_refused():
    class Forgetful(Uniform):
        def observe(self, rollout):
            """Learn."""

    with pytest.raises(TypeError, match="has observe, and so must have state and load_state"):
        trainer(Forgetful())


def test_running_score_moments_are_counted_once_however_often_a_rollout_is_collected():
    learner = trainer()
    learner.collect(batch())
    learner.step(batch())
    assert learner.score_moments.count == 16
    assert np.isfinite(learner.score_moments.std)


def test_prompt_and_response_joined_are_what_was_decoded_as_a_whole():
    """As with SentencePiece, a space stands between tokens and not before the first."""
    seen = []

    def reward(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return [0.0] * len(prompts)

    policy = TablePolicy()
    learner = PPOTrainer(policy, reward, Uniform(), CONFIG)
    rollout = learner.collect([[1], [2, 3]])
    for (prompt, response), ids, more in zip(
        seen, rollout.sequences.prompts(), rollout.sequences.responses(), strict=True
    ):
        assert response.startswith(" ")
        assert prompt + response == policy.decode([[*ids, *more]])[0]


@pytest.mark.parametrize("bad", [{"steps": 0}, {"eval_every": 0}, {"save_every": -1}])
def test_steps_are_whole_numbers(bad, tmp_path):
    learner = PPOTrainer(TablePolicy(), TokenReward(lambda p, r: [0.0] * len(r)), Uniform(), CONFIG)
    with pytest.raises(ValueError, match="must be a whole number"):
        learner.fit([[1]], **({"steps": 2} | bad), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_reward_that_fails_leaves_no_folder_behind(tmp_path):
    def broken(prompts, responses):
        raise KeyError("no such judge")

    learner = PPOTrainer(TablePolicy(), broken, Uniform(), CONFIG)
    with pytest.raises(KeyError, match="no such judge"):
        learner.fit([[1]], 2, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
