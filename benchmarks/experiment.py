"""Arms × seeds on one task: one function for every task, resumable by run, in single-thread worker processes.

An *arm* is a labelled redistributor with changes to the task's PPO settings. A *run* is an arm under a seed; runs of
one seed meet the same prompts, lengths and uniforms. Every run has a folder of its own, and its ``run.json``, written
last, is what says that it finished.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from tqdm import tqdm

from benchmarks.cli import RECORD, differences, jsonable, read_record, run_record, write_json
from benchmarks.loading import Loading
from benchmarks.samplers import SAMPLERS
from benchmarks.statistics import Array, Results, nan_mean, rank_correlation
from benchmarks.viewer import Example
from redistributors import REDISTRIBUTORS
from rlhf_core.config import PPOConfig
from rlhf_core.rewards import ScoreMoments, TextScorer, as_reward_model
from rlhf_core.rollout import Draw, measure, sample
from rlhf_core.trainer import Instrument, PPOTrainer
from rlhf_core.types import Policy, Redistributor, RewardModel, Rollout, Sequences

FINAL = "final"
EVALUATION = ("eval_every", "eval_prompts")
ARM = re.compile(r"(?P<method>[\w-]+)(\((?P<settings>[^()]*)\))?(?P<changes>(@[\w.]+=[^@]+)*)")


class Loaded(Protocol):
    """A task's models, fresh for one run, and its prompts as token ids."""

    @property
    def policy(self) -> Policy:
        """Untrained by PPO, its own reference."""
        ...

    @property
    def reward(self) -> RewardModel | TextScorer:
        """What PPO is scored by."""
        ...

    @property
    def train_prompts(self) -> Sequence[Sequence[int]]:
        """Prompts PPO samples from."""
        ...

    @property
    def held_out_prompts(self) -> Sequence[Sequence[int]]:
        """Prompts for evaluation and heat map."""
        ...

    @property
    def gold(self) -> Callable[[Sequences], Sequence[float]] | None:
        """The true score of every response, where it is known."""
        ...

    @property
    def contributions(self) -> Callable[[Sequences], Sequence[Sequence[float]]] | None:
        """What every response token truly adds to it, where that is known."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of prompts and models, so that runs on other data are not taken for the same."""
        ...


class Task(Protocol):
    """A task by its settings only: a frozen dataclass, small enough to send to another process."""

    @property
    def loading(self) -> Loading:
        """How its models are held."""
        ...

    @property
    def ppo(self) -> Mapping[str, Any]:
        """What it changes in ``PPOConfig``'s defaults."""
        ...

    def load(self) -> Loaded:
        """Read the models."""
        ...


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A redistributor by registry name with its settings, and what it changes in the PPO settings."""

    label: str
    method: str
    settings: Mapping[str, Any]
    changes: Mapping[str, Any]

    def redistributor(self) -> Redistributor:
        """A new instance; raises ValueError or TypeError for settings the method does not take."""
        return REDISTRIBUTORS[self.method](**self.settings)


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
    sampler: str = "matched"
    """How responses are drawn: a name of ``benchmarks.samplers``."""

    def settings(self) -> dict[str, Any]:
        """What decides this run's numbers; a finished run counts only if it is the same."""
        named = {"task": self.task, "redistributor": repr(self.arm.redistributor()), "ppo": self.config}
        return {
            **jsonable(named),
            "steps": self.steps,
            "eval_every": self.eval_every,
            "eval_prompts": self.eval_prompts,
            "sampler": self.sampler,
        }


def parse_arms(given: str | Sequence[str]) -> tuple[Arm, ...]:
    """``sparse, uniform(beta=0.8), sparse@lam=1``, as one text or a list of arms, into arms.

    Brackets hold the redistributor's settings, each ``@`` changes one PPO setting (``@kl.init_coef=0.1``). The label is
    made of both: ``uniform-beta0.8``, ``sparse-lam1``.

    Raises:
        ValueError: an unreadable arm, an unknown method, settings it refuses, or two arms of one label.
    """
    texts = re.split(r",(?![^()]*\))(?![^\[\]]*\])", given) if isinstance(given, str) else given
    arms = tuple(_arm(text.strip()) for text in texts if text.strip())
    labels = [arm.label for arm in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"the arm {label} is named {labels.count(label)} times; once is enough")
    return arms


