"""What a comparison can find, told from the first runs of sparse; and one that stops once that is decided."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from table_task import TableTask, settings

from benchmarks.reporting import primary_outcome
from benchmarks.reporting.comparison_report import build
from benchmarks.reporting.power import detectable_difference, seeds_for, smallest_found
from benchmarks.reporting.primary_outcome import AVERAGE_SCORE
from benchmarks.reporting.tables import number
from benchmarks.runs.comparison import Panel, plan, ppo_of, run_pilot
from benchmarks.runs.finished_runs import finished_curves, load_results
from benchmarks.runs.pilot import Planned, pilot_runs, planned, what_can_be_found
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
    spread = 2**0.5 * results.per_seed("sparse", AVERAGE_SCORE).std(ddof=1)
    unit = results.curves["sparse"]["score_std"][:, 0].mean()
    found, takes = what_can_be_found(runs, Planned(seeds=dict.fromkeys(("sparse", "uniform", "abc"), 9), at_a_time=2))
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
    monkeypatch.setattr(primary_outcome, "is_hopeless", lambda *_: True)
    printed = io.StringIO()
    done = SCRIPT.experiment().run(chosen, TableTask(), QUICK, Console(file=printed, width=400))
    assert done.only.seeds == (0, 1, 2, 3)
    assert "look after 4 of at most 10 seeds: decided nothing; hopeless uniform" in printed.getvalue()
    verdict = build(done.only).verdict
    assert "Stopped after 4 of at most 10 seeds: even a true difference of 0.25 initial standard deviations" in verdict
    stopped = verdict[verdict.index("Stopped") : verdict.index(". At the end")]
    assert stopped in (tmp_path / "out" / "report.html").read_text()  # read back from the runs
    with pytest.raises(FileExistsError, match="seeds was 10 and is 12"):
        SCRIPT.experiment().run(replace(chosen, seeds=12), TableTask(), QUICK, Console(file=io.StringIO()))
    with pytest.raises(FileExistsError, match="until was 'decided' and is None"):
        SCRIPT.experiment().run(replace(chosen, until=None), TableTask(), QUICK, Console(file=io.StringIO()))


def test_its_lines_with_more_seeds_of_sparse_by_hand(tmp_path):
    chosen = asked(tmp_path, seeds=4, seeds_of={"sparse": 8}, redistributors="sparse,uniform", controls="")
    runs = planned_runs(chosen)
    size = planned(runs, at_a_time=2)
    assert (size.seeds, size.paired, size.tests) == ({"sparse": 8, "uniform": 4}, False, 1)
    assert size.scaled_to(7) == {"sparse": 14, "uniform": 7}
    run_pilot(chosen, TableTask(), {}, [Panel()])
    results = load_results("t", pilot_runs(runs))
    spread = results.per_seed("sparse", AVERAGE_SCORE).std(ddof=1)
    # Welch and Satterthwaite with equal variances: 1/8 + 1/4 = 3/8, and (3/8)² / ((1/8)²/7 + (1/4)²/3) degrees
    freedom = (3 / 8) ** 2 / ((1 / 8) ** 2 / 7 + (1 / 4) ** 2 / 3)
    least = smallest_found(spread * (3 / 8) ** 0.5, freedom)
    found, takes = what_can_be_found(pilot_runs(runs), size)
    assert f"8 seeds of sparse and 4 of every other arm find a difference in average score of {number(least)}" in found
    assert "(Welch's t-test, 5 %)" in found
    (counts,) = re.findall(r"takes (\d+) seeds of sparse and (\d+) of every other arm", takes)
    sparse, other = map(int, counts)
    assert sparse == 2 * other
    assert f"{sparse + other} runs" in takes


@pytest.mark.slow
def test_a_comparison_with_more_seeds_of_sparse_is_welchs_in_table_and_page(tmp_path):
    chosen = asked(
        tmp_path, seeds=4, seeds_of={"sparse": 6}, redistributors="sparse,uniform", controls="", eval_every=9
    )
    printed = io.StringIO()
    done = SCRIPT.experiment().run(chosen, TableTask(), QUICK, Console(file=printed, width=400))
    assert done.only.own_seeds == {"sparse": (0, 1, 2, 3, 4, 5), "uniform": (0, 1, 2, 3)}
    assert "6 seeds of sparse and 4 of every other arm find" in printed.getvalue()
    report, out = build(done.only), tmp_path / "out"
    assert "With these 4 to 6 seeds and Welch's t-test" in report.verdict
    assert "With these 4 to 6 seeds and Welch" in (out / "report.html").read_text()
    curves = finished_curves("t", out / "runs", paired=False).curves
    assert {arm: len(of["score"]) for arm, of in curves.items()} == {"sparse": 6, "uniform": 4}
    assert len(finished_curves("t", out / "runs", paired=True).curves["sparse"]["score"]) == 4
    with pytest.raises(FileExistsError, match="seeds_of.sparse was 6 and is 8"):
        SCRIPT.experiment().run(replace(chosen, seeds_of={"sparse": 8}), TableTask(), QUICK, Console(file=printed))
    with pytest.raises(FileExistsError, match="seeds_of was {'sparse': 6} and is None"):
        SCRIPT.experiment().run(replace(chosen, seeds_of=None), TableTask(), QUICK, Console(file=printed))


def test_seeds_of_an_arm_are_by_how_it_is_written(tmp_path):
    chosen = asked(tmp_path, seeds=[7, 8], seeds_of={"sparse@lam=1": [3, 4, 5]}, controls="sparse@lam=1")
    runs = planned_runs(chosen)
    assert [run.config.seed for run in runs if run.arm.label == "sparse-lam1"] == [3, 4, 5]
    assert [run.config.seed for run in runs if run.arm.label == "uniform"] == [7, 8]
    assert not planned(runs, at_a_time=1).paired


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds_of": {"spars": 9}}, "--seeds_of names 'spars', which is no arm as it is written; the arms: uniform"),
        ({"seeds_of": {"sparse": 5, "uniform": 5}}, "gives all arms the same seeds; leave it out"),
        ({"seeds_of": {"sparse": [1, 1]}}, "seeds_of: sparse must be how many, 1 or more, or different numbers"),
        ({"seeds_of": {"sparse": 9}, "until": "decided"}, "--until decided looks at pairs of runs with the same seed"),
    ],
    ids=str,
)
def test_seeds_of_arms_that_cannot_be_are_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        asked(tmp_path, **changes)


def test_seeds_of_a_control_that_repeats_an_arm_are_refused(tmp_path):
    chosen = asked(tmp_path, seeds_of={"sparse@lam=1": 9}, controls="sparse@lam=1")
    with pytest.raises(ValueError, match="names sparse-lam1, which repeats another arm and is left out; name that one"):
        plan(chosen, TableTask(), Panel(), ppo_of(TableTask(), {"lam": 1.0}))


def test_a_script_of_several_panels_takes_no_seeds_of_single_arms(tmp_path):
    chosen = asked(tmp_path, seeds_of={"sparse": 9})
    for panel in (Panel(name="one"), Panel(arms=())):
        with pytest.raises(ValueError, match="is for a script with one panel and the arms of --redistributors"):
            plan(chosen, TableTask(), panel, ppo_of(TableTask(), {}))


@pytest.mark.slow
def test_it_goes_on_to_the_last_seed_while_anything_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(primary_outcome, "is_hopeless", lambda *_: False)
    chosen = asked(tmp_path, seeds=5, until="decided", redistributors="sparse,uniform", controls="")
    done = SCRIPT.experiment().run(chosen, TableTask(), QUICK, Console(file=io.StringIO()))
    assert (done.only.seeds, done.only.most) == ((0, 1, 2, 3, 4), 5)
    with pytest.raises(ValueError, match="--until decided looks at 4 seeds or more, got --seeds 3"):
        asked(tmp_path, seeds=3, until="decided")
