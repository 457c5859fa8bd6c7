"""A page on several runs, finished or not: how they are sorted into arms, and what it lets be said."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from browser import CHROMIUM, measured
from page_layout import MEASURE
from run_folders import run_folder

from benchmarks import report
from benchmarks.reporting import comparison_page
from benchmarks.reporting.run_sets import curves, find_runs, results, sorted_into_arms
from rlhf_core.pages.run_record import read_figures

ARMS = {"sparse": 0.0, "abc": 5.0}


@pytest.fixture
def out(tmp_path):
    """Two arms of four seeds, far apart."""
    for arm, shift in ARMS.items():
        for seed in range(4):
            run_folder(tmp_path / "out" / "runs" / arm / f"seed-{seed}", seed=seed, shift=shift)
    return tmp_path / "out"


def page_of(*folders, path):
    comparison_page.write(folders, path)
    return path.read_text()


def test_arms_are_folders_of_seeds(out):
    found = sorted_into_arms(find_runs([out]))
    assert {arm: [run.folder.name for run in runs] for arm, runs in found.arms.items()} == {
        arm: [f"seed-{seed}" for seed in range(4)] for arm in sorted(ARMS)
    }
    assert [*sorted_into_arms(find_runs([out]), ["sparse", "gone"]).arms] == ["sparse", "abc"]


def test_arms_of_one_name_in_two_places_are_told_apart(out, tmp_path):
    run_folder(tmp_path / "other" / "runs" / "abc" / "seed-0")
    found = sorted_into_arms(find_runs([out / "runs" / "abc", tmp_path / "other"]))
    assert sorted(found.arms) == ["other/runs/abc", "out/runs/abc"]


def test_runs_from_anywhere_are_one_arm_where_only_the_seed_differs(tmp_path):
    for name, seed, method in (("a", 0, "Sparse()"), ("b", 1, "Sparse()"), ("c", 0, "Uniform()")):
        run_folder(tmp_path / name, seed=seed, redistributor=method)
    found = sorted_into_arms(find_runs([tmp_path]))
    assert {arm: len(runs) for arm, runs in found.arms.items()} == {"a": 2, "c": 1}
    assert len(find_runs([tmp_path, tmp_path / "a"])) == 3


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        find_runs([tmp_path])


def test_curves_are_by_seed_and_step_with_the_final_figures_beside(tmp_path):
    written = {"one": [{"step": 1, "kl": 1.0}, {"step": 2, "kl": "nan"}, {"step": 3, "late": 0}], "two": [{"step": 1}]}
    written["two"].append({"step": 2, "kl": 4})
    for name, lines in written.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, two = (read_figures(tmp_path / name) for name in written)
    found = curves([one, two], [], 2)
    np.testing.assert_array_equal(found["kl"], [[1.0, np.nan], [np.nan, 4.0]])
    assert [*found] == ["kl"]
    assert one.logged("kl")[0] == (1, 1.0)
    assert len(one.logged("kl")) == 2
    assert curves([one], [{"held_out_score": 3.0}], 2)["held_out_score"].tolist() == [[3.0]]


def test_only_seeds_and_steps_that_all_arms_have_are_compared(out, tmp_path):
    run_folder(out / "runs" / "late" / "seed-1", seed=1, steps=5)
    found = results(sorted_into_arms(find_runs([out])), "toy")
    assert found.seeds == (1,)
    assert {arm: curve["score"].shape for arm, curve in found.curves.items()} == dict.fromkeys(
        ["abc", "late", "sparse"], (1, 5)
    )
    content = page_of(out, path=out / "report.html")
    assert "they are at step 5 to 12 of 20. The comparison covers the first 5 steps" in content


def test_arms_with_seeds_of_their_own_keep_them_all(out):
    found = sorted_into_arms(find_runs([out]))
    few = replace(found, arms={**found.arms, "abc": found.arms["abc"][:2]})
    assert results(few, "toy").seeds == (0, 1)
    apart = results(few, "toy", paired=False)
    assert apart.own_seeds == {"abc": (0, 1), "sparse": (0, 1, 2, 3)}
    assert {arm: len(curve["score"]) for arm, curve in apart.curves.items()} == {"abc": 2, "sparse": 4}


def test_without_a_common_seed_nothing_is_compared(tmp_path):
    run_folder(tmp_path / "a", seed=0, redistributor="Sparse()")
    run_folder(tmp_path / "b", seed=1)
    content = page_of(tmp_path, path=tmp_path / "report.html")
    assert "No seed was run under every arm" in content
    assert ">Table</h2>" not in content
    assert ">Curves</h2>" in content


def test_the_honest_sentence_is_on_top_and_runs_are_linked(out):
    content = page_of(out, path=out / "report.html")
    (out / "runs" / "abc" / "seed-0" / "report.html").write_text("a page")
    content = page_of(out, path=out / "report.html")
    verdict = content.index("abc has the highest average score")
    assert verdict < content.index("<nav>")
    assert "its interval overlaps no other" in content
    assert 'href="runs/abc/seed-0/report.html"' in content
    assert content.count('<a href="runs') == 1
    for heading in ("Curves", "What the arms say now", "Credit at the end", "Table", "Runs"):
        assert f">{heading}</h2>" in content
    assert "<script" not in content
    assert "\u202e" not in content


def test_what_the_comparison_noted_is_on_the_page(out):
    credit = json.loads((out / "runs" / "abc" / "seed-0" / "report.json").read_text())["credit"]
    credit[0]["reference_rows"] = {"true contribution": [0.0] * len(credit[0]["tokens"])}
    (out / "report.json").write_text(json.dumps({"arms": ["sparse", "abc"], "credit": credit}))
    shutil.copytree(out / "runs" / "sparse", out / "runs" / "sparse-lam1")
    settings = {"task": "toy", "steps": 12, "controls": ["sparse@lam=1", "uniform(beta=0.8)"]}
    record = {"settings": settings, "command": "python -m x", "versions": {"torch": "2"}}
    (out / "run.json").write_text(json.dumps(record))
    content = page_of(out, path=out / "report.html")
    assert "<h1>toy: 3 arms, 12 runs</h1>" in content
    assert "to compare with: sparse@lam=1. What follows @ is a setting of PPO that it changes." in content
    assert "A row in italics is no method&#x27;s" in content
    assert "Credit of the same responses" in content
    assert "<pre>python -m x</pre>" in content


def title(content):
    return content.split("<h1>")[1].split("</h1>")[0]


def test_the_table_of_many_runs_is_folded(out):
    assert "<summary>All 8 runs: score, KL and health</summary>" in page_of(out, path=out / "report.html")
    assert "All 4 runs" not in page_of(out / "runs" / "abc", path=out / "report.html")


def test_the_title_is_that_of_the_runs_wherever_the_page_is_written(out, tmp_path):
    arms = [out / "runs" / arm for arm in ARMS]
    other = tmp_path / "another"
    other.mkdir()
    (other / "run.json").write_text(json.dumps({"settings": {"task": "summarisation"}, "command": "of others"}))
    elsewhere = other / "page.html"
    assert title(page_of(out, path=elsewhere)) == "out: 2 arms, 8 runs"
    assert title(page_of(*arms, path=elsewhere)) == "sparse, abc: 2 arms, 8 runs"
    record = {"settings": {"task": "own"}, "command": "python -m x"}
    (out / "run.json").write_text(json.dumps(record))
    content = page_of(out, path=elsewhere)
    assert title(content) == "out: 2 arms, 8 runs"
    assert "python -m x" in content
    assert "of others" not in content
    (out / "run.json").write_text(json.dumps(record | {"settings": {"task": "toy"}}))
    assert title(page_of(*arms, path=elsewhere)) == "toy: 2 arms, 8 runs"
    assert title(page_of(out / "runs" / "abc", path=elsewhere)) == "toy: 1 arm, 4 runs"
    run_folder(tmp_path / "more" / "run")
    assert title(page_of(out, tmp_path / "more", path=elsewhere)) == "out, more: 3 arms, 9 runs"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [320, 375, 1280])
def test_nothing_overflows_on_a_phone_or_a_desk(out, width, tmp_path):
    run_folder(out / "runs" / "an_arm_with_quite_a_long_name-beta0.8-layer3" / "seed-0")
    content = page_of(out, path=out / "report.html")
    found = measured(content, MEASURE, tmp_path, width=width, dark=False)
    assert "error" not in found
    assert found["wrong"] == []
    assert found["charts"] >= 6


def test_the_command_writes_a_page_for_one_run_or_many(out, tmp_path, capsys):
    report.main([str(out / "runs" / "abc" / "seed-1")])
    assert "Step 12 of 20" in (out / "runs" / "abc" / "seed-1" / "report.html").read_text()
    report.main([str(out)])
    assert "abc has the highest" in (out / "report.html").read_text()
    report.main([str(out / "runs" / "abc"), str(out / "runs" / "sparse")])
    assert (out / "runs" / "report.html").is_file()
    report.main([str(out), "--out", str(tmp_path / "both.html")])
    report.main([str(out), "--out", str(tmp_path / "both.html")])  # its own page may be replaced
    assert f"written to {tmp_path / 'both.html'}: 8 runs" in capsys.readouterr().out


def test_the_command_replaces_no_strangers_file_and_names_what_is_missing(out, tmp_path, capsys):
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ([str(out), "--out", str(tmp_path / "mine.html")], "is not a page that this command wrote"),
        ([str(tmp_path / "gone")], f"no folder {tmp_path / 'gone'}"),
        ([str(tmp_path / "empty")], "holds no run"),
    ):
        with pytest.raises(SystemExit) as ended:
            report.main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
