"""The page of a run, written while it runs: the records that ``fit`` keeps for it, and the page made from them."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import join
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from rlhf_core.batching import Budgets
from rlhf_core.checks import usable
from rlhf_core.config import PPOConfig
from rlhf_core.evidence_of_rollout import with_evidence
from rlhf_core.files.plain_files import read_object
from rlhf_core.files.plain_files import replace as write_whole
from rlhf_core.masking import last_token
from rlhf_core.names import method_name
from rlhf_core.pages.credit_maps import credit_maps, decoder
from rlhf_core.pages.heat_map import CreditMap
from rlhf_core.pages.parts import noted
from rlhf_core.pages.run_page import page
from rlhf_core.pages.run_record import PAGE, REPORT, read_run
from rlhf_core.run.description import SECRET
from rlhf_core.run.model_card import versions
from rlhf_core.scorers.callables import in_own_words, texts
from rlhf_core.types import Policy, Redistributor, RewardModel, Rollout

Methods = Mapping[str, Redistributor]
"""Redistributors by their labels."""
SHOWN = 4
"""Responses whose texts and credit are shown."""


@runtime_checkable
class OnPage(Protocol):
    """The parts of a trainer that its page shows."""

    policy: Policy
    reward: RewardModel
    redistributor: Redistributor
    config: PPOConfig
    budgets: Budgets
    steps_done: int


def write_page(folder: Path) -> None:
    """Write ``report.html`` from what stands in a run's folder: whole, or not at all.

    Raises:
        ValueError: no run, or a damaged file of it; names it.
        OSError: there is no room, or another fault of the disk.
    """
    write_whole(folder / PAGE, page(read_run(folder)).encode())


def update_page(folder: Path, trainer: OnPage, rollout: Rollout | None, last_step: int, methods: Methods) -> None:
    """Note the credit of an evaluation's ``rollout`` and write the page. The run does not depend on either: errors are
    printed to standard error and otherwise ignored."""
    with _told_where_it_fails(folder):
        found = report(trainer, last_step, methods)
        with _told_where_it_fails(folder):  # a page without credit is better than none
            if rollout is not None:
                found |= {"credit_step": trainer.steps_done, "credit": noted(credit(trainer, rollout, methods))}
        write_report(folder, found)
        write_page(folder)


def write_report(folder: Path, found: Mapping[str, Any]) -> None:
    """Write what the page shows besides metrics and samples, as JSON."""
    write_whole(folder / REPORT, (json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextmanager
def page_at_the_end(folder: Path) -> Iterator[None]:
    """Write the page once more after the block, even after an error: you will want to see a run that failed."""
    try:
        yield
    except Exception as error:
        with _told_where_it_fails(folder):
            noted_so_far = read_object(folder / REPORT)
            write_report(folder, noted_so_far | {"error": f"{type(error).__name__}: {error}"})
        raise
    finally:
        with _told_where_it_fails(folder):
            write_page(folder)


@contextmanager
def _told_where_it_fails(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # anything that a user's method, a model or the disk may raise
        said = f"{folder / PAGE} is not up to date, which the run does not depend on: {type(error).__name__}: {error}"
        tqdm.write(said, file=sys.stderr)


def report(trainer: OnPage, last_step: int, methods: Methods) -> dict[str, Any]:
    """What the page shows besides metrics and samples."""
    return {
        "method": label_of(trainer.redistributor, methods),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "last_step": last_step,
        "command": command(),
        "versions": dict(versions()),
        "conserving": trainer.redistributor.conserving,
    }


def command() -> str:
    """How this process was started, as far as Python tells: what repeats it, from the same working directory. The
    values of keys, tokens, secrets and passwords are left out. Empty for a session that was typed in."""
    first, *rest = sys.argv or [""]
    spec, path = getattr(sys.modules.get("__main__"), "__spec__", None), Path(first)
    if spec is not None and path.suffix == ".py":
        start = ["python", "-m", spec.name.removesuffix(".__main__")]
    elif path.name == "__main__.py":  # a worker that a package's command started
        start = ["python", "-m", path.parent.name]
    elif path.suffix == ".py":
        start = ["python", first]
    else:
        start = [path.name]
    return "" if first in ("", "-c", "-") else join([*start, *_without_secrets(rest)])


def _without_secrets(words: Sequence[str]) -> Iterator[str]:
    """Command-line words, where "..." stands for the value of a flag that holds a secret."""
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, _ = word.partition("=")
        if equals and flag.startswith("-") and SECRET.search(flag):
            yield f"{flag}=..."
        else:
            yield "..." if before.startswith("-") and SECRET.search(before) else word


@torch.no_grad()
def credit(trainer: OnPage, rollout: Rollout, methods: Methods) -> list[CreditMap]:
    """Credit of the first responses, token by token: under the trainer's method, under sparse and uniform, and under
    those of ``methods`` that need no evidence beyond its own."""
    own = trainer.redistributor
    shown = with_evidence(
        first_rows(rollout, SHOWN),
        own.needs,
        policy=trainer.policy,
        reward=trainer.reward,
        config=trainer.config,
        budgets=trainer.budgets,
    )
    rows = {label_of(own, methods): own(shown)}
    candidates = {name: method(shown) for name, method in methods.items() if method.needs <= shown.evidence.keys()}
    for name, row in {**candidates, **baselines(shown)}.items():
        if not any(torch.allclose(row, other) for other in rows.values()):
            rows[name] = row
    known = {name: row for name, row in rows.items() if bool(usable(row).all())}
    return credit_maps(shown, known, decoder(trainer.policy))


def label_of(method: Redistributor, methods: Methods) -> str:
    """The label of a method among ``methods``, or its own name."""
    alike = (label for label, other in methods.items() if repr(other) == repr(method))
    return next(alike, method_name(method))


def baselines(rollout: Rollout) -> dict[str, Tensor]:
    """Credit that needs only the score: all of it on the last token, and equal parts."""
    mask, scores = rollout.sequences.response_mask, rollout.scores[:, None]
    return {
        "sparse": torch.where(last_token(mask), scores, 0),
        "uniform": torch.where(mask, scores / mask.sum(1, keepdim=True), 0),
    }


def first_rows(rollout: Rollout, rows: int) -> Rollout:
    """The first responses of a rollout, without evidence."""
    sequences = rollout.sequences.select(torch.arange(min(rows, len(rollout.sequences))))
    count, width = sequences.response_mask.shape
    tokens = {name: getattr(rollout, name)[:count, :width] for name in ("logprobs", "ref_logprobs", "values", "kl")}
    scores = {name: getattr(rollout, name)[:count] for name in ("raw_scores", "scores")}
    return replace(rollout, sequences=sequences, evidence={}, **tokens, **scores)


def own_texts(policy: Policy, rollout: Rollout) -> tuple[list[str], list[str]]:
    """Prompts, in the caller's words where those are texts, and responses."""
    sequences = rollout.sequences
    decoded, responses = texts(policy.decode, sequences.prompts(), sequences.responses())
    own = in_own_words(decoded, sequences.given)
    return [said if isinstance(said, str) else text for said, text in zip(own, decoded, strict=True)], responses
