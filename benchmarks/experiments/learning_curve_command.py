"""Learning curves as a command, which several are: one for any task, and one for each of the paper's."""

from typing import Any

from benchmarks.experiments.settings import LearningCurves
from benchmarks.runs.script import Script


def learning_curve_script(name: str, figure: str, **defaults: Any) -> Script:
    """The command called ``name``, which redraws ``figure`` of the paper; ``defaults`` are its own."""
    return Script(
        name=name,
        summary=f"Learning curves of redistributors on paired seeds ({figure} of the paper): reward, value loss, KL "
        "and length per step with standard-deviation bands, and steps to pass sparse's best.",
        experiment=lambda: _experiment(name),
        options=LearningCurves,
        defaults=defaults,
    )


def _experiment(name: str) -> Any:
    from benchmarks.experiments.learning_curves import experiment

    return experiment(name)
