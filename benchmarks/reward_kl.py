"""Reward against KL, as in the paper's figure 5, and the reward where KL first reaches fixed levels."""

from typing import Any

from benchmarks.experiments.settings import RewardKL
from benchmarks.runs.script import Script


def experiment() -> Any:
    """What runs and is drawn, imported once the settings are read."""
    from benchmarks.experiments.reward_kl import EXPERIMENT

    return EXPERIMENT


SCRIPT = Script(
    name="reward_kl",
    summary="Reward against KL (figure 5 of the paper), and reward at fixed KL levels.",
    experiment=experiment,
    options=RewardKL,
)

if __name__ == "__main__":
    SCRIPT.main()
