"""Is credit faithful to the score? Deletion and insertion curves, rank correlations, concentration, signs, cost.

Responses of a task's initial policy are frozen; every method that its models provide for credits the same ones. All
curves re-score altered texts with the reward model itself.
"""

import sys

from rich.console import Console

from benchmarks.base.command_line import parse
from benchmarks.base.json_files import write_json
from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.run_folder import RECORD, measurement_folder, read_record
from benchmarks.credit import faithfulness_report as report
from benchmarks.credit.faithfulness_study import Settings, study
from benchmarks.reporting import tables
from benchmarks.reporting.publishing import publish
from benchmarks.runs.arms import PAPER_SETTINGS, with_settings
from benchmarks.tasks.definitions import make_task

NAME = "benchmarks.credit_faithfulness"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, NAME, argv)
    quiet_libraries()
    try:
        task = make_task(settings.task, models=settings.models, cache=settings.cache, loading=settings.loading)
        loaded, config = task.load(), with_settings(PAPER_SETTINGS, {**task.ppo, "seed": settings.seed})
        out = measurement_folder(settings, NAME)
        found = study(loaded, config, settings)
    except (ValueError, OSError) as error:
        sys.exit(f"python -m {NAME}: error: {error}")
    write_json(out / RECORD, {**read_record(out), "datasets": {"prompts and models": loaded.fingerprint}})
    tables.write(report.curve_table(found), out, "curves")
    console = Console()
    publish(report.over_random(found), {}, out, console, name="over_random")
    publish(report.table(found), {"curves": report.figure(found)}, out, console)


if __name__ == "__main__":
    main()