def _arm(text: str) -> Arm:
    match = ARM.fullmatch(text)
    if match is None:
        raise ValueError(f"cannot read the arm {text!r}; write name, name(setting=value) or name@ppo_setting=value")
    method = match["method"]
    if method not in REDISTRIBUTORS:
        raise ValueError(f"no redistributor {method!r}; one of {', '.join(REDISTRIBUTORS)}")
    settings = _assignments((match["settings"] or "").split(","), text)
    changes = _assignments(match["changes"].split("@"), text)
    if "seed" in changes:
        raise ValueError(f"arm {text!r}: every arm runs under every seed of --seeds, so it cannot set its own")
    parts = [f"{name.rpartition('.')[2]}{value}" for name, value in {**settings, **changes}.items()]
    label = re.sub(r"[^\w.+-]", "", "-".join([method, *parts]))
    arm = Arm(label=label, method=method, settings=settings, changes=changes)
    try:
        arm.redistributor()
    except (TypeError, ValueError) as error:
        raise ValueError(f"arm {text!r}: {error}") from error
    return arm


def _assignments(texts: Sequence[str], arm: str) -> dict[str, Any]:
    pairs = [text.partition("=") for text in texts if text.strip()]
    for name, equals, value in pairs:
        if not (name.strip() and equals and value.strip()):
            raise ValueError(f"arm {arm!r}: expected setting=value, got {name + equals + value!r}")
    try:
        return {name.strip(): yaml.safe_load(value) for name, _, value in pairs}
    except yaml.YAMLError as error:
        raise ValueError(f"arm {arm!r}: a value cannot be read ({str(error).splitlines()[0]})") from error


def with_settings(base: PPOConfig, changes: Mapping[str, Any]) -> PPOConfig:
    """``base`` with settings changed by (dotted or nested) name, converted to each field's type and checked.

    Raises:
        ValueError: an unknown name, a value of another type, or one out of range.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PPOConfig, "ppo")
    merged = {**_flat(dataclasses.asdict(base)), **_flat(changes)}
    try:
        config: PPOConfig = parser.instantiate(parser.parse_object({"ppo": merged})).ppo
    except ValueError:
        raise
    except Exception as error:  # argparse's own error type says what is wrong, but is not a ValueError
        raise ValueError(f"PPO settings {dict(changes)}: {error}") from error
    return config


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def run_all(runs: Sequence[Run], processes: int) -> None:
    """Do every run that has not finished, ``processes`` at a time, with one progress bar over all steps.

    Raises:
        FileExistsError: a finished run has other settings than the one asked for; nothing is run then.
        RuntimeError: a run failed; the others in progress are let finish, the rest is not started.
    """
    due = [run for run in runs if not finished(run)]
    with tqdm(total=sum(run.steps for run in runs), unit="step", dynamic_ncols=True, desc="runs") as bar:
        if due:
            _run_due(due, processes, bar, sum(run.steps for run in runs) - sum(run.steps for run in due))
        bar.update(sum(run.steps for run in runs) - bar.n)


def _run_due(due: Sequence[Run], processes: int, bar: "tqdm[Any]", before: int) -> None:
    for run in due:
        if run.folder.exists():
            shutil.rmtree(run.folder)  # cut short, and inside a folder that is ours
    bar.update(before)
    bar.unpause()
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads can hang
    with ProcessPoolExecutor(min(processes, len(due)), mp_context=context, initializer=_start_worker) as pool:
        futures: dict[Future[None], Run] = {pool.submit(execute, run): run for run in due}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
            bar.update(before + sum(_steps_done(run) for run in due) - bar.n)
            for future in done:
                error = future.exception()
                if error is not None:
                    pool.shutdown(wait=True, cancel_futures=True)
                    run = futures[future]
                    raise RuntimeError(f"{run.arm.label}, seed {run.config.seed} failed: {error}") from error


def _start_worker() -> None:
    torch.set_num_threads(1)


def _steps_done(run: Run) -> int:
    """Lines of the run's metrics so far."""
    metrics = run.folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def finished(run: Run) -> bool:
    """Whether the run is complete; raises FileExistsError, naming every difference, if it had other settings."""
    record = run.folder / RECORD
    if not record.exists():
        return False
    changed = differences(read_record(run.folder)["settings"], run.settings())
    if changed:
        raise FileExistsError(
            f"{run.folder} holds a finished run with other settings ({'; '.join(changed)}); "
            "choose another --out, or pass --overwrite true"
        )
    return True


