"""What a comparison can find, told from the first runs of sparse; and one that stops once that is decided."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from table_task import TableTask, settings

from benchmarks.reporting import comparison_report
from benchmarks.reporting.comparison_report import AVERAGE_SCORE, build
from benchmarks.reporting.power import detectable_difference, seeds_for
from benchmarks.reporting.tables import number
from benchmarks.runs.comparison import Panel, plan, ppo_of, run_pilot
from benchmarks.runs.finished_runs import load_results
from benchmarks.runs.pilot import Planned, pilot_runs, what_can_be_found
from benchmarks.value_loss_variance import SCRIPT

pytestmark = pytest.mark.usefixtures("undrawn")

QUICK = {"learning_rate": 0.3}
"""So that two arms differ after two steps."""


def asked(tmp_path, **changes):
    return settings(
        tmp_path, **{"seeds": 5, "processes": 0, "eval_every": 2, "redistributors": "uniform,sparse", **changes}
    )


def planned_runs(chosen):
    return plan(chosen, TableTask(), Panel(), ppo_of(TableTask(), {}))


@pytest.mark.slow
def test_the_pilot_is_the_first_runs_of_sparse_and_runs_once(tmp_path, capsys):
    chosen = asked(tmp_path)
    pilot = pilot_runs(planned_runs(chosen))
    assert [(run.arm.label, run.config.seed) for run in pilot] == [("sparse", seed) for seed in range(4)]
    run_pilot(chosen, TableTask(), {}, [Panel()])
    said = capsys.readouterr().out
    assert not (tmp_path / "out" / "runs" / "uniform").exists()

    printed = io.StringIO()
    done = SCRIPT.experiment().run(chosen, TableTask(), {}, Console(file=printed, width=400))
    assert all(line in printed.getvalue() for line in said.splitlines())  # before the others ran
    assert len(done.only.seeds) == 5
    assert "already done" not in said
    assert len(pilot_runs(planned_runs(chosen))) == 5  # of what is there, nothing is left out


def test_its_lines_by_hand(tmp_path):
    chosen = asked(tmp_path, seeds=4)
    run_pilot(chosen, TableTask(), {}, [Panel()])
    runs = pilot_runs(planned_runs(chosen))
    results = load_results("t", runs)
    spread = 2**0.5 * results.per_seed("sparse", AVERAGE_SCORE.metric).std(ddof=1)
    unit = results.curves["sparse"]["score_std"][:, 0].mean()
    found, takes = what_can_be_found(runs, Planned(arms=3, seeds=9, at_a_time=2))
    least = detectable_difference(spread, 9, 2)
    assert f"9 seeds find a difference in average score of {number(least)} ({number(least / unit)} initial" in found
    assert "2 comparisons" in found
    # an s from 4 seeds is .5665 to 3.729 of the true one: 3 over chi-squared(3) at .975 and .025, 9.348 and .2158
    assert f"leave {number(0.5665 * least)} to {number(3.7286 * least)} open" in found
    needed = seeds_for(0.25 * unit, spread, 2)
    assert f"takes {needed} seeds an arm: {3 * needed} runs" in takes


@pytest.mark.parametrize(
    "changes", [{"redistributors": "uniform,entropy"}, {"redistributors": "sparse"}, {"seeds": 3}], ids=str
)
def test_power_alone_is_refused_where_nothing_can_be_told(tmp_path, changes):
    chosen = asked(tmp_path, power=True, **changes)
    with pytest.raises(ValueError, match="need sparse and another arm, with 4 seeds or more"):
        run_pilot(chosen, TableTask(), {}, [Panel()])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_comparison_that_looks_stops_once_everything_is_decided_or_hopeless(tmp_path, monkeypatch):
    chosen = asked(tmp_path, seeds=10, until="decided")
    monkeypatch.setattr(comparison_report, "is_hopeless", lambda *_: True)
    printed = io.StringIO()
    done = SCRIPT.experiment().run(chosen, TableTask(), QUICK, Console(file=printed, width=400))
    assert done.only.seeds == (0, 1, 2, 3)
    assert "look after 4 of at most 10 seeds: decided nothing; hopeless uniform" in printed.getvalue()
    verdict = build(done.only).verdict
    assert "Stopped after 4 of at most 10 seeds: even a true difference of 0.25 initial standard deviations" in verdict
    assert (
        verdict[verdict.index("Stopped") : verdict.index(";")] in (tmp_path / "out" / "report.html").read_text()
    )  # read back from the runs
    with pytest.raises(FileExistsError, match="seeds was 10 and is 12"):
        SCRIPT.experiment().run(replace(chosen, seeds=12), TableTask(), QUICK, Console(file=io.StringIO()))
    with pytest.raises(FileExistsError, match="until was 'decided' and is None"):
        SCRIPT.experiment().run(replace(chosen, until=None), TableTask(), QUICK, Console(file=io.StringIO()))


@pytest.mark.slow
def test_it_goes_on_to_the_last_seed_while_anything_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_report, "is_hopeless", lambda *_: False)
    chosen = asked(tmp_path, seeds=5, until="decided", redistributors="sparse,uniform", controls="")
    done = SCRIPT.experiment().run(chosen, TableTask(), QUICK, Console(file=io.StringIO()))
    assert (done.only.seeds, done.only.most) == ((0, 1, 2, 3, 4), 5)
    with pytest.raises(ValueError, match="--until decided looks at 4 seeds or more, got --seeds 3"):
        asked(tmp_path, seeds=3, until="decided")
