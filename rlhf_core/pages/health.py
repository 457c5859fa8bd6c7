"""The health of a run: metrics that show whether it can be trusted, with the values they should have."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_core.pages.curves import number
from rlhf_core.pages.document import escaped
from rlhf_core.pages.run_record import RunRecord


@dataclass(frozen=True, kw_only=True)
class HealthFigure:
    """One row of the health table. ``advice`` is empty if the figure is as it should be."""

    name: str
    now: str
    worst: str
    due: str
    advice: str


FAR = 5
"""Times the target: a KL that deserves a look."""
CSS = """
.scroll { overflow-x: auto } table.plain { border-collapse: collapse; width: 100%; font-size: .875rem }
.plain th, .plain td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
                       border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
.plain thead th { color: var(--muted); font-weight: 500 } .plain tbody th { font-weight: 500 }
.plain td.n { font-variant-numeric: tabular-nums; white-space: nowrap }
.ok { color: var(--good) } .look { color: var(--bad); font-weight: 600 }
@media (max-width: 40rem) {
.stacks thead { position: absolute; clip-path: inset(50%); height: 1px; overflow: hidden; width: 1px }
.stacks tr { display: grid; grid-template-columns: 1fr 1fr; border-bottom: 1px solid var(--line); padding: .4rem 0 }
.stacks th, .stacks td { border: 0; padding: 0 } .stacks tbody th, .stacks .wide { grid-column: 1 / -1 }
.stacks td.n { white-space: normal } .stacks td[data-is]::before { content: attr(data-is) " "; color: var(--muted) }
.lines tr { grid-template-columns: 1fr }
.lines td { display: flex; justify-content: space-between; gap: 1rem } .lines td.n { white-space: normal }
}
"""


def health(run: RunRecord) -> list[HealthFigure]:
    """The figures of a run that were logged; none before its first step."""
    if not run.metrics:
        return []
    parts = (_counts, _bounded, _conservation, _divergence, _entropy, _ended, _critic)
    return [row for part in parts for row in part(run)]


def table(rows: list[HealthFigure]) -> str:
    """The rows as HTML; on a narrow screen each becomes a block."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("figure", "last step", "worst", "should be", "verdict"))
    body = "".join(map(_row, rows))
    return f'<table class="plain stacks"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _row(row: HealthFigure) -> str:
    verdict = f'<span class="look">look</span> {escaped(row.advice)}' if row.advice else '<span class="ok">fine</span>'
    return (
        f'<tr><th scope="row">{escaped(row.name)}</th><td class="n" data-is="last step">{escaped(row.now)}</td>'
        f'<td class="n" data-is="worst">{escaped(row.worst)}</td><td data-is="should be">{escaped(row.due)}</td>'
        f'<td class="wide">{verdict}</td></tr>'
    )


def _counts(run: RunRecord) -> Iterator[HealthFigure]:
    """Counts of what was not trained on: the last step's number, and the sum over all steps."""
    known = {
        "skipped_minibatches": (
            "minibatches skipped",
            "their mean ratio exceeded ratio_threshold: lower learning_rate",
        ),
        "refused_minibatches": ("minibatches refused", "skipped.jsonl says why"),
        "skipped_rollout": ("steps skipped", "the rollout held an unusable number; skipped.jsonl says why"),
        "skipped_observation": ("rollouts the method did not learn from", "skipped.jsonl says why"),
    }
    for name, (title, advice) in known.items():
        values = [0.0 if math.isnan(value) else value for value in run.values(name)]
        if run.has(name) or name == "skipped_rollout":
            total = math.fsum(values)
            yield HealthFigure(
                name=title,
                now=number(values[-1]),
                worst=f"{number(total)} in all",
                due="0",
                advice=advice if total > 0 else "",
            )


def _bounded(run: RunRecord) -> Iterator[HealthFigure]:
    threshold = run.config.get("ratio_threshold")
    limit = float(threshold) if isinstance(threshold, int | float) else 10.0
    yield from _largest(
        run,
        "clip_fraction",
        "tokens clipped, share",
        0.3,
        "lower learning_rate or epochs",
    )
    yield from _largest(
        run, "ratio_max", "largest probability ratio of a token", limit, "single tokens move far within one update"
    )


def _conservation(run: RunRecord) -> Iterator[HealthFigure]:
    if run.report.get("conserving") is False:
        known = _known(run, "conservation_error")
        if known:
            worst = max(known)
            yield HealthFigure(
                name="conservation error",
                now=number(known[-1]),
                worst=number(worst),
                due="any: this method does not claim to conserve the score",
                advice="",
            )
        return
    yield from _largest(
        run, "conservation_error", "conservation error", 1e-4, "the method's token scores do not add up to the score"
    )


def _divergence(run: RunRecord) -> Iterator[HealthFigure]:
    known = _known(run, "kl")
    if known:
        target = run.config.get("kl", {}).get("target", 6.0)
        advice = ""
        if max(known) > FAR * target:
            advice = "the policy is far from its reference: lower learning_rate, or raise kl.init_coef"
        if sum(value < -0.1 for value in known) >= 3:
            advice = "sampling and training distributions differ"
        yield HealthFigure(
            name="KL from the reference, nats per response",
            now=number(known[-1]),
            worst=f"{number(min(known))} lowest, {number(max(known))} highest",
            due=f"0 to a few times the target ({number(target)})",
            advice=advice,
        )


def _entropy(run: RunRecord) -> Iterator[HealthFigure]:
    known = _known(run, "entropy")
    if known:
        advice = "the policy has collapsed to few responses: lower learning_rate, or raise kl.init_coef"
        due = f"at least a tenth of the first step's ({number(known[0])})"
        yield _lowest("entropy, nats per token", known, due=due, advice=advice if known[-1] < known[0] / 10 else "")


def _ended(run: RunRecord) -> Iterator[HealthFigure]:
    known = _known(run, "finished")
    if known:
        advice = "many responses are cut off and scored unfinished: allow a larger max_length"
        due = "0.5 or more, unless lengths are fixed on purpose"
        title = "responses that end with EOS, share"
        yield _lowest(title, known, due=due, advice=advice if known[-1] < 0.5 else "")


def _critic(run: RunRecord) -> Iterator[HealthFigure]:
    known = _known(run, "explained_variance_over_position")
    if known:
        advice = "the critic is worse than a mean per position; usual in the first dozens of steps only"
        due = "above 0 after the first dozens of steps"
        late = known[-1] < 0 and len(known) > 50
        yield _lowest("explained variance over position", known, due=due, advice=advice if late else "")


def _lowest(title: str, known: list[float], *, due: str, advice: str) -> HealthFigure:
    """A figure whose smallest value is its worst."""
    worst = f"{number(min(known))} lowest"
    return HealthFigure(name=title, now=number(known[-1]), worst=worst, due=due, advice=advice)


def _largest(run: RunRecord, name: str, title: str, limit: float, advice: str) -> Iterator[HealthFigure]:
    known = _known(run, name)
    if known:
        worst = max(known)
        step = next(step for step, value in zip(run.steps(), run.values(name), strict=True) if value == worst)
        yield HealthFigure(
            name=title,
            now=number(known[-1]),
            worst=f"{number(worst)} at step {step}",
            due=f"at most {number(limit)}",
            advice=advice if worst > limit else "",
        )


def _known(run: RunRecord, name: str) -> list[float]:
    return [value for value in run.values(name) if math.isfinite(value)]
