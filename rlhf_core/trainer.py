"""The flow on one screen: collect, redistribute, penalise, estimate returns, update."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.advantages import ESTIMATORS
from rlhf_core.batching import Budgets
from rlhf_core.buffer import RolloutBuffer
from rlhf_core.checks import (
    HealthError,
    check_gamma,
    check_id_range,
    check_needs,
    check_placement,
    check_vocabulary,
    needs_of,
    report,
    require_token_scores,
    require_usable,
    warn_if_counted_twice,
    why_not_conserved,
    why_not_kept,
    why_not_reference,
    why_not_repeated,
)
from rlhf_core.config import PPOConfig
from rlhf_core.critic import check_critic, in_warmup, warmup_figures
from rlhf_core.distributed import agreement, join, require_own_cards, require_same, share_weights
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.kl import kl_controller
from rlhf_core.metrics import credit_metrics, critic_metrics, mean_response_kl, rollout_metrics
from rlhf_core.optimizer import make_optimizer, make_schedule
from rlhf_core.plain_numbers import further_figures
from rlhf_core.prompts import Prompts, encoded, own_rows
from rlhf_core.rewards import ScoreMoments, penalised
from rlhf_core.rollout import Draw, collected
from rlhf_core.run import trainer_state
from rlhf_core.run.checkpoint import TrainerState
from rlhf_core.run.fit import Fit, Plan, evaluation_figures
from rlhf_core.run.identity import trainer_settings
from rlhf_core.run.loggers import Logger
from rlhf_core.scorers.callables import as_reward_model
from rlhf_core.scorers.signatures import RewardFunction
from rlhf_core.sharding import check_sharding, undivided
from rlhf_core.step_guard import UnusableRollout, observed, step_guard
from rlhf_core.types import Experience, Learns, Policy, Redistributor, ReportsMetrics, RewardModel, Rollout
from rlhf_core.update import ppo_update

Instrument = Callable[[Rollout], Mapping[str, float]]
MakeOptimizer = Callable[[Iterable[torch.nn.Parameter], PPOConfig], torch.optim.Optimizer]


class PPOTrainer:
    """PPO with pluggable credit assignment.

    ``step`` is the whole algorithm. Each stage is public, so that you can call, replace or study one alone:
    ``collect``, ``redistribute``, ``estimate_returns``, ``update``. If you call the stages yourself, end each step with
    ``conclude(rollout)``, which moves the KL coefficient, the score moments and the random streams on.

    Prompts are a list of texts, of token ids (taken as they are) or of chats (lists of messages, for the tokenizer's
    template), or rows with one of these as ``prompt`` and further columns (mappings, or a ``datasets.Dataset``). A step
    of the config's size takes ``rollout_batch_size / responses_per_prompt`` of them. Each gets ``responses_per_prompt``
    responses, in rows one after the other.

    Under ``torchrun`` or ``accelerate launch`` all processes train one model. Each is given all the prompts and answers
    its share of them; a rollout, and every figure, is that of all responses.

    Args:
        policy: what is trained, with its value head and its frozen reference. Trainers may share one.
        reward: a reward model, or a function ``def reward(prompts, responses, answer)`` that returns a number per
            response. It gets your own prompts, the responses as texts without special tokens, and by name the columns
            that it asks for. ``TextReward`` and ``TokenReward`` change what it gets.
        redistributor: the method of credit assignment, an instance.
        config: all settings.
        loggers: get the figures of every step of ``fit``; close them yourself.
        instruments: functions of a rollout that give further figures, logged with the rest.
        optimizer: makes an optimizer from the trainable parameters and the config (``models.paged_adamw_8bit``, say).

    Raises:
        TypeError: ``redistributor`` or ``reward`` is something else, or a callable with another signature.
        ValueError: the models have different tokenizers, or the policy draws ids that the reward model cannot read;
            the redistributor needs evidence that they cannot give, or cannot be discounted by gamma; the policy has
            a critic of its own that the estimator would not train; one of several processes that cannot find each
            other, or have other settings.

    Warns of credit that sums to the score where the estimator (``prime``) adds the score itself.
    """

    def __init__(
        self,
        policy: Policy,
        reward: RewardModel | RewardFunction,
        redistributor: Redistributor,
        config: PPOConfig,
        loggers: Sequence[Logger] = (),
        *,
        instruments: Sequence[Instrument] = (),
        optimizer: MakeOptimizer = make_optimizer,
    ) -> None:
        self.processes = join()
        self.policy, self.reward = policy, as_reward_model(reward, policy)
        self.redistributor = redistributor
        self.config, self.estimator = config, ESTIMATORS[config.advantages]
        self.loggers, self.instruments = tuple(loggers), tuple(instruments)
        check_vocabulary(policy, self.reward)
        check_id_range(policy, self.reward)
        check_needs(redistributor, policy, self.reward)
        check_gamma(redistributor, config.gamma)
        check_critic(policy, config)
        if self.estimator.adds_scores:
            warn_if_counted_twice(redistributor, config.advantages)
        self.optimizer = optimizer(policy.parameters(), config)
        check_sharding(policy, self.optimizer)
        self.schedule = make_schedule(self.optimizer, config)
        self.kl_controller = kl_controller(config.kl)
        self.score_moments = ScoreMoments()
        self.guard = step_guard(config)
        self.budgets = Budgets.of(config)
        self.steps_done = 0
        self.trained, self.to_conclude = False, False  # whether an update has begun; whether one awaits conclude
        self.settings = trainer_settings(config, redistributor, policy, self.reward, self.optimizer)
        self.run: dict[str, Any] | None = None
        if self.processes > 1:
            require_same("settings", self.settings)
            require_own_cards(next(iter(policy.parameters())).device)
            share_weights(undivided(policy))

    def step(self, prompts: Prompts) -> dict[str, float]:
        """One PPO step on the given ``prompts``; its metrics (see docs/metrics.md in the repository). Writes nothing to
        disk.

        Raises:
            HealthError: numbers that no honest run produces (first step, unless the config asks for warnings).
            UnusableRollout: a number of the rollout, of its credit or of its returns is not finite or exceeds
                ``checks.LARGEST_NUMBER``, or credit misses the score; nothing has changed.
            ValueError: the redistributor or an instrument gave a figure that is not a number, or the name of another.
            Diverged: too many minibatches in a row had a loss or gradient that is not finite (``guard.skipped``).
        """
        started = time.perf_counter()
        try:
            rollout = self.collect(prompts)
            token_scores = self.redistribute(rollout)
            experience = self.estimate_returns(rollout, token_scores)
            figures = self.figures(rollout, token_scores, experience)
        except FloatingPointError as error:
            raise UnusableRollout(str(error)) from error
        figures |= self.update(experience)
        figures |= self.conclude(rollout)
        seconds = time.perf_counter() - started
        within = figures.get("return_variance_within_position", 0.0)
        if within > 0 and "value_loss" in figures:
            figures["value_loss_normalised"] = figures["value_loss"] / within
        tokens = float(rollout.sequences.response_mask.sum())
        return figures | {"seconds": seconds, "tokens_per_second": tokens / seconds}

    def collect(self, prompts: Prompts, methods: Iterable[Redistributor] = ()) -> Rollout:
        """Sample responses to ``prompts`` and measure them, with the evidence that the trainer's own method and the
        further ``methods`` need; each of them can then be called on the rollout. The draw is fixed by (seed, steps
        done), whatever is measured. Before the first update, checks that the policy equals its reference.

        Raises:
            TypeError, ValueError: what is not a method, or needs evidence that the models cannot give; names it and
                why, before anything is sampled.
            RuntimeError: an update was not concluded.
        """
        if join() != self.processes:
            raise ValueError("the process group was made after the trainer; make the group first, then the trainer")
        if self.to_conclude:
            raise RuntimeError(
                "collect: the last update was not concluded; call conclude(rollout) with the rollout it learned from, "
                "or step(prompts), which does everything"
            )
        further = [methods] if isinstance(methods, str) else methods
        needs = needs_of((self.redistributor, *further), self.policy, self.reward) | self.estimator.needs
        draw = Draw(seed=self.config.seed, name="sampling", step=self.steps_done)
        rollout = self._measured(prompts, self.config.responses_per_prompt, draw, needs)
        if not self.trained:
            report(why_not_reference(rollout, self.policy.compute_dtype), self.config.first_step_checks)
        return rollout

    @agreement()
    def redistribute(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """The redistributor's token scores for ``rollout``, in score units, checked against its contract.

        Raises:
            HealthError: a fault of the method: any before the first update, later one of shape, gradient or padding.
            ValueError: gamma is not 1, and credit that is conserved lands before the last token.
            FloatingPointError: after the first update, numbers that are not finite, too large, or miss the score.
        """
        token_scores = self.redistributor(rollout)
        try:
            require_token_scores(token_scores, rollout, self.redistributor)
            check_placement(token_scores, rollout, self.redistributor, self.config.gamma)
        except FloatingPointError as error:
            if self.trained:
                raise
            raise HealthError(str(error)) from error
        wrong = why_not_conserved(token_scores, rollout, self.redistributor)
        if wrong and self.trained and self.config.first_step_checks == "error":
            raise FloatingPointError(wrong)
        report(wrong, self.config.first_step_checks)
        return token_scores

    @agreement()
    def estimate_returns(self, rollout: Rollout, token_scores: Float[Tensor, "batch response"]) -> Experience:
        """Subtract the KL penalty of ``rollout`` from ``token_scores``; then advantages and returns (score units), as
        ``config.advantages`` says.

        Raises:
            HealthError: dense credit that the estimator would lose (before the first update, unless the config asks for
                warnings).
            FloatingPointError: one that is not finite, or too large.
        """
        if not (self.trained or self.estimator.reaches_tokens):
            lost = why_not_kept(token_scores, rollout, self.redistributor, self.config.advantages)
            report(lost, self.config.first_step_checks)
        rewards = penalised(token_scores, rollout.kl, self._kl_coef("reward"))
        experience = self.estimator.estimate(rewards, rollout, self.config)
        for name in ("advantages", "returns"):
            require_usable(name, getattr(experience, name), self.policy, rollout.sequences)
        return experience

    def update(self, experience: Experience) -> dict[str, float]:
        """Epochs of clipped PPO on ``experience``, and one step of the learning-rate schedule; figures of the update.
        Raises as :func:`ppo_update`."""
        buffer = RolloutBuffer(self.estimator.scaled)
        buffer.add(experience)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        figures = ppo_update(
            self.policy,
            self.optimizer,
            buffer,
            self.estimator.update_settings(self.config),
            step=self.steps_done,
            check_first=self._before_training,
            guard=self.guard,
            budgets=self.budgets,
            kl_coef=self._kl_coef("loss"),
        )
        self.schedule.step()
        self.to_conclude = True
        figures = self.estimator.defined(figures) | warmup_figures(self.config, self.steps_done)
        return figures | {"learning_rate": float(learning_rate)}

    @agreement()
    def conclude(self, rollout: Rollout) -> dict[str, float]:
        """End a step: show ``rollout`` to a redistributor that learns, move the KL coefficient, store the running score
        moments, count the step. Returns figures only where the redistributor could not learn.

        Raises:
            Diverged: one step too many in a row could not be learned from.
        """
        method, figures = self.redistributor, dict[str, float]()
        if isinstance(method, Learns):
            figures = observed(method, rollout, self.guard, step=self.steps_done + 1)
        if not in_warmup(self.config, self.steps_done):  # else the policy could not have moved
            self.kl_controller.update(mean_response_kl(rollout), len(rollout.sequences))
        self.score_moments = self.score_moments.including(rollout.raw_scores)
        self.steps_done += 1
        self.to_conclude = False
        return figures

    @agreement()
    def figures(
        self, rollout: Rollout, token_scores: Float[Tensor, "batch response"], experience: Experience
    ) -> dict[str, float]:
        """Figures of ``rollout``, its ``token_scores`` and its ``experience``, with those of the redistributor and the
        instruments. Raises ValueError for a figure that is not a number, or a name that is taken."""
        figures = {"kl_coef": self.kl_controller.coef}
        figures |= rollout_metrics(rollout) | credit_metrics(token_scores, rollout)
        figures |= self.estimator.defined(critic_metrics(experience))
        if isinstance(self.redistributor, ReportsMetrics):
            figures |= further_figures(self.redistributor.metrics(rollout), self.redistributor, figures)
        for instrument in self.instruments:
            figures |= further_figures(instrument(rollout), instrument, figures)
        return figures

    def evaluate(self, prompts: Prompts) -> dict[str, float]:
        """Score, k1 (nats per response) and length on held-out ``prompts``, sampled with the same uniforms at every
        call, so that evaluations differ by the policy alone."""
        return evaluation_figures(self.evaluation_rollout(prompts))

    def fit(
        self,
        prompts: Prompts,
        steps: int,
        *,
        out: str | Path,
        eval_prompts: Prompts = (),
        eval_every: int = 10,
        save_every: int = 0,
        keep: int | None = None,
        resume: bool = False,
        methods: Mapping[str, Redistributor] | None = None,
    ) -> None:
        """Take ``steps`` steps over shuffled ``prompts``; write everything under the new folder ``out``.

        ``metrics.jsonl``: one object per step. ``samples.jsonl``: the responses to the first ``eval_prompts`` (to the
        first ``prompts`` where there are none) before the first step, every ``eval_every`` steps and at the end.
        ``skipped.jsonl``: what was skipped because its numbers were not in order, if anything was. ``checkpoint-N``:
        policy and trainer after N steps, at the end and every ``save_every`` steps (0: at the end only); the newest
        ``keep`` of them are kept (None: all).
        ``report.html``: a page on the run as it stands, written at each evaluation, with what it shows beside the
        other files in ``report.json``. It shows the credit of the latest responses under the trainer's method and under
        those of ``methods``, by label, that need no further evidence.
        Close the loggers yourself: ``fit`` may be called again.

        ``resume`` continues the run in ``out`` from its newest complete checkpoint, to ``steps`` steps in all, as if it
        had never ended: to the bit on a CPU (a card needs ``torch.use_deterministic_algorithms(True)`` for that). Make
        models, redistributor and trainer as at first. If there is no run in ``out``, one begins. SIGTERM and SIGINT end
        a run after the step in progress, with a checkpoint; a second one ends it at once.

        Raises:
            FileExistsError: ``out`` is a folder that is not empty, or a file.
            ValueError: prompts that cannot be used, all listed, before anything is generated; no steps; settings or
                models of the run in ``out`` that are others now, all listed.
            Diverged: too many steps in a row had to be skipped.
            OSError: the disk is full; says how much a checkpoint needs.
            SystemExit: with status 143 or 130, after SIGTERM or SIGINT.
        """
        plan = Plan(
            prompts=encoded(self.policy, self.reward, prompts, self.config),
            held_out=encoded(self.policy, self.reward, eval_prompts, self.config) if len(eval_prompts) else [],
            given=prompts,
            held_out_given=eval_prompts,
            steps=steps,
            out=Path(out),
            eval_every=eval_every,
            save_every=save_every,
            keep=keep,
            resume=resume,
            methods=methods or {},
        )
        Fit(self, plan)()

    def skip(self, reason: str) -> dict[str, float]:
        """Count this step as taken, because its rollout cannot be used for the ``reason`` given; figures for the log.

        Raises:
            Diverged: one too many in a row.
        """
        self.guard.skip({"step": self.steps_done + 1, "what": "rollout", "reason": reason})
        self.steps_done += 1
        return {"kl_coef": self.kl_controller.coef, "skipped_rollout": 1.0}

    def state(self) -> TrainerState:
        """What the trainer has learned beside its policy. Where weights are divided, the first process has it all."""
        return trainer_state.whole_state_of(self)

    def why_not_restored(self, checkpoint: Path) -> str:
        """Why ``checkpoint`` cannot be restored here, whichever run it is of; empty if it can."""
        return trainer_state.why_not_restored(self, checkpoint)

    @agreement()
    def restore(self, checkpoint: Path) -> None:
        """Put policy and trainer back to what they were when ``checkpoint`` was saved.

        Raises:
            ValueError: the checkpoint is not complete, of another version, or belongs to another run: another policy,
                reward, method, optimizer or config, or other prompts than this trainer's run has; all are named.
                Whatever it was refused for, policy and trainer are as they were.
        """
        trainer_state.restore(self, checkpoint)

    def _measured(self, prompts: Prompts, times: int, draw: Draw, needs: frozenset[EvidenceRequest]) -> Rollout:
        with agreement():
            ids, given = encoded(self.policy, self.reward, prompts, self.config), own_rows(prompts, times)
        require_same("prompts", (self.steps_done, ids))
        return collected(
            self.policy,
            self.reward,
            ids,
            given,
            needs,
            times=times,
            config=self.config,
            draw=draw,
            moments=self.score_moments,
            budgets=self.budgets,
        )

    def evaluation_rollout(self, prompts: Prompts) -> Rollout:
        """Responses to ``prompts`` as ``evaluate`` draws them, measured."""
        return self._measured(prompts, 1, Draw(seed=self.config.seed, name="evaluation", step=0), frozenset())

    def _kl_coef(self, place: str) -> float:
        """The penalty's coefficient there: 0 where the config places it elsewhere."""
        return self.kl_controller.coef if self.config.kl.place == place else 0.0

    def _before_training(self, largest: float, mean: float) -> None:
        """Called between an update's first forward pass and its first optimizer step."""
        if not self.trained:
            report(why_not_repeated(largest, mean, self.policy.compute_dtype), self.config.first_step_checks)
        self.trained = True
