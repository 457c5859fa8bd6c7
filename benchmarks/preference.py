"""Which of two checkpoints answers better: the same prompts and uniforms for both, judged pair by pair.

``python -m benchmarks.preference --first DIR --second DIR --prompts FILE --out OUT`` with ``--reward DIR``, or with
``--endpoint URL --model NAME``. OUT then holds run.json, prompts.json (rows used and left out), responses-first.json
and responses-second.json (AlpacaEval's format), verdicts.jsonl, table.md and results.json. Call again to resume, or to
ask another judge about the same responses: nothing that is there is drawn or judged twice. From Python,
:func:`compare` takes any judge, or a function.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from benchmarks.base.command_line import parse
from benchmarks.base.json_files import fingerprint, jsonable, write_json
from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.run_folder import claim_folder, require_claimable, run_record
from benchmarks.judging.chat_endpoint import JUDGE_PROMPT, EndpointError, EndpointJudge
from benchmarks.judging.judges import (
    Asked,
    Judge,
    RewardJudge,
    as_judge,
)
from benchmarks.judging.sampled_responses import (
    Checkpoint,
    KeptPrompt,
    KeptPrompts,
    Response,
    Sampling,
    fitting,
    model_fingerprint,
    read_prompts,
    responses,
)
from benchmarks.judging.verdicts import Question, Verdict, ask_all
from benchmarks.judging.win_rates import NOTES, JudgedPair, WinRates, decision, rows, verdict, win_rates
from benchmarks.reporting import tables
from benchmarks.reporting.tables import Table
from models.rewards.loading import load_reward_model
from models.rewards.score_kinds import ScoreKind
from rlhf_core.pages.document import visible

JUDGES = (
    *("reward", "reward_score", "reward_template", "reward_end", "endpoint", "model", "api_key_env", "judge_prompt"),
    *("answer_tokens", "timeout_seconds", "attempts", "backoff_seconds", "plain_http"),
)
MADE_BY = "benchmarks.preference"
MAY_CHANGE = ("resamples", "judge", *JUDGES)
"""What a later call may ask for differently: responses stay the same, and every verdict names its judge."""


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """Compare two checkpoints by pairwise preference; the judge is a reward model or a chat endpoint."""

    first: str
    """One checkpoint: a folder with weights and tokenizer, as checkpoint-N/policy of a run, or a hub name."""
    second: str
    """The other."""
    prompts: str
    """A file of rows with a text `instruction` or `prompt` (.json, .jsonl and more, see benchmarks.data.records)."""
    out: str = "runs/preference"
    """Folder of the results. Calling again resumes; another judge may be asked about the same responses."""
    first_name: str = "first"
    """What the first is called in tables and as AlpacaEval's `generator`."""
    second_name: str = "second"
    """What the second is called."""
    sampling: Sampling = field(default_factory=Sampling)
    reward: str | None = None
    """Judge: a reward model, folder or hub name."""
    reward_score: ScoreKind = "single_logit"
    """How a score is read off it."""
    reward_template: str = "{instruction}{response}"
    """What it is given; a format string."""
    reward_end: Literal["eos", "nothing"] = "eos"
    """What follows that: EOS, as this project's reward models learn, or nothing."""
    endpoint: str | None = None
    """Judge: an OpenAI-compatible URL such as https://host/v1. Instructions and responses are sent there."""
    model: str | None = None
    """Name of the model there."""
    api_key_env: str | None = None
    """NAME of the environment variable that holds the API key; the key itself is never written or printed."""
    judge_prompt: str = JUDGE_PROMPT
    """What the model is asked; a format string of instruction, first, second, and mark, which no text can contain."""
    answer_tokens: int = 16
    """Longest answer of that model."""
    timeout_seconds: float = 60.0
    """Longest wait for one answer."""
    attempts: int = 5
    """Tries after time-outs, broken connections, rate limits and server errors, the first one counted."""
    backoff_seconds: float = 1.0
    """Wait before the second try; doubles from one to the next."""
    plain_http: Literal["loopback", "anywhere"] = "loopback"
    """Where an http:// endpoint may be; anyone on the way can read what is sent."""
    resamples: int = 999
    """Bootstrap resamples for the interval of the win rate at equal length."""
    overwrite: bool = False
    """Delete what an earlier comparison left in the out folder."""

    def __post_init__(self) -> None:
        if self.first == self.second or self.first_name == self.second_name:
            raise ValueError(f"two different checkpoints with different names, not {self.first} and {self.second}")
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("--endpoint URL and --model NAME belong together")
        if self.resamples < 1:
            raise ValueError(f"resamples must be 1 or more, got {self.resamples}")

    def checkpoints(self) -> tuple[Checkpoint, Checkpoint]:
        """Both, in order."""
        return (
            Checkpoint(source=self.first, name=self.first_name),
            Checkpoint(source=self.second, name=self.second_name),
        )

    def judge(self) -> Judge:
        """The judge these settings name; raises ValueError unless it is exactly one that can be."""
        if (self.reward is None) == (self.endpoint is None):
            raise ValueError("name one judge: --reward FOLDER, or --endpoint URL with --model NAME")
        if self.reward is None:
            shared = {name: getattr(self, name) for name in EndpointJudge.__dataclass_fields__ if name != "url"}
            return EndpointJudge(url=str(self.endpoint), **shared)
        model = load_reward_model(
            self.reward,
            score=self.reward_score,
            four_bit=self.sampling.four_bit,
            dtype=self.sampling.dtype,
            device=self.sampling.device,
        )
        return RewardJudge(
            model=model,
            source=self.reward,
            weights=model_fingerprint(self.reward),
            template=self.reward_template,
            end=self.reward_end,
        )


