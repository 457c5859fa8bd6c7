"""The main job: redistributors × paired seeds on one task, then table, figures, heat map and one honest sentence.

``python -m benchmarks.value_loss_variance --out DIR`` compares sparse, uniform and abc on the embedded task. A run that
has finished is never repeated: call again to resume, or to add arms or seeds. DIR then holds run.json (settings,
versions, git state), table.md, table.csv, results.json, heatmap.html, figures/ and runs/ARM/seed-N/.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.reporting import figures, report
from benchmarks.reporting import heat_map as viewer
from benchmarks.runs.comparison import Script, Study
from benchmarks.runs.experiment import examples

EXAMPLES = 6


def write(study: Study, _: Any, out: Path, console: Console) -> None:
    """Table, figures and heat map in ``out``; table, heat map and verdict on the console."""
    settings, loaded = study.settings, study.task.load()
    config = replace(study.config, seed=settings.seed_list()[0])
    shown = examples(loaded, settings.arms(), config, loaded.held_out_prompts[:EXAMPLES])
    summary = report.build(study.only)
    report.write(summary, out)
    figures.write(study.only, shown[0], out / "figures")
    viewer.write(f"Credit on {settings.task}", shown, out / "heatmap.html")
    _print(summary, shown, out, console)


def _print(summary: report.Report, shown: Sequence[viewer.Example], out: Path, console: Console) -> None:
    console.print(viewer.terminal(shown[:2]))
    console.print(report.terminal(summary, console.width))
    for note in summary.notes:
        console.print(note, style="dim", markup=False, highlight=False)
    console.print(f"\n{summary.verdict}\n", style="bold", markup=False, highlight=False)
    console.print(f"written to {out}: table.md, results.json, figures/, heatmap.html", markup=False, highlight=False)


SCRIPT = Script(
    name="value_loss_variance",
    summary="Compare redistributors on paired seeds: table, figures, heat map and one honest sentence. "
    "Settings of PPO are --ppo.NAME, on top of the task's own.",
    write=write,
    folder="",
)

if __name__ == "__main__":
    SCRIPT.main()
