"""The loop around ``PPOTrainer.step``: write metrics, samples and checkpoints to disk, and resume a run."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import torch
from tqdm import tqdm

from rlhf_core.batching import Budgets
from rlhf_core.config import PPOConfig
from rlhf_core.distributed import by_first, gathered, require_same, writes
from rlhf_core.metrics import rollout_metrics
from rlhf_core.names import counted
from rlhf_core.pages.run_record import METRICS, SAMPLES
from rlhf_core.plain_numbers import make_plain
from rlhf_core.prompts import Prompts, shuffled_batch
from rlhf_core.run.checkpoint import TrainerState, checkpoints, prune, save_checkpoint, sweep
from rlhf_core.run.closed_stdout import lasting_output
from rlhf_core.run.identity import changed_models, changed_settings, model_measurement, prompt_settings
from rlhf_core.run.loggers import Logger, LogsSamples, Rewinds
from rlhf_core.run.page import SHOWN, Methods, first_rows, label_of, own_texts, page_at_the_end, update_page
from rlhf_core.run.run_folder import SKIPPED, RunFolder
from rlhf_core.run.stopping import StopRequest, stop_requests
from rlhf_core.sharding import gathered_weights
from rlhf_core.step_guard import StepGuard, UnusableRollout
from rlhf_core.types import Policy, Redistributor, RewardModel, Rollout


@runtime_checkable
class Trainer(Protocol):
    """The parts of a trainer that the loop uses."""

    policy: Policy
    reward: RewardModel
    redistributor: Redistributor
    config: PPOConfig
    budgets: Budgets
    guard: StepGuard
    loggers: tuple[Logger, ...]
    optimizer: torch.optim.Optimizer
    steps_done: int
    settings: dict[str, Any]
    trained: bool
    """Whether an update has begun."""
    run: dict[str, Any] | None
    """Prompts, and a measurement of the models, of the current run of ``fit``; saved with the state."""

    def step(self, prompts: Prompts) -> dict[str, float]:
        """One PPO step."""
        ...

    def skip(self, reason: str) -> dict[str, float]:
        """Count a step whose rollout cannot be used."""
        ...

    def evaluation_rollout(self, prompts: Prompts) -> Rollout:
        """Responses drawn with the same uniforms at every call."""
        ...

    def state(self) -> TrainerState:
        """The state besides the policy."""
        ...

    def why_not_restored(self, checkpoint: Path) -> str:
        """Why a checkpoint cannot be restored; empty if it can."""
        ...

    def restore(self, checkpoint: Path) -> None:
        """Restore policy and state."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of ``fit``. Prompts are encoded; ``given`` and ``held_out_given`` are the same in the caller's own
    words, which are what every step begins with."""

    prompts: list[list[int]]
    held_out: list[list[int]]
    given: Prompts
    held_out_given: Prompts
    steps: int
    out: Path
    eval_every: int
    save_every: int
    keep: int | None
    resume: bool
    methods: Methods
    """Methods whose credit ``report.html`` shows, besides the trainer's own."""

    def __post_init__(self) -> None:
        make_plain(self)
        least = {"steps": 1, "eval_every": 1, "save_every": 0, **({} if self.keep is None else {"keep": 1})}
        given = {name: getattr(self, name) for name in least}
        wrong = [name for name, value in given.items() if type(value) is not int or value < least[name]]
        if wrong:
            said = "; ".join(
                f"{name} must be a whole number, {least[name]} or more, got {given[name]!r}" for name in wrong
            )
            raise ValueError(f"fit: {said}")

    @property
    def shown(self) -> Prompts:
        """Prompts whose responses are written to samples.jsonl."""
        few = range(min(SHOWN, len(self.given)))
        return self.held_out_given if self.held_out else [self.given[place] for place in few]


