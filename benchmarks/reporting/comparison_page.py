"""The page of several runs: arms side by side, intervals over seeds, credit, and the verdict."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from benchmarks.base.run_folder import RECORD, read_record
from benchmarks.reporting import comparison_report, comparison_verdict, tables
from benchmarks.reporting.curve_readings import LAST
from benchmarks.reporting.ruined_runs import ruined_runs
from benchmarks.reporting.run_sets import RunSet, find_runs, results, seed_of, sorted_into_arms
from benchmarks.reporting.statistics import Array, Results, band, summarise
from rlhf_core.files.plain_files import read_object, replace
from rlhf_core.names import counted
from rlhf_core.pages import curves, heat_map
from rlhf_core.pages.curves import Chart, Curve, number, signed
from rlhf_core.pages.document import escaped
from rlhf_core.pages.health import health
from rlhf_core.pages.heat_map import CreditMap
from rlhf_core.pages.parts import flat, noted_maps, sample_heading, sample_text, sectioned, settings_table, unbroken
from rlhf_core.pages.run_record import PAGE, REPORT, RunRecord, as_number

PLOTS = {
    "score": ("Score", "The reward per response."),
    "eval_score": ("Held-out score", "The same on prompts that are not trained on."),
    "gold_score": ("True score", "If it falls while the score rises, the policy exploits the reward model."),
    "kl": ("KL, nats per response", "Distance from the reference. Compare scores at equal KL."),
    "length": ("Length, tokens", "Drift without a change of score gains nothing."),
    "value_loss_normalised": (
        "Value loss / within-position variance",
        "The critic's error, comparable between methods. Above 0.5 it is worse than a mean per position.",
    ),
    "explained_variance_over_position": (
        "Explained variance over position",
        "Share of the returns that the critic predicts beyond the mean per position. 1 is everything.",
    ),
    "entropy": ("Entropy, nats per token", "Near 0, the policy has collapsed to few responses."),
}
CHANGE = re.compile(r"[@(]")
"""Where the name of an arm's method ends and what it changes begins."""
MINUS = re.compile(r"(?<![\w.)])-(?=\d)")
"""A hyphen that is a number's sign, and not a part of a name."""
MOST_EXAMPLES = 6
MOST_OPEN = 6
"""Runs beyond which their table is folded."""
MOST_NAMES = 3
"""Folders that a title names at most."""
FOLDERS_ABOVE = 4
"""From a run to its comparison: OUT/runs/PANEL/ARM/seed-N."""
OWN = "own"
"""The task of everybody's own prompts, which says less than the name of the folder."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs, what they are called together, where their page will stand, and what is known of them all."""

    runs: RunSet
    name: str
    home: Path
    record: Mapping[str, Any]
    examples: tuple[CreditMap, ...]


def write(folders: Sequence[Path], path: Path) -> int:
    """Write a page on all runs in ``folders`` to ``path``; how many there are.

    Where all of them are of one comparison, what that noted goes into the page: its name, its settings, and the credit
    of one set of responses under every method. It does not matter where the page is written.

    Raises:
        ValueError: no runs, or a damaged file; names it.
    """
    shared = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    origin, record = _comparison_of(shared)
    noted = read_object(origin / REPORT) if record and (origin / REPORT).is_file() else {}
    runs = sorted_into_arms(find_runs(folders), noted.get("arms", ()))
    task = _task(record)
    names = list(dict.fromkeys(folder.resolve().name for folder in folders))
    own = origin.name if record else ", ".join(names) if len(names) <= MOST_NAMES else shared.name
    comparison = Comparison(
        runs=runs,
        name=own if task in (None, OWN) else task,
        home=path.parent,
        record=record,
        examples=tuple(noted_maps(noted)),
    )
    replace(path, page(comparison).encode())
    return len(runs.runs)


