"""Runs that are ruined are named, with figures, wherever a comparison or a run is summed up."""

import json

from run_folders import run_folder

from benchmarks.reporting import comparison_page
from benchmarks.reporting.ruined_runs import ruined_runs
from rlhf_core.pages.run_record import read_run


def collapsed(folder, **given):
    run_folder(folder, **given)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 13, "score": 9.0, "kl": 168.0, "entropy": 0.0}) + "\n")
    return folder


def test_none_is_named_where_all_learn(tmp_path):
    assert ruined_runs({"abc, seed 0": read_run(run_folder(tmp_path / "run"))}) == ""


def test_the_first_is_told_with_its_figures_and_the_others_by_name(tmp_path):
    good, bad = read_run(run_folder(tmp_path / "good")), read_run(collapsed(tmp_path / "bad"))
    said = ruined_runs({"sparse, seed 0": good, "abc, seed 0": bad, "abc, seed 1": bad, "abc, seed 2": bad})
    assert said == (
        "Look at abc, seed 0: the policy has collapsed to few responses (entropy 0 nats per token, KL 168 nats per "
        "response where the target is 6). Look also at abc, seed 1; abc, seed 2. Read the responses, in report.html in "
        "the run's folder, before you trust such a score."
    )


def test_the_page_of_a_comparison_opens_with_them(tmp_path):
    for arm, make in {"abc": collapsed, "sparse": run_folder}.items():
        make(tmp_path / "runs" / arm / "seed-0", redistributor=arm)
    comparison_page.write([tmp_path], tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text()
    assert content.index("Look at abc, seed 0: the policy has collapsed") < content.index("One seed gives no range")
