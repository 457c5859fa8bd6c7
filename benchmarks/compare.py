"""Compare methods on your own prompts with your own reward: table, figures, heat map and one honest sentence.

``dense-rlhf compare --policy DIR --data prompts.jsonl --reward my_rewards:concise --redistributors sparse,abc-d`` runs
every method with every seed. ``prompts.jsonl`` holds one row per line, ``{"prompt": "..."}`` with any further columns.
The reward is a function ``concise(prompts, responses)``, which may name those columns as further parameters, or the
folder of a classifier. Without these three flags the embedded task is used. A finished run is never repeated: run the
command again to resume, or to add methods or seeds.

In Python, ``from benchmarks.compare import compare, train`` (see :mod:`benchmarks.experiments.own_runs`).
"""

from typing import Any

from benchmarks.experiments.own_runs import compare, train
from benchmarks.runs.script import Script

__all__ = ["SCRIPT", "compare", "experiment", "train"]


def experiment() -> Any:
    """What runs and is written, imported once the settings are read."""
    from benchmarks.experiments.value_loss_variance import EXPERIMENT

    return EXPERIMENT


SCRIPT = Script(
    name="compare",
    summary="Compare redistributors on paired seeds, on your own prompts (--data) with your own reward (--reward).",
    experiment=experiment,
    defaults={"eval_prompts": 16},
)

if __name__ == "__main__":
    SCRIPT.main()
