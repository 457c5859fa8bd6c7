"""Is the critic worse than a mean per position because it shares the policy's trunk, or because it has little to learn?

``python -m benchmarks.critics --loading.lora.rank 8 --ppo.critic_warmup 10 --out DIR`` runs the same arms and seeds
under every critic; DIR/critics then holds a table and a figure.
"""

from typing import Any

from benchmarks.experiments.settings import Critics
from benchmarks.runs.script import Script


def experiment() -> Any:
    """What runs and is drawn, imported once the settings are read."""
    from benchmarks.experiments.critics import EXPERIMENT

    return EXPERIMENT


SCRIPT = Script(
    name="critics",
    summary="The same arms under a critic on the policy's trunk, on an adapter beside the policy's, and on a model of "
    "its own: value loss and explained variance.",
    defaults={"controls": ""},
    experiment=experiment,
    options=Critics,
)

if __name__ == "__main__":
    SCRIPT.main()