def _comparison_of(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """The comparison that ``folder`` holds or is a part of, and its record; the record is empty where there is none."""
    for place in (folder, *folder.parents[:FOLDERS_ABOVE]):
        record = read_record(place) if (place / RECORD).is_file() else {}
        if _task(record) is not None:
            return place, record
    return folder, {}


def _task(record: Mapping[str, Any]) -> str | None:
    """The task's name in the record of a comparison; None in any other, such as a single run's."""
    settings = record.get("settings")
    named = settings.get("task") if isinstance(settings, dict) else None
    return named if isinstance(named, str) else None


def page(comparison: Comparison) -> str:
    """The whole HTML document."""
    found = _compared(comparison)
    sections = {
        "Curves": _charts(comparison.runs),
        "Credit of the same responses": _examples(comparison.examples),
        "What the arms say now": _texts(comparison.runs),
        "Credit at the end": _credit(comparison.runs),
        "Table": "" if found is None else _table(found),
        "Runs": _folded(_runs(comparison), len(comparison.runs.runs)),
        "How to repeat it": _repeat(comparison),
    }
    arms, runs = len(comparison.runs.arms), len(comparison.runs.runs)
    title = f"{comparison.name}: {counted(arms, 'arm')}, {counted(runs, 'run')}"
    tiles = "" if found is None else _tiles(found) + _controls(comparison)
    return sectioned(title, MINUS.sub("−", _about(comparison.runs, found)), tiles, sections)


def _compared(comparison: Comparison) -> Results | None:
    """The curves of the arms, paired unless an arm was given seeds of its own, and with the most seeds of a comparison
    that looks several times."""
    settings = comparison.record.get("settings", {})
    found = results(comparison.runs, comparison.name, paired=settings.get("seeds_of") is None)
    if found is None or settings.get("until") is None:
        return found
    seeds = settings["seeds"]
    return dataclasses.replace(found, most=seeds if isinstance(seeds, int) else len(seeds))


def _about(runs: RunSet, found: Results | None) -> str:
    named = {f"{arm}, seed {seed_of(run)}": run for arm, some in runs.arms.items() for run in some}
    return f"{ruined_runs(named)} {_conclusion(runs, found)}".strip()


def _conclusion(runs: RunSet, found: Results | None) -> str:
    if found is None:
        return "No seed was run under every arm, so the arms are not compared; the curves show each by itself."
    reached = [run.step for run in runs.runs]
    last = {int(as_number(run.report.get("last_step", run.step))) for run in runs.runs}
    steps = found.steps
    going = (
        f" Not all runs have finished: they are at step {min(reached)} to {max(reached)} of {max(last)}. The "
        f"comparison covers the first {counted(steps, 'step')}."
    )
    through = min(reached) == max(reached) == max(last)
    return comparison_verdict.verdict(found) + ("" if through else going)


def _tiles(found: Results) -> str:
    """The average score of each arm, with the KL and length that it ended with."""
    cells = []
    for arm in found.arms:
        score = summarise(found.per_seed(arm, "score"))
        kl, length = (float(found.per_seed(arm, name, LAST).mean()) for name in ("kl", "length"))
        spread = f"{tables.number(score.low)} to {tables.number(score.high)} ({score.kind})"
        shown = "" if found.counts[arm] == 1 else f"<small>{escaped(signed(spread))}</small>"
        cells.append(
            f"<li><span>{escaped(arm)}</span><b>{signed(tables.number(score.mean))}</b>{shown}"
            f"<small>at the end KL {signed(tables.number(kl))}, {tables.number(length)} tokens</small></li>"
        )
    return f'<p class="over">Average score</p><ul class="tiles">{"".join(cells)}</ul>'


def _controls(comparison: Comparison) -> str:
    """Which arms ran only to compare with, as they are typed on the command line."""
    settings, arms = comparison.record.get("settings"), comparison.runs.arms
    noted = settings.get("controls") if isinstance(settings, dict) else None
    controls = map(str, noted) if isinstance(noted, list) else ()
    there = [text for text in controls if any(arm.startswith(f"{CHANGE.split(text)[0]}-") for arm in arms)]
    if not there:
        return ""
    what = "a control" if len(there) == 1 else "controls"
    changed = " What follows @ is a setting of PPO that it changes." if any("@" in text for text in there) else ""
    return f'<p class="about">Run as {what}, to compare with: {escaped(", ".join(there))}.{changed}</p>'


def _table(found: Results) -> str:
    """Quantities down, arms across; on a narrow screen every quantity is a block."""
    report = comparison_report.build(found)
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in report.table.columns)
    rows = []
    for place, (title, *values) in enumerate(report.table.rows):
        if part := report.table.parts.get(place):
            rows.append(
                f'<tr class="part"><th scope="rowgroup" colspan="{len(report.table.columns)}">{escaped(part)}</th></tr>'
            )
        cells = "".join(
            f'<td class="n" data-is="{escaped(arm)}">{escaped(signed(tables.text(value)))}</td>'
            for arm, value in zip(found.arms, values, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escaped(str(title))}</th>{cells}</tr>')
    notes = "".join(f"<p>{escaped(note)}</p>" for note in report.notes)
    return (
        f'<div class="scroll"><table class="plain stacks lines"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><div class="about">{notes}</div>'
    )


def _charts(runs: RunSet) -> str:
    drawn = []
    for name, (title, sentence) in PLOTS.items():
        found = [_curve(arm, some, name) for arm, some in runs.arms.items() if any(run.has(name) for run in some)]
        if found:
            drawn.append(curves.figure(Chart(title=title, sentence=sentence, curves=tuple(found))))
    kinds = "Lines are means over seeds; bands are 95 % intervals, or with fewer than four seeds the range."
    return f'<p class="about">{kinds}</p><div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _curve(arm: str, runs: Sequence[RunRecord], name: str) -> Curve:
    """The mean over an arm's runs as far as all have come, at the steps where any of them measured it."""
    length = min(len(run.metrics) for run in runs)
    values: Array = np.array([run.values(name)[:length] for run in runs]).reshape(len(runs), length)
    kept = np.flatnonzero(np.isfinite(values).any(0))
    mean, low, high, _ = band(values[:, kept])
    edges = {} if len(runs) == 1 else {"low": tuple(map(float, low)), "high": tuple(map(float, high))}
    steps = runs[0].steps()
    label = arm if len(runs) == 1 else f"{arm}, {len(runs)} seeds"
    return Curve(label=label, steps=tuple(steps[at] for at in kept), values=tuple(map(float, mean)), **edges)


def _examples(examples: Sequence[CreditMap]) -> str:
    if not examples:
        return ""
    about = f"Responses of the policy before training: only the credit differs. {heat_map.HOW_TO_READ}"
    if any(example.reference_rows for example in examples):
        about += " A row in italics is no method's: it is the known contribution of each token to the true score."
    return f'<p class="about">{escaped(about)}</p>{"".join(map(heat_map.section, examples[:MOST_EXAMPLES]))}'


def _texts(runs: RunSet) -> str:
    """What each arm's first run answers to the same prompts, and what all began with."""
    latest = {arm: _latest(some[0]) for arm, some in runs.arms.items()}
    prompts = dict.fromkeys(prompt for samples in latest.values() for prompt in samples)
    begun = {prompt: one for some in runs.arms.values() for prompt, one in _earliest(some[0]).items()}
    blocks = []
    for prompt in list(prompts)[:MOST_EXAMPLES]:
        cells = [_cell(begun[prompt], "before training")] if prompt in begun else []
        cells += [_cell(samples[prompt], arm) for arm, samples in latest.items() if prompt in samples]
        blocks.append(f'<div class="pair"><p class="asked">{escaped(prompt)}</p><dl>{"".join(cells)}</dl></div>')
    about = "The same prompts with the same random numbers, by each arm's first seed at its last evaluation."
    return f'<p class="about">{about}</p><div class="pairs">{"".join(blocks)}</div>' if blocks else ""


def _cell(sample: Mapping[str, Any], label: str) -> str:
    return f"<div>{sample_heading(sample, label)}{sample_text(sample)}</div>"


def _earliest(run: RunRecord) -> dict[str, Mapping[str, Any]]:
    return {str(one.get("prompt")): one for one in run.samples if one["step"] == run.samples[0]["step"]}


def _latest(run: RunRecord) -> dict[str, Mapping[str, Any]]:
    """Samples of the last evaluation, where there was one after the start."""
    last = run.samples[-1]["step"] if run.samples else 0
    return {} if last == 0 else {str(one.get("prompt")): one for one in run.samples if one["step"] == last}


def _credit(runs: RunSet) -> str:
    """One response of each arm's own policy, under its own method and those that cost nothing more."""
    parts = []
    for arm, some in runs.arms.items():
        maps = noted_maps(some[0].report)
        if maps:
            parts.append(f"<h3>{escaped(arm)}</h3>{heat_map.section(maps[0])}")
    about = (
        "The first response of each arm's own policy, under the arm's method and those that cost nothing more to show. "
        "The page of a run shows more of them."
    )
    return f'<p class="about">{about}</p>{"".join(parts)}' if parts else ""


def _runs(comparison: Comparison) -> str:
    rows = []
    for arm, some in comparison.runs.arms.items():
        for run in some:
            cells = {
                "seed": number(seed_of(run)),
                "step": number(run.step),
                "score": _last(run, "score"),
                "KL": _last(run, "kl"),
            }
            shown = "".join(f'<td class="n" data-is="{name}">{value}</td>' for name, value in cells.items())
            name = _linked(run, comparison.home, arm)
            rows.append(f'<tr><th scope="row">{name}</th>{shown}<td class="wide">{_health(run)}</td></tr>')
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("arm", "seed", "step", "score, last", "KL, last", "health")
    )
    return f'<table class="plain stacks"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _folded(table: str, runs: int) -> str:
    """The table, behind a line that opens it where there are many runs."""
    if runs <= MOST_OPEN:
        return table
    return f"<details><summary>All {runs} runs: score, KL and health</summary>{table}</details>"