def execute(run: Run) -> None:
    """Train, then measure the final policy on held-out prompts; ``run.json`` comes last and marks the run finished.

    What the run prints goes to ``seed-N.log`` beside its folder.

    Raises:
        RuntimeError: the task's models or prompts are not the ones the other runs have.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.with_name(run.folder.name + ".log")
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        loaded = run.task.load()
        if loaded.fingerprint != run.fingerprint:
            raise RuntimeError("models or prompts of the task changed after the experiment began; start it again")
        held_out = loaded.held_out_prompts[: run.eval_prompts]
        redistributor = run.arm.redistributor()
        policy = SAMPLERS[run.sampler](loaded.policy)
        trainer = PPOTrainer(
            policy,
            loaded.reward,
            redistributor,
            run.config,
            instruments=gold_instruments(loaded),
            optimizer=run.task.loading.make_optimizer,
        )
        before = frozen_rollout(loaded, [redistributor], run.config, held_out)
        figures = credit_figures(loaded, before, redistributor)
        trainer.fit(loaded.train_prompts, run.steps, out=run.folder, eval_prompts=held_out, eval_every=run.eval_every)
        figures |= held_out_figures(loaded, frozen_rollout(loaded, [], run.config, held_out))
    record = run_record(run.settings(), {"prompts and models": loaded.fingerprint}, made_by="a run")
    write_json(run.folder / RECORD, {**record, FINAL: figures})


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
    """What a run would refuse once it is started, refused before any run is.

    Raises:
        ValueError: evidence that the models do not give, a gamma the method cannot take, prompts that leave no room
            for the longest response, or fewer held-out prompts than are to be evaluated on.
    """
    who = f"{run.arm.label}: "
    held_out = len(loaded.held_out_prompts)
    if run.eval_prompts > held_out:
        raise ValueError(f"eval_prompts {run.eval_prompts} exceed the task's {held_out} held-out prompts")
    try:
        PPOTrainer(loaded.policy, loaded.reward, run.arm.redistributor(), run.config)
        prompts = [list(prompt) for prompt in (*loaded.train_prompts, *loaded.held_out_prompts)]
        loaded.policy.validate(prompts, run.config.max_length[1])
    except ValueError as error:
        raise ValueError(f"{who}{error}") from error


def frozen_rollout(
    loaded: Loaded, redistributors: Sequence[Redistributor], config: PPOConfig, prompts: Sequence[Sequence[int]]
) -> Rollout:
    """Responses of the policy as it is, with all evidence the redistributors need: the same ones for every method,
    and the same uniforms as in ``PPOTrainer.evaluate``."""
    needs = frozenset(request for redistributor in redistributors for request in redistributor.needs)
    reward = as_reward_model(loaded.reward, loaded.policy)
    loaded.policy.temperature = config.temperature
    sequences = sample(loaded.policy, prompts, config, Draw(seed=config.seed, name="evaluation", step=0))
    return measure(loaded.policy, reward, sequences, needs, config=config, moments=ScoreMoments())


def held_out_figures(loaded: Loaded, rollout: Rollout) -> dict[str, float]:
    """The reward model's mean score, and the true one where the task knows it."""
    figures = {"held_out_score": float(rollout.raw_scores.mean())}
    if loaded.gold is not None:
        figures["held_out_gold"] = float(np.mean(loaded.gold(rollout.sequences)))
    return figures


