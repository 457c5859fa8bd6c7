"""How much of the score follows the credit: the paper's figure 7, beta from 0 (sparse) to 1."""

from typing import Any

from benchmarks.experiments.settings import BetaSweep
from benchmarks.runs.script import Script


def experiment() -> Any:
    """What runs and is drawn, imported once the settings are read."""
    from benchmarks.experiments.beta_sweep import EXPERIMENT

    return EXPERIMENT


SCRIPT = Script(
    name="beta_sweep",
    summary="Sweep beta, the share of the score that follows the credit (figure 7 of the paper). --redistributors and "
    "--controls are not used.",
    experiment=experiment,
    options=BetaSweep,
)

if __name__ == "__main__":
    SCRIPT.main()
