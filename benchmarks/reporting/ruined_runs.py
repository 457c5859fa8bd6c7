"""Runs whose policy is ruined, in a sentence: a score that rose through collapse must not be read as success."""

from collections.abc import Mapping

from rlhf_core.pages.health import ruin
from rlhf_core.pages.run_record import RunRecord


def ruined_runs(runs: Mapping[str, RunRecord]) -> str:
    """Which of the runs, each under its arm and seed, have a ruined policy, with the figures of the first.

    Empty if none has."""
    found = {name: why for name, run in runs.items() if (why := ruin(run))}
    if not found:
        return ""
    first, *others = found
    also = f" Look also at {'; '.join(others)}." if others else ""
    return (
        f"Look at {first}: {found[first]}.{also} Read the responses, in report.html in the run's folder, before you "
        "trust such a score."
    )
