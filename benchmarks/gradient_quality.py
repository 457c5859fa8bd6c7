"""How good is each method's gradient? Repeated rollouts of the same prompts, every method on the same ones.

The gradient of a step is held against that of sparse credit on the same responses, against a many-sample estimate of
what it should be, and against itself on other responses to the same prompts.
``python -m benchmarks.gradient_quality --out DIR`` takes four minutes on the embedded task.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from benchmarks.base.checked_numbers import require_at_least
from benchmarks.base.command_line import parse
from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.run_folder import measurement_folder
from benchmarks.credit import gradients
from benchmarks.credit.frozen_credit import warm
from benchmarks.reporting import figures
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.statistics import Summary, bootstrap_interval
from benchmarks.reporting.tables import Table, Value
from benchmarks.runs.arms import PAPER_SETTINGS, parse_arms, with_settings
from benchmarks.runs.single_run import Task
from benchmarks.tasks.definitions import Loaded, make_task
from benchmarks.tasks.model_loading import optimizer_maker
from benchmarks.tasks.model_settings import Loading
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
DRAWN = ("cosine to reference", "cosine of expectations", "relative variance")
COLUMNS = (
    *("method", "sparse steps before", "explained variance", "… over position", "credited tokens"),
    *("cosine to sparse", *DRAWN),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Compare the gradients that methods make of the same responses: direction and noise."""

    task: Literal["toy", "positive_generation", "summarisation", "dialogue"] = "toy"
    """The embedded task, or one of the paper's (see --models)."""
    models: str | None = None
    """The folder that benchmarks.prepare made; without it the task's hub models are downloaded (toy: its own)."""
    cache: str | None = None
    """toy: the folder that keeps its models, trained once."""
    loading: Loading = field(default_factory=Loading)
    """How the models are held."""
    redistributors: str | list[str] = "sparse,sparse@lam=1,uniform,uniform(beta=0.8),abc"
    """Arms, plain sparse among them; they may change advantages, gamma and lam (sparse@lam=1)."""
    prompts: int = 64
    """Held-out prompts of a rollout."""
    responses_per_prompt: int = 1
    """Responses to each; 2 or more for arms with @advantages=rloo."""
    repetitions: int = 64
    """Rollouts of the same prompts that all arms are given."""
    reference_repetitions: int = 256
    """Further ones for the many-sample estimate."""
    sparse_steps: tuple[int, ...] = (0, 30)
    """Policies to measure: the initial one after so many steps of PPO with sparse credit."""
    warm: int = 4
    """Rollouts of each policy that a method which learns observes first."""
    seed: int = 0
    """Seed of every random stream."""
    out: str = "runs/gradient_quality"
    """Folder for table and figure."""
    overwrite: bool = False
    """Delete an earlier measurement in ``out``."""

    def __post_init__(self) -> None:
        require_at_least(self, prompts=1, responses_per_prompt=1, repetitions=3, reference_repetitions=2, warm=0)
        if not self.sparse_steps or min(self.sparse_steps) < 0 or len(set(self.sparse_steps)) < len(self.sparse_steps):
            raise ValueError(f"sparse_steps must be different numbers, 0 or more, got {self.sparse_steps}")
        arms = parse_arms(self.redistributors)
        if PLAIN not in {arm.label for arm in arms}:
            raise ValueError(f"name {PLAIN} among the redistributors: the others are compared with it")
        for arm in arms:
            other = sorted(arm.changes.keys() - set(CHANGES))
            if other:
                raise ValueError(f"arm {arm.label}: {', '.join(other)} would change the rollout; only {CHANGES} may")

    def make_task(self) -> Task:
        """The task, with the settings that are given."""
        return make_task(self.task, models=self.models, cache=self.cache, loading=self.loading)

    def config(self, task: Task) -> PPOConfig:
        """The task's PPO settings at this size of rollout."""
        rows = self.prompts * self.responses_per_prompt
        sizes = {"rollout_batch_size": rows, "responses_per_prompt": self.responses_per_prompt, "seed": self.seed}
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
        for repetition in tqdm(repetitions, desc="rollouts", unit="rollout", dynamic_ncols=True):
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


def measured(stage: Stage, settings: Settings) -> tuple[list[tuple[Value, ...]], float]:
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
    plain, steps = taken[PLAIN], trainer.steps_done
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


