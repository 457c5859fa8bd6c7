"""The main job: redistributors × paired seeds on one task, then table, figures, heat map and one honest sentence.

``python -m benchmarks.value_loss_variance --out DIR`` compares sparse, uniform and abc on the embedded task. A run that
has finished is never repeated: call again to resume, or to add arms or seeds. DIR then holds run.json (settings,
versions, git state), report.html, table.md, table.csv, results.json, heatmap.html, figures/ and runs/ARM/seed-N/.
"""

from typing import Any

from benchmarks.runs.script import Script


def experiment() -> Any:
    """What runs and is written, imported once the settings are read."""
    from benchmarks.experiments.value_loss_variance import EXPERIMENT

    return EXPERIMENT


SCRIPT = Script(
    name="value_loss_variance",
    summary="Compare redistributors on paired seeds: table, figures, heat map and one honest sentence.",
    experiment=experiment,
)

if __name__ == "__main__":
    SCRIPT.main()
