"""One run: an arm under a seed on a task, from loading the models to the record that says it finished.

Runs of one seed meet the same prompts, lengths and uniforms. Every run has a folder of its own, and its ``run.json``,
written last, is what says that it finished.
"""

import contextlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import numpy as np

from benchmarks.base.json_files import jsonable, write_json
from benchmarks.base.run_folder import RECORD, run_record
from benchmarks.reporting.run_sets import FINAL
from benchmarks.reporting.statistics import nan_mean, rank_correlation
from benchmarks.runs.arms import Arm
from benchmarks.runs.contracts import require_contract
from benchmarks.runs.samplers import SAMPLERS
from benchmarks.tasks.loaded import Loaded, TaskPrompts
from benchmarks.tasks.model_loading import optimizer_maker
from benchmarks.tasks.model_settings import Loading
from redistributors import REDISTRIBUTORS
from redistributors.trial_rollouts import made_up_rollout
from rlhf_core.advantages import ESTIMATORS
from rlhf_core.checks import require_usable, why_not_kept, why_not_provided
from rlhf_core.config import PPOConfig
from rlhf_core.names import counted, method_name
from rlhf_core.pages.credit_maps import credit_maps, decoder
from rlhf_core.pages.heat_map import CreditMap
from rlhf_core.prompts import encoded, own_rows
from rlhf_core.rewards import ScoreMoments
from rlhf_core.rollout import Draw, measure, sample
from rlhf_core.run.description import described
from rlhf_core.scorers.callables import METHODS, as_reward_model
from rlhf_core.trainer import Instrument, PPOTrainer
from rlhf_core.types import Learns, Policy, ReadsRows, Redistributor, RewardModel, Rollout, Sequences

TRIED = 4
"""Responses that a reward function is tried on before any run."""
PLACES = ("models", "cache", "critic_model")
"""Settings that say where files stand."""
NAMED_PLACES = ("auxiliaries",)
"""Settings that say so of files by name."""


@runtime_checkable
class Task(Protocol):
    """A task by its settings only: a frozen dataclass, small enough to send to another process."""

    @property
    def loading(self) -> Loading:
        """How its models are held."""
        ...

    @property
    def ppo(self) -> Mapping[str, Any]:
        """What it changes in the paper's settings (``PPOConfig.from_paper``)."""
        ...

    def load(self) -> Loaded:
        """Read the models."""
        ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm under one seed (``config.seed``), in its own folder; ``fingerprint`` is that of the task as loaded when
    the experiment began."""

    task: Task
    fingerprint: str
    arm: Arm
    config: PPOConfig
    steps: int
    eval_every: int
    eval_prompts: int
    folder: Path
    save_every: int = 0
    """Steps between checkpoints to go on from; decides no number."""
    sampler: str = "matched"
    """How responses are drawn: a name of ``benchmarks.runs.samplers``."""
    panel: str = ""
    """The panel's name, for messages."""

    def settings(self) -> dict[str, Any]:
        """The settings that determine this run's numbers; a finished run counts only if they are the same."""
        numbers = {name: getattr(self, name) for name in ("steps", "eval_every", "eval_prompts", "sampler")}
        method = described(self.arm.redistributor())
        return {"task": identity(self.task), "redistributor": method, "ppo": jsonable(self.config), **numbers}


def run_name(run: Run) -> str:
    """A run's name in messages: its panel, arm and seed."""
    return ", ".join(filter(None, [run.panel, run.arm.label, f"seed {run.config.seed}"]))


def identity(task: Task) -> dict[str, Any]:
    """A task's settings without where its files stand: their content is in the fingerprint."""
    named: dict[str, Any] = jsonable(_placeless(task))
    return named


def _placeless(value: Any) -> Any:
    """Without places at any depth, as a task may hold another; what a mapping names is not a setting, and stays."""
    if not is_dataclass(value):
        return value
    kept = {field.name: getattr(value, field.name) for field in fields(value) if field.name not in PLACES}
    return {name: dict.fromkeys(item) if name in NAMED_PLACES else _placeless(item) for name, item in kept.items()}


