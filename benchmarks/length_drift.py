"""The length canary: every response gets the same score, so no length is better. Which methods change the length?"""

from typing import Any

from benchmarks.experiments.settings import LengthDrift
from benchmarks.runs.script import Script


def experiment() -> Any:
    """What runs and is drawn, imported once the settings are read."""
    from benchmarks.experiments.length_drift import EXPERIMENT

    return EXPERIMENT


SCRIPT = Script(
    name="length_drift",
    summary="The length canary: PPO at a constant score, whose true gradient is zero; length per step of every method "
    "at lam 1 and 0.95, for a positive and a negative constant, without a critic, and centred.",
    defaults={"controls": "", "seeds": 4, "steps": 40, "eval_every": 40, "eval_prompts": 8},
    experiment=experiment,
    options=LengthDrift,
)

if __name__ == "__main__":
    SCRIPT.main()
