"""The health of a run: metrics that show whether it can be trusted, with the values they should have.

The limits part runs that learn from runs that are ruined. They were set with the embedded task at its own settings, at
ten times its learning rate, and at a learning rate of 1.0. docs/metrics.md (in the project's repository) gives the
reason for each.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_core.pages.curves import number
from rlhf_core.pages.document import escaped
from rlhf_core.pages.run_record import RunRecord


@dataclass(frozen=True, kw_only=True)
class HealthFigure:
    """One row of the health table. ``advice`` says why the figure deserves a look; it is empty for most. ``note`` says
    what to know of a figure that is usual in small or short runs."""

    name: str
    now: str
    worst: str
    due: str
    advice: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """In a word: "look", "note" or "fine"."""
        return "look" if self.advice else "note" if self.note else "fine"


FAR = 10
"""Times the target: a KL that deserves a look. The embedded task reaches 8 times where all is well, and 14 to 29 times
at too high a learning rate. From half of it on there is a note."""
FLAT = 0.01
"""Nats per token: at or below this entropy, nearly every next token is certain, whatever the run began with."""
DIVERGED = 10
"""Times the mean square of the returns. A critic that says 0 has half of that as its loss, so this one is 20 times as
wrong."""
FAR_RATIOS = 3
"""Times ``ratio_threshold``, in the median step: a ratio that deserves a look. The largest of a step belongs to one
rare token; in the embedded task it exceeds the threshold itself in about every third step."""
BLIND = -2.0
"""Explained variance over position of a critic with three times the error of a mean per position. The embedded task
stays above -1 over a few steps."""
WORSENED = 3
"""Times as far below 0 as at the first step. A critic that says 0 has a figure that varies with the scores."""
LATELY = 5
"""Steps whose median stands for the present, where single steps vary much."""
CHANCE = 4
"""Standard errors that a fall of the score from its best must exceed: the best of many means is high by chance."""
DOZENS = 50
"""Steps in which a critic that began far from the returns should have found their level."""
CSS = """
.scroll { overflow-x: auto } table.plain { border-collapse: collapse; width: 100%; font-size: .875rem }
.plain th, .plain td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
                       border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
.plain thead th { color: var(--muted); font-weight: 500; overflow-wrap: normal } .plain tbody th { font-weight: 500 }
.plain .part th { padding-top: 1rem; color: var(--muted); font-style: italic }
.plain td.n { font-variant-numeric: tabular-nums; white-space: nowrap }
.ok { color: var(--good) } .note { color: var(--muted); font-weight: 600 } .look { color: var(--bad); font-weight: 600 }
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
    parts = (_counts, _bounded, _conservation, _divergence, _entropy, _score, _ended, _value_loss, _critic)
    return [row for part in parts for row in part(run)]


def ruin(run: RunRecord) -> str:
    """What tells that the policy of the last step is ruined, as clauses that a sentence may begin with.

    Empty if nothing does. The score of such a policy says little, however high it is."""
    return " and ".join(filter(None, (_collapse(run), _fall(run))))


def _collapse(run: RunRecord) -> str:
    entropy, kl = _known(run, "entropy"), _known(run, "kl")
    gone = bool(entropy) and _flat(entropy)
    if not gone and not (kl and kl[-1] > FAR * _target(run)):
        return ""
    what = "the policy has collapsed to few responses" if gone else "the policy is far from its reference"
    figures = [f"entropy {number(entropy[-1])} nats per token"] if gone else []
    figures += [f"KL {number(kl[-1])} nats per response where the target is {number(_target(run))}"] if kl else []
    return f"{what} ({', '.join(figures)})"


def _fall(run: RunRecord) -> str:
    scores = _score_levels(run)
    if scores is None or not scores.fell:
        return ""
    below = "below where it began" if scores.last < scores.first else "far below its best"
    over = f", in means over {scores.few} steps" if scores.few > 1 else ""
    levels = f"{number(scores.first)} at first, {number(scores.best)} at its best, {number(scores.last)} at the end"
    return f"the score has fallen {below} ({levels}{over})"


def table(rows: list[HealthFigure]) -> str:
    """The rows as HTML; on a narrow screen each becomes a block."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("figure", "last step", "worst", "should be", "verdict"))
    body = "".join(map(_row, rows))
    return f'<table class="plain stacks"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _row(row: HealthFigure) -> str:
    style = "ok" if row.verdict == "fine" else row.verdict
    verdict = f'<span class="{style}">{row.verdict}</span> {escaped(row.advice or row.note)}'.rstrip()
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
    known = _known(run, "ratio_max")
    if known:
        usual = statistics.median(known)
        many = usual > FAR_RATIOS * limit and len(known) >= LATELY
        yield HealthFigure(
            name="largest probability ratio of a token",
            now=number(known[-1]),
            worst=f"{number(max(known))} highest, {number(usual)} in the median step",
            due=f"at most {number(limit)} in most steps; a rare token may exceed it",
            advice="tokens move far within one update: lower learning_rate or epochs" if many else "",
            note="rare tokens move far within one update, as is usual in small models" if usual > limit else "",
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
        target = _target(run)
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
            note="many times the target: read the samples" if max(known) > FAR / 2 * target else "",
        )


def _entropy(run: RunRecord) -> Iterator[HealthFigure]:
    known = _known(run, "entropy")
    if known:
        advice = "the policy has collapsed to few responses: lower learning_rate, or raise kl.init_coef"
        due = f"at least a tenth of the first step's ({number(known[0])})"
        yield _lowest("entropy, nats per token", known, due=due, advice=advice if _flat(known) else "")


def _flat(entropy: Sequence[float]) -> bool:
    """Whether the policy has collapsed. The first step may have done it, so a limit of its own stands beside a tenth of
    that step's."""
    return entropy[-1] < entropy[0] / 10 or entropy[-1] <= FLAT


