"""Repeated rollouts of the same prompts, and every method's policy gradient on the same ones.

The gradient of a step is compared with that of sparse credit on the same responses, with a many-sample estimate of what
it should be, and with itself on other responses to the same prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from benchmarks.base.interruption import stoppable
from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.run_folder import measurement_folder
from benchmarks.credit import gradients
from benchmarks.credit.frozen_credit import warm
from benchmarks.credit.gradient_report import draw, table
from benchmarks.credit.settings import GradientSettings
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.statistics import Summary, bootstrap_interval
from benchmarks.reporting.tables import Table, Value
from benchmarks.runs.arms import Arm, parse_arms
from benchmarks.runs.ppo_settings import PAPER_SETTINGS, with_settings
from benchmarks.runs.single_run import Task
from benchmarks.tasks.definitions import make_task
from benchmarks.tasks.loaded import Loaded
from benchmarks.tasks.model_loading import optimizer_maker
from redistributors import Credit, Sparse, compare_on
from rlhf_core.checks import check_needs
from rlhf_core.config import PPOConfig
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.prompts import encoded, repeated, shuffled_batch
from rlhf_core.rollout import Draw, measure, sample
from rlhf_core.trainer import PPOTrainer
from rlhf_core.types import Redistributor, Rollout

PLAIN = "sparse"
CHANGES = ("advantages", "gamma", "lam")
"""PPO settings that an arm may change: all that matters between a rollout and its gradient."""


def arms_of(settings: GradientSettings) -> tuple[Arm, ...]:
    """The arms; raises ValueError for one that cannot be, or cannot be compared on the same rollouts."""
    arms = parse_arms(settings.redistributors)
    if PLAIN not in {arm.label for arm in arms}:
        raise ValueError(f"redistributors must name {PLAIN}: the others are compared with it")
    for arm in arms:
        if other := sorted(arm.changes.keys() - set(CHANGES)):
            raise ValueError(f"arm {arm.label}: {', '.join(other)} would change the rollout; only {CHANGES} may")
    return arms


def config_of(settings: GradientSettings, task: Task) -> PPOConfig:
    """The task's PPO settings at this size of rollout."""
    rows = settings.prompts * settings.responses_per_prompt
    sizes = {"rollout_batch_size": rows, "responses_per_prompt": settings.responses_per_prompt, "seed": settings.seed}
    return with_settings(with_settings(PAPER_SETTINGS, task.ppo), sizes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """A policy, and all that a rollout of it takes: the trainer that brought it there, prompts, and methods by label
    with the settings each is measured under; those that learn have observed some rollouts."""

    trainer: PPOTrainer
    prompts: list[list[int]]
    methods: Mapping[str, tuple[Redistributor, PPOConfig]]

    def rollouts(self, repetitions: range, needs: frozenset[EvidenceRequest]) -> Iterator[Rollout]:
        """Rollouts of the same prompts, the repetition deciding the random numbers; none are a training step's."""
        trainer, config = self.trainer, self.trainer.config
        for repetition in tqdm(repetitions, desc=f"after {trainer.steps_done} steps", unit="rollout", disable=None):
            draw = Draw(seed=config.seed, name="evaluation", step=1 + repetition)
            sequences = sample(trainer.policy, repeated(self.prompts, config.responses_per_prompt), config, draw)
            yield measure(
                trainer.policy, trainer.reward, sequences, needs, config=config, moments=trainer.score_moments
            )

    def credits(self, rollout: Rollout) -> dict[str, Credit]:
        """Every arm's, under its own settings."""
        coef = self.trainer.kl_controller.coef
        return {
            label: compare_on(rollout, {label: method}, config=config, kl_coef=coef)[label]
            for label, (method, config) in self.methods.items()
        }

    def reference(self, repetitions: range) -> tuple[Tensor, float]:
        """The many-sample gradient, and its squared norm without bias, from two halves."""
        trainer, middle = self.trainer, (repetitions.start + repetitions.stop) // 2
        settings: dict[str, Any] = {"config": trainer.config, "kl_coef": trainer.kl_controller.coef}
        first, second = (
            gradients.reference_gradient(trainer.policy, self.rollouts(half, frozenset()), **settings).cpu()
            for half in (range(repetitions.start, middle), range(middle, repetitions.stop))
        )
        return (first + second) / 2, float(first.double() @ second.double())


def measured(stage: Stage, settings: GradientSettings) -> tuple[list[tuple[Value, ...]], float]:
    """A row for every arm, and the cosine that the reference itself has with what it estimates, at best."""
    trainer, methods = stage.trainer, stage.methods
    needs = frozenset(need for method, _ in methods.values() for need in method.needs)
    taken: dict[str, list[Tensor]] = {label: [] for label in methods}
    said: dict[str, list[Mapping[str, float]]] = {label: [] for label in methods}
    for rollout in stage.rollouts(range(settings.repetitions), needs):
        made = stage.credits(rollout)
        advantages = {label: credit.advantages for label, credit in made.items()}
        found = gradients.policy_gradients(trainer.policy, rollout.sequences, advantages, trainer.config)
        for label, credit in made.items():
            taken[label].append(found[label].cpu())
            said[label].append(credit.figures)
    first = settings.repetitions
    reference, signal = stage.reference(range(first, first + settings.reference_repetitions))
    plain, steps = taken[PLAIN], str(trainer.steps_done)
    rows: list[tuple[Value, ...]] = [
        (label, steps, *_figures(said[label]), *_judged(taken[label], plain, reference, signal)) for label in methods
    ]
    return rows, max(signal, 0.0) ** 0.5 / float(reference.double().norm())


def _figures(said: Sequence[Mapping[str, float]]) -> tuple[Value, ...]:
    """Means over the repetitions that define them."""
    names = ("explained_variance", "explained_variance_over_position", "credit_concentration")
    known = [[one[name] for one in said if name in one] for name in names]
    return tuple(float(np.mean(values)) if values else None for values in known)


def _judged(own: list[Tensor], plain: list[Tensor], reference: Tensor, signal: float) -> tuple[Value, ...]:
    stacked = torch.stack(own)
    products, with_reference = gradients.gram(stacked), stacked.double() @ reference.double()
    direction = gradients.jackknifed(
        lambda some: gradients.expected_cosine(products[some][:, some], with_reference[some], signal), len(own)
    )
    clarity = gradients.jackknifed(lambda some: gradients.signal_to_noise(products[some][:, some]), len(own))
    return (
        bootstrapped([gradients.cosine(a, b) for a, b in zip(own, plain, strict=True)]),
        bootstrapped([gradients.cosine(a, reference) for a in own]),
        direction,
        gradients.inverted(clarity),
    )


def bootstrapped(values: Sequence[float]) -> Summary:
    """Mean with its 95 % percentile bootstrap interval over what is not NaN; equal values have a range only, and
    fewer than two NaN."""
    array = np.array([value for value in values if not np.isnan(value)])
    if len(array) < 2:
        return Summary(mean=np.nan, low=np.nan, high=np.nan, kind="95 % interval")
    low, high = bootstrap_interval(array)
    return Summary(mean=float(array.mean()), low=low, high=high, kind="95 % interval" if np.ptp(array) else "range")


def stages(loaded: Loaded, settings: GradientSettings, config: PPOConfig) -> Iterator[Stage]:
    """The policies asked for, one after the other: it is the same policy, trained on.

    Raises:
        ValueError: an arm that the models or the settings do not allow, or too few held-out prompts.
    """
    arms = arms_of(settings)
    configs = {arm.label: with_settings(config, arm.changes) for arm in arms}
    trainer = PPOTrainer(loaded.policy, loaded.reward, Sparse(), config, optimizer=optimizer_maker(settings.loading))
    for arm in arms:
        check_needs(arm.redistributor(), trainer.policy, trainer.reward)
    known = len(loaded.held_out_prompts)
    if settings.prompts > known:
        raise ValueError(f"prompts {settings.prompts} exceed the task's {known} held-out prompts")
    train, held_out = (
        encoded(trainer.policy, trainer.reward, some, config)
        for some in (loaded.train_prompts, loaded.held_out_prompts[: settings.prompts])
    )
    for steps in sorted(settings.sparse_steps):
        missing = range(trainer.steps_done, steps)
        for step in tqdm(missing, desc="PPO with sparse credit", unit="step", disable=None if missing else True):
            trainer.step(shuffled_batch(train, config, step))
        made = [arm.redistributor() for arm in arms]
        warm(made, loaded, trainer.reward, config, rollouts=settings.warm, moments=trainer.score_moments)
        methods = {arm.label: (method, configs[arm.label]) for arm, method in zip(arms, made, strict=True)}
        yield Stage(trainer=trainer, prompts=held_out, methods=methods)


def studied(settings: GradientSettings, task: Task) -> Table:
    """Measure every policy and arm; raises ValueError for what cannot be, before anything is drawn."""
    found = [measured(stage, settings) for stage in stages(task.load(), settings, config_of(settings, task))]
    rows = [row for rows, _ in found for row in rows]
    return table(rows, [ceiling for _, ceiling in found], settings)


def run(settings: GradientSettings, made_by: str) -> None:
    """Measure, write table and figure to the out folder of command ``made_by``, and show the table.

    Raises:
        ValueError, OSError: settings, models or prompts that cannot be, before anything is measured.
    """
    arms_of(settings)
    task = make_task(settings.task, models=settings.models, cache=settings.cache, loading=settings.loading)
    quiet_libraries()
    torch.set_num_threads(1)
    out = measurement_folder(settings, made_by)
    with stoppable(f"{out} is incomplete: pass --overwrite true to begin again"):
        made = studied(settings, task)
    publish(made, {"gradient_quality": draw(made)}, out, Console())