@dataclass(frozen=True, kw_only=True)
class PreferenceReport:
    """Lines of the table (title, text), one sentence, and what they are about and made from."""

    names: tuple[str, str]
    judge: str
    rows: tuple[tuple[str, str], ...]
    verdict: str
    rates: WinRates
    counts: Mapping[str, float]

    @property
    def table(self) -> Table:
        """The same as it is read; nothing in it can control a terminal."""
        lines = tuple((visible(title), visible(text)) for title, text in self.rows)
        return Table(title="", columns=("", ""), rows=lines, notes=NOTES, verdict=visible(self.verdict))


def compare(
    settings: PreferenceSettings, console: Console, judge: Judge | Asked | str | None = None
) -> PreferenceReport:
    """Draw and judge what is missing under ``settings.out``, write everything there, print table and verdict.

    ``judge``: any judge, or function of (instruction, first, second), itself or as "module:function", in place of one
    that the settings name.

    Raises:
        FileExistsError: the folder holds a comparison of other checkpoints, prompts or settings, all named, or
            something that is not ours.
        ValueError: a setting, prompt or answer that cannot be.
        EndpointError: the endpoint gave up.
    """
    if judge is not None and (settings.reward, settings.endpoint) != (None, None):
        raise ValueError("two judges: leave out --reward and --endpoint, or the judge that is passed")
    chosen, out = settings.judge() if judge is None else as_judge(judge), Path(settings.out)
    recorded = {**jsonable(settings), "judge": jsonable(chosen.identity)}
    record = run_record(recorded, {}, made_by=MADE_BY)
    require_claimable(out, record, overwrite=settings.overwrite, may_change=MAY_CHANGE)
    prompts = usable_prompts(settings, out / "prompts.json")
    console.print(prompts.summary(), markup=False, highlight=False)
    sources = {"first": model_fingerprint(settings.first), "second": model_fingerprint(settings.second)}
    datasets = {**sources, "prompts": fingerprint([Path(settings.prompts)])}
    claim_folder(out, {**record, "datasets": datasets}, overwrite=settings.overwrite, may_change=MAY_CHANGE)
    write_json(out / "prompts.json", {"kept": [prompt.row for prompt in prompts.kept], "left_out": prompts.left_out})
    first, second = (
        responses(settings.sampling, checkpoint, prompts.kept, out / f"responses-{which}.json")
        for which, checkpoint in zip(("first", "second"), settings.checkpoints(), strict=True)
    )
    asked = questions(prompts.kept, first, second, chosen)
    said: dict[int, list[Verdict]] = {prompt.row: [] for prompt in prompts.kept}
    for question, answer in zip(asked, ask_all(chosen, asked, out / "verdicts.jsonl"), strict=True):
        said[question.row].append(answer)
    report = reduced(settings, first, second, list(said.values()), str(chosen.identity["name"]))
    write(report, out)
    tables.show(report.table, console)
    files = "table.md, results.json, verdicts.jsonl, responses-first.json, -second.json"
    console.print(f"written to {out}: {files}", markup=False, highlight=False)
    return report


