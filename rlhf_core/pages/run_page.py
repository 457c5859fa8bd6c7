"""The page of one run: what it learned, how it went, and how to repeat it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_core.pages import curves, heat_map
from rlhf_core.pages import health as health_table
from rlhf_core.pages.curves import Chart, Curve, number
from rlhf_core.pages.document import escaped
from rlhf_core.pages.parts import flat, noted_maps, sample_heading, sample_text, sectioned, settings_table, unbroken
from rlhf_core.pages.run_record import RunRecord


@dataclass(frozen=True, kw_only=True)
class _Plot:
    """A chart by the names of its figures: ``names`` and what each curve is called, and how to read them."""

    title: str
    names: Mapping[str, str]
    sentence: str
    band: tuple[str, str] | None = None


THIS_STEP, HELD_OUT = "this step's responses", "held-out prompts"
PLOTS = (
    _Plot(
        title="Score",
        names={"score": THIS_STEP, "eval_score": HELD_OUT},
        sentence="The reward per response. It should rise, and the texts below should get better with it.",
    ),
    _Plot(
        title="True score",
        names={"gold_score": THIS_STEP},
        sentence="If it falls while the score rises, the policy exploits the reward model.",
    ),
    _Plot(
        title="KL, nats per response",
        names={"kl": THIS_STEP, "eval_kl": HELD_OUT},
        sentence="How far the policy has moved from its reference to reach the score above.",
    ),
    _Plot(
        title="Length, tokens",
        names={"length": THIS_STEP, "eval_length": HELD_OUT},
        sentence="The band holds four responses in five. Drift without a change of score gains nothing.",
        band=("length_q10", "length_q90"),
    ),
    _Plot(
        title="Policy loss",
        names={"policy_loss": "policy loss"},
        sentence="Stays near 0. Its level means little, but a jump means trouble.",
    ),
    _Plot(
        title="Value loss",
        names={"value_loss": "value loss"},
        sentence="The critic's error. Its level depends on the method: do not compare it between methods.",
    ),
    _Plot(
        title="Explained variance",
        names={"explained_variance": "over all tokens", "explained_variance_over_position": "over position"},
        sentence="Share of the returns that the critic predicts; 1 is everything. Over position, 0 is a critic that "
        "knows only the mean per position.",
    ),
    _Plot(
        title="Entropy, nats per token",
        names={"entropy": "entropy"},
        sentence="How uncertain the next token is. Near 0, the policy has collapsed to few responses.",
    ),
    _Plot(
        title="Tokens clipped, share",
        names={"clip_fraction": "policy", "value_clip_fraction": "value"},
        sentence="Share of tokens whose update was clipped. Above 0.3, the learning rate is too high.",
    ),
)


def page(run: RunRecord) -> str:
    """The whole HTML document."""
    sections = {
        "Curves": charts(run),
        "What changed": changes(run),
        "Credit": credit(run),
        "Health": health_table.table(health_table.health(run)) if run.metrics else "",
        "How to repeat it": repeat(run),
    }
    title = f"{run.method}, seed {run.config.get('seed', '–')}"
    return sectioned(title, summary(run), tiles(run), sections)


def summary(run: RunRecord) -> str:
    """The progress and the results of the run, in plain sentences."""
    planned, written = run.report.get("last_step"), run.report.get("written", "")
    of = f" of {planned}" if planned else ""
    ruined = health_table.ruin(run)
    said = [f"{ruined[0].upper()}{ruined[1:]}. Read the responses before you trust the score."] if ruined else []
    said.append(f"Step {run.step}{of}{f', written {written}' if written else ''}.")
    error = run.report.get("error")
    if error:
        said.append(f"It ended with an error: {error} skipped.jsonl, if there is one, has what was skipped before it.")
    ends = _ends(run, "score")
    if ends and not error:
        (first, begin), (last, end) = ends
        verb = "rose" if end > begin else "fell" if end < begin else "stayed"
        said.append(
            f"The mean score of a step's responses {verb} from {number(begin)} (step {first}) to {number(end)} "
            f"(step {last}); one run alone cannot say how much of that is chance."
        )
    found = health_table.health(run)
    concerns, notes = ([row.name for row in found if row.verdict == verdict] for verdict in ("look", "note"))
    if concerns:
        said.append(f"Look at: {'; '.join(concerns)}.")
    elif run.metrics and not error:
        further = f"; there are notes on: {'; '.join(notes)}" if notes else ""
        said.append(f"All health figures are as they should be{further}.")
    return " ".join(said)


def tiles(run: RunRecord) -> str:
    """The last values of what matters most."""
    known = {
        "eval_score": ("held-out score", "last evaluation"),
        "score": ("score", "last step"),
        "gold_score": ("true score", "last step"),
        "kl": ("KL", "nats per response"),
        "length": ("length", "tokens"),
        "entropy": ("entropy", "nats per token"),
    }
    found = {name: [value for value in run.values(name) if math.isfinite(value)] for name in known}
    cells = [
        f"<li><span>{title}</span><b>{number(found[name][-1])}</b><small>{unit}</small></li>"
        for name, (title, unit) in known.items()
        if found[name]
    ]
    return f'<ul class="tiles">{"".join(cells)}</ul>' if cells else ""


def charts(run: RunRecord) -> str:
    """A chart for every plot of which a figure was logged."""
    found = [curves.figure(_chart(plot, run)) for plot in PLOTS if any(map(run.has, plot.names))]
    return f'<div class="charts">{"".join(found)}</div>' if found else ""


def _chart(plot: _Plot, run: RunRecord) -> Chart:
    low, high = map(run.values, plot.band) if plot.band and all(map(run.has, plot.band)) else ((), ())
    drawn = []
    for place, (name, label) in enumerate(plot.names.items()):
        if run.has(name):
            band = (low, high) if place == 0 else ((), ())
            drawn.append(_curve(label, run, name, *band))
    return Chart(title=plot.title, sentence=plot.sentence, curves=tuple(drawn), guide=_guide(plot, run))


def _curve(label: str, run: RunRecord, name: str, low: tuple[float, ...], high: tuple[float, ...]) -> Curve:
    """A curve. Metrics that only evaluations measure are joined across the steps between; other gaps stay gaps."""
    if not name.startswith("eval_"):
        return Curve(label=label, steps=run.steps(), values=run.values(name), low=low, high=high)
    known = run.metrics.logged(name)
    return Curve(label=label, steps=tuple(step for step, _ in known), values=tuple(value for _, value in known))


def _guide(plot: _Plot, run: RunRecord) -> tuple[float, str] | None:
    kl = run.config.get("kl")
    if "kl" in plot.names and isinstance(kl, dict) and kl.get("adaptive") and isinstance(kl.get("target"), int | float):
        return float(kl["target"]), "target"
    return None


def changes(run: RunRecord) -> str:
    """The same prompts before the first step and now."""
    if not run.samples:
        return ""
    first, last = run.samples[0]["step"], run.samples[-1]["step"]
    then, now = ([one for one in run.samples if one["step"] == step] for step in (first, last))
    pairs = zip(then, now, strict=False) if first != last else ((one,) for one in then)
    about = (
        "The same prompts with the same random numbers, so that only the policy differs."
        if first != last
        else "Responses before the first step."
    )
    return f'<p class="about">{about}</p><div class="pairs">{"".join(map(_pair, pairs))}</div>'


def _pair(samples: Sequence[Mapping[str, Any]]) -> str:
    texts = "".join(f"<div>{sample_heading(one)}{sample_text(one)}</div>" for one in samples)
    return f'<div class="pair"><p class="asked">{escaped(str(samples[0].get("prompt", "")))}</p><dl>{texts}</dl></div>'


def credit(run: RunRecord) -> str:
    """Heat maps of the responses that the policy gives now."""
    maps = noted_maps(run.report)
    if not maps:
        return ""
    step = run.report.get("credit_step", run.step)
    about = (
        f"Responses of step {step} under the run's own method, and under others that need no further evidence. "
        f"{heat_map.HOW_TO_READ}"
    )
    return f'<p class="about">{escaped(about)}</p>{"".join(map(heat_map.section, maps))}'


def repeat(run: RunRecord) -> str:
    """Command, versions and settings."""
    command = str(run.report.get("command", ""))
    said = f"<pre>{unbroken(command)}</pre>" if command else ""
    versions = run.report.get("versions")
    parts = {"Versions": versions if isinstance(versions, dict) else {}, "Settings": dict(flat(run.settings))}
    return said + "".join(
        f"<details><summary>{title}</summary>{settings_table(values)}</details>"
        for title, values in parts.items()
        if values
    )


def _ends(run: RunRecord, name: str) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """First and last defined value of a figure, with their steps; None if there are not two."""
    known = [pair for pair in zip(run.steps(), run.values(name), strict=True) if math.isfinite(pair[1])]
    return (known[0], known[-1]) if len(known) > 1 else None
