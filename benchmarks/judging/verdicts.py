"""A judge's verdict on every pair, asked for once and kept in a file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from benchmarks.base.json_files import fingerprint
from benchmarks.judging.judges import Judge, Scores, Unreadable, excerpt, probability
from benchmarks.judging.sampled_responses import KeptPrompt, Response

MOST_UNREADABLE = 0.2


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two responses in one order; ``row`` is that of the prompt in its file."""

    row: int
    order: Literal["first_second", "second_first"]
    instruction: str
    shown_first: str
    shown_second: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An answer: ``probability`` that the response shown first is better, None if the answer is ``unreadable``;
    ``margin`` is the score shown first minus the other, None if the judge has no scores."""

    probability: float | None
    margin: float | None
    unreadable: str | None


def questions(
    prompts: Sequence[KeptPrompt], first: Sequence[Response], second: Sequence[Response], judge: Judge
) -> list[Question]:
    """What the judge is to be asked: every pair, in both orders where order may matter; nothing about equal texts."""
    asked: list[Question] = []
    for prompt, one, other in zip(prompts, first, second, strict=True):
        about: dict[str, Any] = {"row": prompt.row, "instruction": prompt.instruction}
        forward = Question(**about, order="first_second", shown_first=one.output, shown_second=other.output)
        backward = Question(**about, order="second_first", shown_first=other.output, shown_second=one.output)
        if one.output != other.output:
            asked += [forward, backward] if judge.order_sensitive else [forward]
    return asked


def ask_all(judge: Judge, questions: Sequence[Question], file: Path) -> list[Verdict]:
    """A verdict for every question. Each is appended to ``file`` at once, and what this judge, by its identity, said
    there about the same texts in the same order is not asked again.

    Raises:
        ValueError: more than 20 % of the answers are unreadable, raised as soon as that is certain.
        EndpointError: the endpoint gave up; what was answered until then is kept.
    """
    identity, known = dict(judge.identity), _read_verdicts(file)
    named = json.dumps(identity, sort_keys=True)
    verdicts: list[Verdict] = []
    with file.open("a", encoding="utf-8") as lines:
        for question in tqdm(questions, desc="judging", disable=None):
            key = fingerprint([named, question.instruction, question.shown_first, question.shown_second])
            if key not in known:
                known[key] = _ask(judge, question)
                about: dict[str, Any] = {
                    "row": question.row,
                    "order": question.order,
                    "judge": identity["name"],
                    "key": key,
                }
                lines.write(json.dumps({**about, **vars(known[key])}, allow_nan=False) + "\n")
                lines.flush()
            verdicts.append(known[key])
            _require_readable(verdicts, len(questions), file)
    return verdicts


def _ask(judge: Judge, question: Question) -> Verdict:
    try:
        said = judge.prefer(question.instruction, question.shown_first, question.shown_second)
    except Unreadable as answer:
        return Verdict(probability=None, margin=None, unreadable=str(answer))
    margin = said.first - said.second if isinstance(said, Scores) else None
    return Verdict(probability=probability(said), margin=margin, unreadable=None)


def _read_verdicts(file: Path) -> dict[str, Verdict]:
    """Verdicts by key. A last line without its end was cut by an interruption and is taken off."""
    content = file.read_bytes() if file.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        file.write_bytes(whole)
    known: dict[str, Verdict] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            said = json.loads(line)
            known[said["key"]] = Verdict(**{name: said[name] for name in Verdict.__dataclass_fields__})
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{file}:{number} is not a verdict ({error!r}); delete the line to ask again") from error
    return known


def _require_readable(verdicts: Sequence[Verdict], questions: int, file: Path) -> None:
    unreadable = [verdict.unreadable for verdict in verdicts if verdict.unreadable is not None]
    if len(unreadable) > MOST_UNREADABLE * questions:
        shown = ", ".join(repr(excerpt(answer)) for answer in unreadable[:3])
        raise ValueError(
            f"{len(unreadable)} of {questions} answers are neither A, B nor tie, more than {MOST_UNREADABLE:.0%}: "
            f"{shown} (all in {file}). Take another model or --endpoint.prompt; the responses are kept"
        )