def usable_prompts(settings: PreferenceSettings, file: Path) -> KeptPrompts:
    """Rows of the prompt file that both checkpoints can be given; ``file``, where an earlier call left it, says which
    those are."""
    prompts = read_prompts(Path(settings.prompts))
    if settings.overwrite or not file.is_file():
        return fitting(settings.sampling, prompts, settings.checkpoints())
    earlier = json.loads(file.read_text(encoding="utf-8"))
    kept = tuple(prompt for prompt in prompts.kept if prompt.row in set(earlier["kept"]))
    return KeptPrompts(kept=kept, left_out=earlier["left_out"])


def questions(
    prompts: Sequence[KeptPrompt], first: Sequence[Response], second: Sequence[Response], judge: Judge
) -> list[Question]:
    """What the judge is to be asked: every pair, in both orders where order may matter; nothing about equal texts."""
    asked: list[Question] = []
    for prompt, one, other in zip(prompts, first, second, strict=True):
        forward = Question(
            row=prompt.row,
            order="first_second",
            instruction=prompt.instruction,
            shown_first=one.output,
            shown_second=other.output,
        )
        backward = replace(forward, order="second_first", shown_first=other.output, shown_second=one.output)
        if one.output != other.output:
            asked += [forward, backward] if judge.order_sensitive else [forward]
    return asked


def reduced(
    settings: PreferenceSettings,
    first: Sequence[Response],
    second: Sequence[Response],
    verdicts: Sequence[Sequence[Verdict]],
    judge: str,
) -> PreferenceReport:
    """Table and sentence from the responses and each prompt's verdicts: one an order, none for a pair of equal texts.

    Raises:
        ValueError: not one pair has readable verdicts.
    """
    pairs = [
        JudgedPair(
            decisions=tuple(decision(one.probability) for one in said if one.probability is not None),
            first_length=len(a.output),
            second_length=len(b.output),
        )
        for a, b, said in zip(first, second, verdicts, strict=True)
        if all(one.probability is not None for one in said)
    ]
    rates, names = win_rates(pairs, resamples=settings.resamples), (settings.first_name, settings.second_name)
    margins = [said[0].margin for said in verdicts if said and said[0].margin is not None]
    counts: dict[str, float] = {
        "prompts": len(verdicts),
        "equal_texts": sum(not said for said in verdicts),
        "answers": sum(len(said) for said in verdicts),
        "unreadable": sum(one.probability is None for said in verdicts for one in said),
        "pairs_left_out": len(verdicts) - len(pairs),
        "first_cut": sum(not one.finished for one in first),
        "second_cut": sum(not one.finished for one in second),
        **({"mean_margin": float(np.mean(margins))} if margins else {}),
    }
    lines = (*rows(rates, *names), *_count_rows(counts, names, settings.sampling.max_tokens))
    said = verdict(rates, *names, judge)
    return PreferenceReport(names=names, judge=judge, rows=lines, verdict=said, rates=rates, counts=counts)


def _count_rows(counts: Mapping[str, float], names: tuple[str, str], max_tokens: int) -> list[tuple[str, str]]:
    templates = [
        ("equal texts, counted as ties", "{equal_texts} of {prompts} pairs"),
        (f"cut at {max_tokens} tokens, {names[0]} / {names[1]}", "{first_cut} / {second_cut}"),
        ("unreadable answers", "{unreadable} of {answers}; pairs left out: {pairs_left_out}"),
    ]
    if "mean_margin" in counts:
        templates.append((f"mean score of {names[0]} less that of {names[1]}", "{mean_margin:+.4f}"))
    return [(title, text.format_map(counts)) for title, text in templates]


def write(report: PreferenceReport, out: Path) -> None:
    """``table.md`` to read and ``results.json`` to compute on; an undefined number is null there."""
    (out / "table.md").write_text(tables.markdown(report.table), encoding="utf-8")
    write_json(out / "results.json", _without_nan(jsonable(report) | {"notes": list(NOTES)}))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    settings = parse(PreferenceSettings, MADE_BY, argv)
    quiet_libraries()
    try:
        compare(settings, Console())
    except (ValueError, OSError) as error:  # OSError: transformers', too, for a model that is not there
        print(f"python -m {MADE_BY}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except EndpointError as error:
        raise SystemExit(f"error: {error}; call again to go on from there") from error


if __name__ == "__main__":
    main()