def _health(run: RunRecord) -> str:
    """The figures to look at; without any, those that have a note."""
    found = health(run)
    for verdict in ("look", "note"):
        if names := [row.name for row in found if row.verdict == verdict]:
            return f'<span class="{verdict}">{verdict}</span> {escaped(", ".join(names))}'
    return "fine"


def _linked(run: RunRecord, home: Path, arm: str) -> str:
    """The arm's name, linked to the run's own page where there is one."""
    if not (run.folder / PAGE).is_file():
        return escaped(arm)
    target = quote(Path(os.path.relpath(run.folder.resolve() / PAGE, home.resolve())).as_posix())
    return f'<a href="{escaped(target)}">{escaped(arm)}</a>'


def _last(run: RunRecord, name: str) -> str:
    known = [value for value in run.values(name) if math.isfinite(value)]
    return number(known[-1]) if known else "–"


def _repeat(comparison: Comparison) -> str:
    """The command, versions and settings of the comparison; each run's own stand on its page."""
    record = comparison.record
    said = f"<pre>{unbroken(str(record['command']))}</pre>" if record.get("command") else ""
    for title in ("versions", "settings"):
        values = record.get(title)
        if isinstance(values, dict) and values:
            table = settings_table(dict(flat(values)))
            said += f"<details><summary>{title.capitalize()}</summary>{table}</details>"
    return said