def stages(loaded: Loaded, settings: Settings, config: PPOConfig) -> Iterator[Stage]:
    """The policies asked for, one after the other: it is the same policy, trained on.

    Raises:
        ValueError: an arm that the models or the settings do not allow, or too few held-out prompts.
    """
    arms = parse_arms(settings.redistributors)
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
        while trainer.steps_done < steps:
            trainer.step(shuffled_batch(train, config, trainer.steps_done))
        made = [arm.redistributor() for arm in arms]
        warm(made, loaded, trainer.reward, config, rollouts=settings.warm, moments=trainer.score_moments)
        methods = {arm.label: (method, configs[arm.label]) for arm, method in zip(arms, made, strict=True)}
        yield Stage(trainer=trainer, prompts=held_out, methods=methods)


def table(rows: Sequence[tuple[Value, ...]], ceilings: Sequence[float], settings: Settings) -> Table:
    """The rows, and how to read them."""
    size = settings.prompts * settings.responses_per_prompt
    ceiling = ", ".join(f"{value:.3f}" for value in ceilings)
    return Table(
        title=f"gradients on {settings.task}: {settings.repetitions} rollouts of {size} responses",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=(
            "All methods get the same rollouts of the same prompts. Gradients are of the policy loss at ratio 1, with "
            "advantages whitened per rollout. Explained variance is that of a critic trained on sparse credit.",
            f"Reference: mean gradient of sparse at lam = 1 over {settings.reference_repetitions} further rollouts. "
            f"Its own noise limits the cosine of even an exact gradient to {ceiling} (one number per policy).",
            "Cosine to sparse, to the reference: mean over single rollouts [95 % bootstrap interval]. Cosine of "
            "expectations: noise removed, so 1 means no bias; chance may put it above 1 [95 % jackknife interval].",
            "Relative variance: trace of the covariance over the squared norm of the expected gradient, which is the "
            "number of rollouts whose mean has as much signal as noise [95 % jackknife interval; inf: noise may hide "
            "the signal].",
            f"Methods that learn had observed {settings.warm} rollouts of the policy.",
        ),
    )


@figures.style()
def draw(made: Table) -> Figure:
    """A dot and its interval for every arm: a panel a quantity, a line of panels a policy."""
    policies = list(dict.fromkeys(row[1] for row in made.rows))
    figure = figures.grid(len(DRAWN) * len(policies), columns=len(DRAWN))
    panels = [(steps, quantity) for steps in policies for quantity in DRAWN]
    for axes, (steps, quantity) in zip(figure.axes, panels, strict=True):
        _dots(axes, {str(row[0]): row[COLUMNS.index(quantity)] for row in made.rows if row[1] == steps})
        axes.set_title(f"{quantity}, after {steps} sparse steps", loc="left")
    return figure


def _dots(axes: Axes, values: Mapping[str, Value]) -> None:
    """What is infinite runs off the right edge."""
    shown = [value for value in values.values() if isinstance(value, Summary)]
    edges = [edge for value in shown for edge in (value.low, value.mean, value.high)]
    right = 1.05 * max([edge for edge in edges if np.isfinite(edge)], default=1.0)
    for place, (arm, (colour, dash)) in enumerate(figures.line_styles(list(values)).items()):
        value: Any = values[arm]
        axes.plot([value.low, min(value.high, right)], [place, place], color=colour, linestyle=dash)
        axes.plot([value.mean], [place], "o", color=colour, markersize=4)
    if np.isinf(edges).any():
        axes.set_xlim(right=right)
    axes.set_yticks(range(len(values)), labels=list(values))
    axes.invert_yaxis()


def run(settings: Settings, task: Task) -> Table:
    """Measure every policy and arm; raises ValueError for what cannot be, before anything is drawn."""
    found = [measured(stage, settings) for stage in stages(task.load(), settings, settings.config(task))]
    rows = [row for rows, _ in found for row in rows]
    return table(rows, [ceiling for _, ceiling in found], settings)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    settings = parse(Settings, "benchmarks.gradient_quality", argv)
    quiet_libraries()
    torch.set_num_threads(1)
    out = measurement_folder(settings, "benchmarks.gradient_quality")
    try:
        made = run(settings, settings.make_task())
    except (OSError, ValueError) as error:
        sys.exit(f"python -m benchmarks.gradient_quality: error: {error}")
    publish(made, {"gradient_quality": draw(made)}, out, Console())


if __name__ == "__main__":
    main()
