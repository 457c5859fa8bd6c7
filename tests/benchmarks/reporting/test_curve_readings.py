"""What the figures are read for, by hand."""

import gzip
import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks.reporting import tables
from benchmarks.reporting.curve_readings import (
    at_level,
    best_of_mean,
    blocks,
    crossing,
    failed,
    negative_kl,
    parting,
    scores_until,
    standardised,
    steps_to_pass,
    threshold,
)
from benchmarks.reporting.paper_curves import paper_curves
from benchmarks.reporting.statistics import Results, Summary
from benchmarks.reporting.tables import Table


def results(**scores):
    curves = {
        arm: {"score": np.array(score, dtype=float), "kl": np.array(score, dtype=float) - 2}
        for arm, score in scores.items()
    }
    return Results(task="t", seeds=(0, 1), curves=curves)


def test_failed_runs_are_counted_against_a_stated_threshold():
    found = results(a=[[0] * 10 + [9] * 10, [0] * 10 + [1] * 10], b=[[0] * 10 + [9] * 10] * 2)
    limit = threshold(found, None)
    assert limit.value == pytest.approx(4.5)
    assert "0.00" in limit.why
    assert "9.00" in limit.why
    assert (failed(found, "a", limit), failed(found, "b", limit)) == (1, 0)
    assert failed(found, "b", threshold(found, 9.5)) == 2
    assert negative_kl(found, "a") == 1


def test_steps_to_pass_read_the_mean_over_seeds():
    curve = np.array([[0.0, 4.0, 2.0], [2.0, 0.0, 4.0]])
    assert best_of_mean(curve) == (3.0, 3)
    assert steps_to_pass(curve, 2.0) == 2
    assert steps_to_pass(curve, 3.5) is None


def test_reward_at_a_level_has_two_readings():
    curves = {
        "kl": np.array([[0.0, 10.0, 20.0], [0.0, 2.0, 4.0]]),
        "score": np.array([[0.0, 5.0, 6.0], [0.0, 1.0, 2.0]]),
    }
    found = at_level(curves, 6)
    assert found.on_means == 3.0  # mean KL is 6 at step 2
    assert (found.per_run.mean, found.runs) == (5.0, 1)
    assert at_level(curves, 50).per_run is None
    assert crossing(curves["kl"][0], curves["score"][0], 10.0) == 5.0


def test_scores_in_equal_time_by_hand():
    # one run of 1, 1, 2 s ends two steps within 3 s, one of 3, 1, 1 s one, and one of 4 s a step none
    seconds = np.array([[1.0, 1.0, 2.0], [3.0, 1.0, 1.0], [4.0, 4.0, 4.0]])
    scores = np.array([[1.0, 3.0, 9.0], [2.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    np.testing.assert_array_equal(scores_until(3.0, seconds, scores), [2.0, 2.0, np.nan])


def test_blocks_and_standardised_gains():
    assert blocks(np.array([[1.0, 3.0, 5.0]]), 2).tolist() == [[2.0, 5.0]]
    gain = standardised(np.array([[1.0, 3.0]]), np.array([[2.0, 9.0]]))
    assert gain.tolist() == [[0.0, 1.0]]
    assert np.isnan(standardised(np.array([[1.0]]), np.array([[0.0]]))).all()


def test_proxy_and_gold_part_only_where_gold_falls_and_the_proxy_does_not():
    kl = np.array([[0.0, 5.0, 10.0, 15.0]] * 3)
    proxy = np.array([[0.0, 1.0, 2.0, 3.0]] * 3)
    spread = np.array([[0.0], [0.01], [-0.01]])
    falling = np.array([[0.0, 1.0, 0.5, 0.2]] * 3) + spread
    assert parting(kl, proxy, falling, size=1).kl == 5.0
    assert parting(kl, proxy, proxy + spread, size=1).kl is None
    assert parting(kl, falling, falling, size=1).kl is None  # both fall: no over-optimisation
    assert parting(kl[:1], proxy[:1], falling[:1], size=1).kl is None  # one seed has no standard error


def test_tables_on_disk_and_in_a_narrow_terminal(tmp_path):
    interval = Summary(mean=1.0, low=0.5, high=1.5, kind="range")
    table = Table(
        title="t", columns=("arm", "score", "steps"), rows=(("a|b", interval, 3), ("c", None, None)), notes=("n",)
    )
    tables.write(table, tmp_path)
    assert (tmp_path / "table.csv").read_text().splitlines() == [
        "arm,score,score low,score high,steps", "a|b,1.0,0.5,1.5,3", "c,,,,"
    ]  # fmt: skip
    assert "| a\\|b | 1.00 [0.500, 1.50] | 3 |" in (tmp_path / "table.md").read_text()
    wide = Table(title="t", columns=("arm", *"abcdefg"), rows=tuple((arm, *[interval] * 7) for arm in "pqrstuvw"))
    with (tmp_path / "shown.txt").open("w") as file:
        tables.show(wide, Console(file=file, width=40))
    shown = (tmp_path / "shown.txt").read_text()
    assert shown.count("[0.500, 1.50]") == 7 * 8  # blocks of columns, no number broken
    assert max(map(len, shown.splitlines())) <= 40
    with pytest.raises(ValueError, match="2 values for 1 columns"):
        Table(title="t", columns=("a",), rows=(("x", 1),))


def test_the_papers_curves(tmp_path):
    file = tmp_path / "curves.json.gz"
    with gzip.open(file, "wt") as lines:
        json.dump({"dialogue": {"reward": {"abc": [[1, 2]], "sparse": [[0, 1], [2, 3, 4]]}}}, lines)
    found = paper_curves(str(file), "dialogue", "reward")
    assert found["abc"].tolist() == [[1.0, 2.0]]
    assert found["sparse"].tolist() == [[0.0, 1.0], [2.0, 3.0]]  # runs of unequal length: the shortest decides
    assert paper_curves(None, "dialogue", "reward") == {}
    assert paper_curves(str(file), "dialogue", "kl") == {}
    (tmp_path / "x").write_text("no")
    with pytest.raises(ValueError, match="does not hold the paper's curves"):
        paper_curves(str(tmp_path / "x"), "dialogue")


def test_the_papers_table_is_recomputed_from_its_curves(data_folder):
    """PAPER's Table 1, to its rounding: abc 8.32, sparse 7.21, uniform 6.60 over the first 101 steps."""
    file = data_folder.parent / "reference" / "paper_curves.json.gz"
    if not file.is_file():
        pytest.skip(f"no curves at {file}")
    rewards = paper_curves(str(file), "positive_generation", "reward")
    assert {arm: round(float(rewards[arm][:, :101].mean()), 2) for arm in ("abc", "sparse", "uniform")} == {
        "abc": 8.32, "sparse": 7.21, "uniform": 6.60
    }  # fmt: skip
    summaries = paper_curves(str(file), "summarisation", "reward")
    assert {curve.shape for curve in summaries.values()} == {(5, 201)}
    best, step = best_of_mean(rewards["sparse"])
    assert (round(best, 2), step) == (9.44, 90)  # its record begins with step 0, ours with step 1
    assert steps_to_pass(rewards["abc"], best) == 42