@dataclass(frozen=True, kw_only=True)
class _ScoreLevels:
    """Means of the score over ``few`` steps, a fifth of them all: the first, the best, and the last."""

    few: int
    first: float
    best: float
    last: float
    limit: float
    """Largest fall that may be chance: the standard deviation of one response's score at the start, or, where so few
    responses were drawn that their means vary more, ``CHANCE`` standard errors of the difference of two means."""

    @property
    def fell(self) -> bool:
        return self.best - self.last > self.limit


def _score_levels(run: RunRecord) -> _ScoreLevels | None:
    known, spread = _known(run, "score"), _known(run, "score_std")
    if len(known) < 2 or not spread:
        return None
    few = max(1, len(known) // 5)
    means = [statistics.fmean(known[start : start + few]) for start in range(len(known) - few + 1)]
    error = math.sqrt(2 / (few * _batch(run)))
    limit = spread[0] * max(1.0, CHANCE * error)
    return _ScoreLevels(few=few, first=means[0], best=max(means), last=means[-1], limit=limit)


def _batch(run: RunRecord) -> int:
    """Responses of a step; 1 if the run does not say."""
    size = run.config.get("rollout_batch_size")
    return size if isinstance(size, int) and size > 0 else 1


def _score(run: RunRecord) -> Iterator[HealthFigure]:
    scores = _score_levels(run)
    if scores is None:
        return
    yield _lowest(
        "score",
        _known(run, "score"),
        due=f"in the last fifth of the steps ({number(scores.last)}) not lower than in the best fifth "
        f"({number(scores.best)}) by more than {number(scores.limit)}, which may be chance",
        advice="the score has fallen by more than chance explains: lower learning_rate" if scores.fell else "",
    )


def _ended(run: RunRecord) -> Iterator[HealthFigure]:
    known = _known(run, "finished")
    if known:
        low, high = _lengths(run)
        drawn = low < high
        note = "many responses are cut off and scored unfinished: allow a larger max_length" if not drawn else ""
        note = note if known[-1] < 0.5 else ""
        if known[-1] < known[0] / 4:
            note = f"it fell from {number(known[0])}: responses have grown to their limit; see whether they got better"
        on_purpose = f"any: limits are drawn from {low} to {high} tokens, which cut responses off on purpose"
        due = on_purpose if drawn else "0.5 or more, unless lengths are fixed on purpose"
        yield _lowest("responses that end with EOS, share", known, due=due, note=note)


def _lengths(run: RunRecord) -> tuple[int, int]:
    """The range that the longest length of a response is drawn from; (0, 0) if the run does not say."""
    found = run.config.get("max_length")
    return (int(found[0]), int(found[1])) if isinstance(found, list | tuple) and len(found) == 2 else (0, 0)


def _value_loss(run: RunRecord) -> Iterator[HealthFigure]:
    """Against the mean square of the returns, at the first step or at its own, whichever is larger: returns grow as the
    score rises, and a critic that has diverged makes them grow too."""
    names = ("value_loss", "return_mean", "return_variance")
    rows = list(zip(run.steps(), *map(run.values, names), strict=True))
    known = [(step, loss, mean**2 + variance) for step, loss, mean, variance in rows if math.isfinite(loss)]
    if not known:
        return
    sizes = [size for *_, size in known if math.isfinite(size)] or [math.inf]
    over = [(loss, step) for step, loss, size in known if loss > DIVERGED * max(sizes[0], size)]
    worst, at = max((loss, step) for step, loss, _ in known)
    size = f", {number(DIVERGED * sizes[0])} at the start" if math.isfinite(sizes[0]) else ""
    yield HealthFigure(
        name="value loss",
        now=number(known[-1][1]),
        worst=f"{number(worst)} at step {at}",
        due=f"at most {DIVERGED} times the mean square of the returns{size}",
        advice=f"the critic has diverged (step {max(over)[1]}): lower learning_rate, or set max_grad_norm"
        if over
        else "",
    )


def _critic(run: RunRecord) -> Iterator[HealthFigure]:
    known = _known(run, "explained_variance_over_position")
    if known:
        lately = statistics.median(known[-LATELY:])
        learned_nothing = lately < BLIND and (lately < WORSENED * known[0] or len(known) > DOZENS)
        slow = "the critic has not found the level of the returns yet; score.centring, or more steps, may help"
        usual = "the critic is worse than a mean per position, as is usual in short runs of small models"
        yield _lowest(
            "explained variance over position",
            known,
            due=f"above 0 in long runs; {number(BLIND)} or more after the first steps",
            advice="the critic has become much worse than a mean per position: lower learning_rate"
            if learned_nothing
            else "",
            note=slow if lately < BLIND else usual if lately < 0 else "",
        )


def _lowest(title: str, known: list[float], *, due: str, advice: str = "", note: str = "") -> HealthFigure:
    """A figure whose smallest value is its worst."""
    worst = f"{number(min(known))} lowest"
    return HealthFigure(name=title, now=number(known[-1]), worst=worst, due=due, advice=advice, note=note)


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


def _target(run: RunRecord) -> float:
    kl = run.config.get("kl")
    target = kl.get("target") if isinstance(kl, dict) else None
    return float(target) if isinstance(target, int | float) else 6.0


def _known(run: RunRecord, name: str) -> list[float]:
    return [value for value in run.values(name) if math.isfinite(value)]
