"""The main job: redistributors × paired seeds on one task, then table, figures, heat map and one honest sentence.

``python -m benchmarks.value_loss_variance --out DIR`` compares sparse, uniform and abc on the embedded task. A run that
has finished is never repeated: call again to resume, or to add arms or seeds. DIR then holds run.json (settings,
versions, git state), report.html, table.md, table.csv, results.json, heatmap.html, figures/ and runs/ARM/seed-N/.
"""

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.base.json_files import write_json
from benchmarks.reporting import comparison_page, comparison_report, figures, tables
from benchmarks.reporting.terminal_heat_map import show
from benchmarks.runs.comparison import ComparisonResults
from benchmarks.runs.experiment import Experiment
from benchmarks.runs.single_run import examples
from rlhf_core.pages import heat_map
from rlhf_core.pages.parts import noted
from rlhf_core.pages.run_record import PAGE, REPORT

EXAMPLES = 6


def write(done: ComparisonResults, _: Any, out: Path, console: Console) -> None:
    """Page, table, figures and heat map in ``out``; heat map, table and verdict on the console."""
    settings = done.settings
    with contextlib.redirect_stdout(io.StringIO()):  # what the task says of itself stands above the runs already
        loaded = done.task.load()
    config = replace(done.config, seed=settings.seed_list()[0])
    shown = examples(loaded, settings.arms(), config, loaded.held_out_prompts[:EXAMPLES])
    report = comparison_report.build(done.only)
    comparison_report.write(report, out)
    figures.write(done.only, shown[0], out / "figures")
    heat_map.write(f"Credit on {settings.task}", shown, out / "heatmap.html")
    write_json(out / REPORT, {"arms": list(done.only.arms), "credit": noted(shown)})
    runs = [out / "runs" / arm / f"seed-{seed}" for arm in done.only.arms for seed in done.only.seeds_of(arm)]
    comparison_page.write(runs, out / PAGE)
    show(shown[:2], console)
    tables.show(report.table, console)
    console.print(
        f"written to {out}: {PAGE}, table.md, table.csv, results.json, figures/, heatmap.html",
        markup=False,
        highlight=False,
    )


EXPERIMENT = Experiment(write=write, folder="")