@final
class Fit:
    """One call of ``PPOTrainer.fit``."""

    def __init__(self, trainer: Trainer, plan: Plan) -> None:
        self.trainer, self.plan, self.run = trainer, plan, RunFolder(plan.out)
        self.figures: dict[str, float] = {}

    def __call__(self) -> None:
        """Begin or resume the run, and take its steps."""
        with lasting_output():
            require_same("arguments of fit", self._arguments())
            resumed = self.plan.resume and by_first(lambda: self.run.begun)
            before = None if resumed else self._before()
            with self._claimed():
                first = self._take_up() if before is None else self._begin(*before)
                self._loop(first)

    def _arguments(self) -> dict[str, object]:
        """Those that decide how many steps are taken, and what is done between them."""
        plan = self.plan
        return {
            "steps": plan.steps,
            "eval_every": plan.eval_every,
            "save_every": plan.save_every,
            "resume": plan.resume,
            "out": str(plan.out),
            **self._prompts(),
        }

    def _loop(self, first: int) -> None:
        last, who = first + self.plan.steps, label_of(self.trainer.redistributor, self.plan.methods)
        begun = self.trainer.steps_done
        silent = None if writes() else True  # None: no progress bar in a log file
        if writes():
            tqdm.write(f"{who}: {_said(self.plan, self.trainer.config)}", file=sys.stderr)
        with (
            page_at_the_end(self.run.path) if writes() else contextlib.nullcontext(),
            stop_requests() as asked,
            tqdm(total=last, initial=begun, desc=who, unit="step", dynamic_ncols=True, disable=silent) as bar,
        ):
            while self.trainer.steps_done < last and not self._asked_to_stop(asked):
                self._step(last)
                bar.set_postfix(_postfix(self.figures))
                bar.update()
            self._end(asked, first)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """The right to write into the folder, which the process that writes takes for all."""
        with contextlib.ExitStack() as held:
            by_first(lambda: held.enter_context(self.run.claimed()))
            yield

    def _asked_to_stop(self, asked: StopRequest) -> bool:
        """Whether a signal has asked any of the processes to stop; then all know which."""
        asked.signal = next((number for number in gathered(lambda: asked.signal) if number is not None), None)
        return asked.signal is not None

    def _before(self) -> tuple[Rollout | None, dict[str, Any]]:
        """Measurements before a run begins, so that a failing reward fails before anything is written."""
        by_first(self.run.require_free)
        return self._evaluation(), self._models()

    def _begin(self, rollout: Rollout | None, models: dict[str, Any]) -> int:
        settings = {**self._stage(), **self._settings(), "models": models}
        by_first(self.run.require_free)
        by_first(lambda: self.run.begin(settings))
        self.trainer.run = self._run(models)
        self._write_evaluation(rollout)
        self._write_page(rollout, self.trainer.steps_done + self.plan.steps)
        return self.trainer.steps_done

    def _stage(self) -> dict[str, int | bool]:
        return {"first_step": self.trainer.steps_done, "trained": self.trainer.trained}

    def _take_up(self) -> int:
        """Compare with the earlier run, restore it, and cut its records; return the step that the run began with.

        Raises:
            ValueError: settings or models differ from those of the run.
        """
        noted = by_first(self.run.settings)
        first, trained, models = (noted.pop(name) for name in ("first_step", "trained", "models"))
        changed = changed_settings(noted, self._settings())
        now = self._models() if not changed else {}
        changed = changed or [*changed_models(models, now, self.trainer.policy.compute_dtype)]
        if changed:
            raise ValueError(
                f"fit: {self.plan.out} holds a run with other settings: {'; '.join(changed)}. Go on with those of the "
                "run, or train into another folder"
            )
        self.trainer.run = self._run(models)
        newest = by_first(lambda: self.run.newest_checkpoint(self.trainer.why_not_restored))
        if newest is not None:
            self.trainer.restore(newest)
        elif self._stage() != {"first_step": first, "trained": trained}:
            raise ValueError(
                f"fit: {self.plan.out} holds no checkpoint, and its run began at step {first}, but this trainer is at "
                f"step {self.trainer.steps_done}, or in the middle of one; give a trainer at step {first}"
            )
        if self.trainer.steps_done > first + self.plan.steps:
            raise ValueError(
                f"fit: the run in {self.plan.out} is at step {self.trainer.steps_done} already, and steps "
                f"{self.plan.steps} asks for {first + self.plan.steps} in all"
            )
        last = self.trainer.steps_done if newest else first - 1  # without a checkpoint, its first samples come again
        by_first(lambda: self._rewind(last))
        if newest is None:
            rollout = self._evaluation()
            self._write_evaluation(rollout)
            self._write_page(rollout, first + self.plan.steps)
        return int(first)

    def _rewind(self, last: int) -> None:
        """Drop what was written after the step ``last``."""
        sweep(self.run.path)
        self.run.cut(last)
        for logger in self.trainer.loggers:
            if isinstance(logger, Rewinds):
                logger.rewind(last)

    def _settings(self) -> dict[str, Any]:
        plan = self.plan
        return {
            **self.trainer.settings,
            **self._prompts(),
            "eval_every": plan.eval_every,
        }

    def _run(self, models: dict[str, Any]) -> dict[str, Any]:
        return {**self._prompts(), "models": models}

    def _prompts(self) -> dict[str, str]:
        plan = self.plan
        return prompt_settings(plan.prompts, plan.held_out, plan.given, plan.held_out_given)

    def _models(self) -> dict[str, Any]:
        """A measurement of the models, the same in all processes up to rounding."""
        longest = self.trainer.config.max_length[1]
        every = gathered(lambda: model_measurement(self.trainer, self.plan.prompts, longest))
        for place, measured in enumerate(every):
            if changed := [*changed_models(every[0], measured, self.trainer.policy.compute_dtype)]:
                said = (
                    "; ".join(changed).replace(" were ", " are in rank 0 ").replace(" and are ", f", in rank {place} ")
                )
                raise ValueError(f"fit: the processes hold different models: {said}. Load the same ones in each")
        return every[0]

    def _step(self, last: int) -> None:
        """Take a step and record its metrics."""
        self.figures = figures = self._guarded_step()
        done, plan, rollout = self.trainer.steps_done, self.plan, None
        due = done % plan.eval_every == 0 or done == last
        if due:
            rollout = self._evaluated()
            figures |= self._evaluation_figures(rollout)
        by_first(lambda: self._log(done, figures))
        if due:
            self._write_page(rollout, last)
        sound = self.trainer.guard.in_a_row == 0  # else the last good checkpoint might be pruned for a bad one
        if done == last or (sound and plan.save_every and done % plan.save_every == 0):
            self._save()

    def _log(self, done: int, figures: dict[str, float]) -> None:
        with contextlib.closing(self.run.record(METRICS)) as metrics:
            for logger in (metrics, *self.trainer.loggers):
                logger.log(done, figures)

    def _evaluated(self) -> Rollout | None:
        """Evaluate and record samples; None if a number cannot be used."""
        try:
            rollout = self._evaluation()
        finally:
            self._write_skipped()
        self._write_evaluation(rollout)
        return rollout

    def _evaluation_figures(self, rollout: Rollout | None) -> dict[str, float]:
        """Figures of held-out prompts, where there are any."""
        figures = evaluation_figures(rollout) if rollout and self.plan.held_out else {}
        return {f"eval_{name}": value for name, value in figures.items()}

    def _write_page(self, rollout: Rollout | None, last: int) -> None:
        by_first(lambda: update_page(self.run.path, self.trainer, rollout, last, self.plan.methods))

    def _evaluation(self) -> Rollout | None:
        """None, and a record with the guard, where a number of it cannot be used."""
        try:
            return self.trainer.evaluation_rollout(self.plan.shown)
        except FloatingPointError as error:
            self.trainer.guard.skip({"step": self.trainer.steps_done, "what": "evaluation", "reason": str(error)})
            return None

    def _write_evaluation(self, rollout: Rollout | None) -> None:
        self._write_skipped()
        if rollout is not None:
            by_first(lambda: self._write_samples(rollout))

    def _guarded_step(self) -> dict[str, float]:
        """A step, or, where its rollout has figures that are not finite, its being skipped."""
        trainer = self.trainer
        try:
            return trainer.step(shuffled_batch(self.plan.given, trainer.config, trainer.steps_done))
        except UnusableRollout as error:
            return trainer.skip(str(error))
        finally:
            self._write_skipped()

    def _end(self, asked: StopRequest, first: int) -> None:
        """If a signal ended the loop, save what is not saved and exit as the signal would have."""
        if asked.signal is None:
            return
        done = self.trainer.steps_done
        if done > first and not by_first(lambda: f"checkpoint-{done}" in _names(checkpoints(self.run.path))):
            self._save()
        raise SystemExit(asked.exit_status)

    def _save(self) -> None:
        state = self.trainer.state()
        with gathered_weights(self.trainer.policy):
            by_first(lambda: self._write_checkpoint(state))

    def _write_checkpoint(self, state: TrainerState) -> None:
        self.run.flush()
        trainer = self.trainer
        folder = self.run.path / f"checkpoint-{trainer.steps_done}"
        save_checkpoint(folder, trainer.policy, state, self.figures)
        if self.plan.keep is not None and trainer.guard.in_a_row == 0:
            prune(self.run.path, self.plan.keep)

    def _write_samples(self, rollout: Rollout) -> None:
        prompts, responses = own_texts(self.trainer.policy, first_rows(rollout, SHOWN))
        step, lengths = self.trainer.steps_done, rollout.sequences.response_lengths
        records: list[dict[str, Any]] = [
            {
                "step": step,
                "prompt": prompt,
                "response": response,
                "score": float(rollout.raw_scores[row]),
                "length": int(lengths[row]),
                "finished": bool(rollout.sequences.finished[row]),
            }
            for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        with contextlib.closing(self.run.record(SAMPLES)) as samples:
            for record in records:
                samples.write(record)
        for logger in self.trainer.loggers:
            if isinstance(logger, LogsSamples):
                logger.log_samples(step, records)

    def _write_skipped(self) -> None:
        """Write the guard's records to disk."""
        if not (self.trainer.guard.skipped and writes()):
            self.trainer.guard.skipped.clear()
            return
        with contextlib.closing(self.run.record(SKIPPED)) as file:
            for record in self.trainer.guard.skipped:
                file.write(record)
        self.trainer.guard.skipped.clear()


def _names(folders: Iterable[Path]) -> set[str]:
    return {folder.name for folder in folders}


def _said(plan: Plan, config: PPOConfig) -> str:
    """One line on what the run is about to do, above all the response lengths."""
    low, high = config.max_length
    drawn = "" if low == high else f" (each response's limit is drawn from {low} to {high})"
    return (
        f"{counted(plan.steps, 'step')} of {counted(config.rollout_batch_size, 'response')} of {config.min_length} to "
        f"{high} tokens{drawn}; {counted(len(plan.prompts), 'prompt')}, minibatches of {config.minibatch_size}"
    )


def evaluation_figures(rollout: Rollout) -> dict[str, float]:
    """Score, k1 and length."""
    figures = rollout_metrics(rollout)
    return {name: figures[name] for name in ("score", "kl", "length")}


def _postfix(figures: dict[str, float]) -> dict[str, str]:
    shown = {"reward": "score", "KL": "kl", "value loss": "value_loss", "tok/s": "tokens_per_second"}
    return {label: f"{figures[name]:z.3g}" for label, name in shown.items() if name in figures}
