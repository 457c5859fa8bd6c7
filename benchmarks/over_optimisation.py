"""Proxy against gold: how far the reward model's score can rise before the true score stops rising with it."""

from typing import Any

from benchmarks.experiments.settings import OverOptimisation
from benchmarks.runs.script import Script


def experiment() -> Any:
    """What runs and is drawn, imported once the settings are read."""
    from benchmarks.experiments.over_optimisation import EXPERIMENT

    return EXPERIMENT


SCRIPT = Script(
    name="over_optimisation",
    summary="Proxy score against gold score by KL, for every method, to where they part.",
    defaults={"steps": 120},
    experiment=experiment,
    options=OverOptimisation,
)

if __name__ == "__main__":
    SCRIPT.main()