def execute(run: Run) -> None:
    """Load the task and :func:`train` on it. What the run prints goes to ``seed-N.log`` beside its folder, and so does
    the traceback of what ended it.

    Raises:
        RuntimeError: the task's models or prompts are not the ones the other runs have.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with log_of(run).open("a", encoding="utf-8") as file, _printing_to(file):
        loaded = run.task.load()
        if loaded.fingerprint != run.fingerprint:
            raise RuntimeError("models or prompts of the task changed after the experiment began; start it again")
        train(run, loaded)


def log_of(run: Run) -> Path:
    """Where a run of several prints to."""
    return run.folder.with_name(run.folder.name + ".log")


@contextlib.contextmanager
def _printing_to(file: TextIO) -> Iterator[None]:
    with contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        try:
            yield
        except Exception:
            traceback.print_exc(file=file)
            raise


def train(run: Run, loaded: Loaded) -> dict[str, float]:
    """Train, then measure the final policy on held-out prompts: those figures. ``run.json`` comes last and marks the
    run finished. A run that was cut short goes on from its newest checkpoint, or begins again."""
    held_out = loaded.held_out_prompts[: run.eval_prompts]
    redistributor = run.arm.redistributor()
    policy = SAMPLERS[run.sampler](loaded.policy)
    trainer = PPOTrainer(
        policy,
        loaded.reward,
        redistributor,
        run.config,
        instruments=gold_instruments(loaded),
        optimizer=optimizer_maker(run.task.loading),
    )
    before = frozen_rollout(loaded, [redistributor], run.config, held_out)
    figures = credit_figures(loaded, before, redistributor)
    trainer.fit(
        loaded.train_prompts,
        run.steps,
        out=run.folder,
        eval_prompts=held_out,
        eval_every=run.eval_every,
        save_every=run.save_every,
        keep=1,
        resume=True,
        methods={run.arm.label: redistributor, **unlearned_methods()},
    )
    figures |= held_out_figures(loaded, frozen_rollout(loaded, [], run.config, held_out))
    record = run_record(run.settings(), {"prompts and models": loaded.fingerprint}, made_by="a run")
    write_json(run.folder / RECORD, {**record, FINAL: figures})
    return figures


def unlearned_methods() -> dict[str, Redistributor]:
    """Every registered method by name, but those that learn, which have seen nothing."""
    made = {name: make() for name, make in REDISTRIBUTORS.items()}
    return {name: method for name, method in made.items() if not isinstance(method, Learns)}


def gold_instruments(loaded: Loaded) -> list[Instrument]:
    """Mean and standard deviation of the true score of every rollout, where the task knows it."""
    gold = loaded.gold
    if gold is None:
        return []

    def instrument(rollout: Rollout) -> dict[str, float]:
        scores = np.array(gold(rollout.sequences))
        return {"gold_score": float(scores.mean()), "gold_std": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0}

    return [instrument]


def require_runnable(loaded: Loaded, run: Run) -> None:
    """Check before any run starts what a run would refuse later.

    Raises:
        ValueError: evidence that the models do not give, a method from elsewhere that breaks the contract, a gamma the
            method cannot take, or dense credit that the estimator would lose; names the arm.
    """
    if reason := why_not_possible(run.arm.redistributor(), loaded):
        possible = [name for name, make in REDISTRIBUTORS.items() if not why_not_possible(make(), loaded)]
        way_out = "" if METHODS in reason else f". With this policy and reward there are {', '.join(possible)}"
        raise ValueError(f"{run.arm.label} is not possible here: {reason}{way_out}")
    try:
        require_contract(run.arm, run.config)
        PPOTrainer(loaded.policy, loaded.reward, run.arm.redistributor(), run.config)
        require_kept(run.arm.redistributor(), run.config)
    except ValueError as error:
        said = in_labels(run.arm, f"{error}")
        raise ValueError(said if said.startswith(run.arm.label) else f"{run.arm.label}: {said}") from error


def in_labels(arm: Arm, message: str) -> str:
    """The message of an engine that knows no arms; if it begins with the arm's method, with the arm's label there."""
    named = method_name(arm.redistributor())
    return arm.label + message.removeprefix(named) if message.startswith(f"{named} ") else message


def require_kept(redistributor: Redistributor, config: PPOConfig) -> None:
    """Try on a made-up rollout what the trainer refuses in its first step: dense credit that the estimator loses."""
    if ESTIMATORS[config.advantages].reaches_tokens or config.first_step_checks == "warn":
        return
    rollout = made_up_rollout(redistributor.needs)
    if lost := why_not_kept(redistributor(rollout), rollout, redistributor, config.advantages):
        raise ValueError(lost)


def require_prompts(loaded: Loaded, runs: Sequence[Run]) -> None:
    """What the prompts would stop, once for all runs and before any is started.

    Raises:
        ValueError: prompts that policy or reward model refuse, that leave no room for the longest response of a run,
            or fewer held out than are to be evaluated on.
    """
    held_out, asked = len(loaded.held_out_prompts), max(run.eval_prompts for run in runs)
    if asked > held_out:
        raise ValueError(f"eval_prompts {asked} exceed the task's {counted(held_out, 'held-out prompt')}")
    longest = max(runs, key=lambda run: run.config.max_length[1]).config
    encoded(loaded.policy, as_reward_model(loaded.reward, loaded.policy), loaded.in_order(), longest)


def why_not_possible(redistributor: Redistributor, loaded: Loaded) -> str:
    """Why a method cannot work with the task's policy and reward; empty if it can."""
    reward = as_reward_model(loaded.reward, loaded.policy)
    for request in redistributor.needs:
        source: Policy | RewardModel = reward if request.source == "reward" else loaded.policy
        if reason := why_not_provided(request, source):
            return reason
    return ""


