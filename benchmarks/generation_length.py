"""Longer responses, sparser reward: the paper's figure 4, with every run drawn and failures counted."""

from typing import Any

from benchmarks.experiments.settings import GenerationLength
from benchmarks.runs.script import Script


def experiment() -> Any:
    """What runs and is drawn, imported once the settings are read."""
    from benchmarks.experiments.generation_length import EXPERIMENT

    return EXPERIMENT


SCRIPT = Script(
    name="generation_length",
    summary="Sweep the response length (figure 4 of the paper): means, single runs, failed runs.",
    experiment=experiment,
    options=GenerationLength,
)

if __name__ == "__main__":
    SCRIPT.main()