def credit_figures(loaded: Loaded, rollout: Rollout, redistributor: Redistributor) -> dict[str, float]:
    """Spearman's ρ of token scores with true contributions, mean over responses where both vary; {} where none do."""
    if loaded.contributions is None:
        return {}
    token_scores = redistributor(rollout).numpy(force=True).astype(float)
    truths = loaded.contributions(rollout.sequences)
    rhos = [
        rank_correlation(row[: len(truth)], np.asarray(truth)) for row, truth in zip(token_scores, truths, strict=True)
    ]
    mean = float(nan_mean(np.array(rhos)))
    return {} if np.isnan(mean) else {"credit_truth": mean}


def examples(loaded: Loaded, arms: Sequence[Arm], config: PPOConfig, prompts: Sequence[Sequence[int]]) -> list[Example]:
    """The same responses of the initial policy under every arm, a row per different redistributor."""
    methods: dict[str, Redistributor] = {}
    for arm in arms:
        if repr(arm.redistributor()) not in map(repr, methods.values()):  # λ changes nothing about credit
            methods[arm.label] = arm.redistributor()
    rollout = frozen_rollout(loaded, list(methods.values()), config, prompts)
    token_scores = {label: method(rollout).tolist() for label, method in methods.items()}
    truths = loaded.contributions(rollout.sequences) if loaded.contributions is not None else None
    shown = []
    for row, (prompt, response) in enumerate(
        zip(rollout.sequences.prompts(), rollout.sequences.responses(), strict=True)
    ):
        shown.append(
            Example(
                prompt=loaded.policy.decode([prompt])[0],
                tokens=_token_texts(loaded.policy, response, bool(rollout.sequences.finished[row])),
                score=float(rollout.scores[row]),
                rows={label: tuple(scores[row][: len(response)]) for label, scores in token_scores.items()},
                reference_rows={} if truths is None else {"true contribution": tuple(truths[row])},
            )
        )
    return shown


def _token_texts(policy: Policy, response: Sequence[int], ended: bool) -> tuple[str, ...]:
    """Each token by itself; special tokens, which decode to nothing, by name or id."""
    texts = policy.decode([[token] for token in response])
    names = [text or f"⟨{token}⟩" for text, token in zip(texts, response, strict=True)]
    return (*names[:-1], "⟨eos⟩") if ended else tuple(names)


def load_results(task: str, arms: Sequence[str], runs: Sequence[Run]) -> Results:
    """The curves of finished runs. A figure that a step left undefined, or wrote as "nan", is NaN.

    Raises:
        ValueError: runs of one arm have different numbers of steps.
    """
    curves: dict[str, dict[str, Array]] = {}
    seeds = tuple(dict.fromkeys(run.config.seed for run in runs))
    for arm in arms:
        own = [run for run in runs if run.arm.label == arm]
        lines = [_metrics(run) for run in own]
        names = {name for run_lines in lines for line in run_lines for name in line}
        curves[arm] = {
            name: np.array([[float(line.get(name, "nan")) for line in run_lines] for run_lines in lines])
            for name in sorted(names - {"step"})
        }
        finals = [read_record(run.folder)[FINAL] for run in own]
        for name in sorted({name for final in finals for name in final}):
            curves[arm][name] = np.array([[float(final.get(name, "nan"))] for final in finals])
    return Results(task=task, seeds=seeds, curves=curves)


def _metrics(run: Run) -> list[dict[str, Any]]:
    """The run's steps; raises ValueError where the file is not what a finished run leaves behind."""
    path = run.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(lines) != run.steps:
        raise ValueError(f"{path} has {len(lines)} steps, not the {run.steps} of a finished run; delete {run.folder}")
    return lines