def require_scored(loaded: Loaded, config: PPOConfig) -> None:
    """Try a reward function, which may do anything, on a few responses before any run is started.

    Raises:
        ValueError: it raised, or did not give a finite number for each response; says what.
    """
    reward = as_reward_model(loaded.reward, loaded.policy)
    if not isinstance(reward, ReadsRows):
        return
    sequences = _responses(loaded, config, loaded.held_out_prompts[:TRIED])
    try:
        scores = reward.score(sequences, frozenset()).scores
        require_usable("scores", scores, loaded.policy, sequences)
    except FloatingPointError as error:
        raise ValueError(f"the reward function was tried on {counted(len(sequences), 'response')}: {error}") from error
    except ValueError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"the reward function was tried on {counted(len(sequences), 'response')} and raised "
            f"{type(error).__name__}: {error} (line {place.lineno} of {place.filename})"
        ) from error


def frozen_rollout(
    loaded: Loaded, redistributors: Sequence[Redistributor], config: PPOConfig, prompts: TaskPrompts
) -> Rollout:
    """Responses of the policy as it is, with all evidence the redistributors need: the same ones for every method,
    and the same uniforms as in ``PPOTrainer.evaluate``."""
    needs = frozenset(request for redistributor in redistributors for request in redistributor.needs)
    reward = as_reward_model(loaded.reward, loaded.policy)
    sequences = _responses(loaded, config, prompts)
    return measure(loaded.policy, reward, sequences, needs, config=config, moments=ScoreMoments())


def _responses(loaded: Loaded, config: PPOConfig, prompts: TaskPrompts) -> Sequences:
    """A response of the policy to each prompt, with what their caller wrote."""
    ids = encoded(loaded.policy, as_reward_model(loaded.reward, loaded.policy), prompts, config)
    drawn = sample(loaded.policy, ids, config, Draw(seed=config.seed, name="evaluation", step=0))
    return replace(drawn, given=own_rows(prompts, 1))


def held_out_figures(loaded: Loaded, rollout: Rollout) -> dict[str, float]:
    """The reward model's mean score, and the true one where the task knows it."""
    figures = {"held_out_score": float(rollout.raw_scores.mean())}
    if loaded.gold is not None:
        figures["held_out_gold"] = float(np.mean(loaded.gold(rollout.sequences)))
    return figures


def credit_figures(loaded: Loaded, rollout: Rollout, redistributor: Redistributor) -> dict[str, float]:
    """Spearman's ρ of token scores with true contributions, mean over responses where both vary; {} where none do, and
    for a method that learns, which has seen nothing yet."""
    if loaded.contributions is None or isinstance(redistributor, Learns):
        return {}
    token_scores = redistributor(rollout).numpy(force=True).astype(float)
    truths = loaded.contributions(rollout.sequences)
    pairs = zip(token_scores, map(np.asarray, truths), strict=True)
    mean = float(nan_mean(np.array([rank_correlation(row[: len(truth)], truth) for row, truth in pairs])))
    return {} if np.isnan(mean) else {"credit_truth": mean}


def examples(loaded: Loaded, arms: Sequence[Arm], config: PPOConfig, prompts: TaskPrompts) -> list[CreditMap]:
    """The same responses of the initial policy under every arm, a row per different redistributor; none for those that
    learn, which have seen nothing yet."""
    methods: dict[str, Redistributor] = {}
    for arm in arms:
        method = arm.redistributor()
        if not isinstance(method, Learns) and repr(method) not in map(repr, methods.values()):  # λ changes no credit
            methods[arm.label] = method
    rollout = frozen_rollout(loaded, list(methods.values()), config, prompts)
    token_scores = {label: method(rollout) for label, method in methods.items()}
    truths = {} if loaded.contributions is None else {"true contribution": loaded.contributions(rollout.sequences)}
    return credit_maps(rollout, token_scores, decoder(loaded.policy), reference_rows=truths)
