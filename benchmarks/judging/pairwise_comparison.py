"""Compare two checkpoints: both answer the same prompts, a judge compares each pair, and the verdicts are
summarised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.base.json_files import fingerprint, jsonable, write_json
from benchmarks.base.run_folder import claim_folder, require_claimable, run_record
from benchmarks.judging.chat_endpoint import EndpointJudge
from benchmarks.judging.judges import Asked, Judge, as_judge
from benchmarks.judging.reward_judge import RewardJudge
from benchmarks.judging.sampled_responses import Response, checkpoints, model_fingerprint, responses, usable_prompts
from benchmarks.judging.settings import PreferenceSettings
from benchmarks.judging.verdicts import Verdict, ask_all, questions
from benchmarks.judging.win_rates import NOTES, JudgedPair, WinRates, decision, rows, verdict, win_rates
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.tables import Table
from models.rewards.loading import load_reward_model
from rlhf_core.names import counted
from rlhf_core.pages.document import visible

MAY_CHANGE = ("resamples", "judge", "reward", "endpoint")
"""What a later call may ask for differently: responses stay the same, and every verdict names its judge."""


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
    if judge is not None and (settings.reward.model or settings.endpoint.url):
        raise ValueError("two judges: leave out --reward.model and --endpoint.url, or the judge that is passed")
    chosen, out = named_judge(settings) if judge is None else as_judge(judge), Path(settings.out)
    recorded = {**jsonable(settings), "judge": jsonable(chosen.identity)}
    record = run_record(recorded, {}, made_by="benchmarks.preference")
    require_claimable(out, record, overwrite=settings.overwrite, may_change=MAY_CHANGE)
    prompts = usable_prompts(settings, out / "prompts.json")
    console.print(prompts.summary(), markup=False, highlight=False)
    sources = {"first": model_fingerprint(settings.first), "second": model_fingerprint(settings.second)}
    datasets = {**sources, "prompts": fingerprint([Path(settings.prompts)])}
    claim_folder(out, {**record, "datasets": datasets}, overwrite=settings.overwrite, may_change=MAY_CHANGE)
    write_json(out / "prompts.json", {"kept": [prompt.row for prompt in prompts.kept], "left_out": prompts.left_out})
    first, second = (
        responses(settings.sampling, checkpoint, prompts.kept, out / f"responses-{which}.json")
        for which, checkpoint in zip(("first", "second"), checkpoints(settings), strict=True)
    )
    asked = questions(prompts.kept, first, second, chosen)
    said: dict[int, list[Verdict]] = {prompt.row: [] for prompt in prompts.kept}
    for question, answer in zip(asked, ask_all(chosen, asked, out / "verdicts.jsonl"), strict=True):
        said[question.row].append(answer)
    report = reduced(settings, first, second, list(said.values()), str(chosen.identity["name"]))
    write_json(out / "results.json", _without_nan(jsonable(report) | {"notes": list(NOTES)}))
    publish(report.table, {}, out, console)
    console.print("and responses-first.json, responses-second.json, verdicts.jsonl, results.json", highlight=False)
    return report


def named_judge(settings: PreferenceSettings) -> Judge:
    """The judge these settings name; raises ValueError unless it is exactly one that can be."""
    settings.require_one_judge()
    reward = settings.reward
    if not reward.model:
        return EndpointJudge(settings=settings.endpoint)
    model = load_reward_model(reward.model, score=reward.score, **settings.sampling.held)
    return RewardJudge(settings=reward, model=model, weights=model_fingerprint(reward.model))


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
    first, second = names
    unreadable = f"{counts['unreadable']} of {counts['answers']}; pairs left out: {counts['pairs_left_out']}"
    rows = [
        ("equal texts, counted as ties", f"{counts['equal_texts']} of {counted(int(counts['prompts']), 'pair')}"),
        (f"cut at {max_tokens} tokens, {first} / {second}", f"{counts['first_cut']} / {counts['second_cut']}"),
        ("unreadable answers", unreadable),
    ]
    if "mean_margin" in counts:
        rows.append((f"mean score of {first} less that of {second}", f"{counts['mean_margin']:+z.4f}"))
    return rows


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
