"""How often a reward model agrees with people, and how often the rule "the longer response wins" does."""

from collections.abc import Sequence
from typing import Any

from benchmarks.data.preference_tokens import TokenisedExample


def by_confidence(rows: Sequence[TokenisedExample], margins: Sequence[float]) -> dict[str, Any]:
    """Accuracy (share of pairs ranked right, ties half) of the margins score(chosen) − score(rejected) and of "longer
    wins": over all pairs, where the two rules disagree, and by confidence where that is known."""
    right = [_half_right(margin) for margin in margins]
    longer = [0.5 if row.longer_wins is None else float(row.longer_wins) for row in rows]
    shorter = [score for score, length in zip(right, longer, strict=True) if length == 0]
    report: dict[str, Any] = {
        "pairs": len(rows),
        "longer_wins": _mean(longer),
        "accuracy_where_the_shorter_won": _mean(shorter),
        "pairs_where_the_shorter_won": len(shorter),
    }
    levels = sorted({row.confidence for row in rows if row.confidence is not None})
    for level in levels:
        some = [i for i, row in enumerate(rows) if row.confidence == level]
        accuracy, longest = (_mean([rule[i] for i in some]) for rule in (right, longer))
        known = {"pairs": len(some), "accuracy": accuracy, "longer_wins": longest}
        report.setdefault("by_confidence", {})[str(level)] = known
    return report


def _half_right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
