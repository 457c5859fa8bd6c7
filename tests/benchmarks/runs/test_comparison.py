"""Arms × seeds end to end on a thirty-line policy: pairing, resuming, and refusing to mix settings."""

import io
import json
import re
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from often import fast
from rich.console import Console
from table_task import PPO, TableTask, settings, table_loaded

from benchmarks.base.presets import PRESETS
from benchmarks.reporting.comparison_report import build
from benchmarks.reporting.terminal_heat_map import terminal
from benchmarks.runs import comparison
from benchmarks.runs.arms import parse_arms
from benchmarks.runs.comparison import Panel, announced, left_out, plan, ppo_of
from benchmarks.runs.finished_runs import load_results
from benchmarks.runs.ppo_settings import PAPER_SETTINGS, with_settings
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import (
    credit_figures,
    examples,
    execute,
    frozen_rollout,
    in_labels,
    log_of,
    require_kept,
)
from benchmarks.runs.worker_pool import Interrupted, RunFailed, finished, run_all
from benchmarks.tasks.definitions import make_task
from benchmarks.tasks.model_settings import Loading
from benchmarks.value_loss_variance import SCRIPT
from redistributors import RewardAttention, Sparse, Uniform
from rlhf_core.config import PPOConfig


@dataclass(frozen=True, kw_only=True)
class BrokenTask:
    ppo = PPO
    loading = Loading()

    def load(self):
        raise OSError("the disk is gone")


def run_compare(chosen, task=None, ppo=None):
    text = io.StringIO()
    study = SCRIPT.experiment().run(chosen, task or TableTask(), ppo or {}, Console(file=text, width=120))
    return build(study.only), text.getvalue()


def one_run(tmp_path, arm="sparse", seed=0):
    chosen = settings(tmp_path, redistributors=[arm], seeds=[seed])
    (run,) = plan(chosen, TableTask(), Panel(), with_settings(PAPER_SETTINGS, PPO))
    return replace(run, fingerprint="table")


def test_arms_and_their_labels():
    arms = parse_arms("sparse, uniform(beta=0.8), abc-d(rows=last, shift=1)@lam=1@kl.init_coef=0.1")
    assert [arm.label for arm in arms] == ["sparse", "uniform-beta0.8", "abc-d-rowslast-shift1-lam1-init_coef0.1"]
    assert arms[1].redistributor() == Uniform(beta=0.8)
    assert arms[2].changes == {"lam": 1, "kl.init_coef": 0.1}
    assert parse_arms(["sparse", "uniform(beta=0.8)"]) == arms[:2]
    assert parse_arms("") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("magic", "no redistributor 'magic'; one of sparse"),
        ("uniform(beta=2)", "beta is the share"),
        ("uniform(alpha=2)", "alpha"),
        ("uniform(beta=)", "expected setting=value"),
        ("uniform(beta=1", "cannot read the arm"),
        ("sparse@", "cannot read the arm"),
        ("sparse/../../x", "cannot read the arm"),
        ("sparse,sparse", "named 2 times"),
    ],
)
def test_bad_arms_are_refused_in_words(text, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        parse_arms(text)


def test_a_label_cannot_leave_its_folder():
    for arm in parse_arms(["uniform(beta=0.5)@kl.kind=k3"]):
        assert "/" not in arm.label


def test_ppo_settings_are_converted_and_checked():
    config = with_settings(
        replace(PAPER_SETTINGS, learning_rate=1e-3),
        {"lam": 1, "kl.init_coef": 0, "kl": {"kind": "k3"}},
    )
    assert (config.lam, config.kl.init_coef, config.kl.kind, config.learning_rate) == (1.0, 0.0, "k3", 1e-3)
    assert isinstance(config.lam, float)
    for changes, said in (({"lamda": 1}, "lamda"), ({"lam": "x"}, "lam"), ({"lam": 3}, "lam must be in")):
        with pytest.raises(ValueError, match=said):
            with_settings(PAPER_SETTINGS, changes)


@pytest.mark.slow
def test_end_to_end_resume_and_refusals(tmp_path, request):
    chosen = settings(tmp_path, processes=1)
    report, printed = run_compare(chosen)
    out = tmp_path / "out"
    assert report.verdict in printed.replace("\n", " ") or "no method is called better" in printed
    expected = {"run.json", "report.html", "report.json", "table.md", "table.csv", "results.json", "heatmap.html"}
    expected |= {"figures", "runs"}
    assert {path.name for path in out.iterdir()} == expected
    assert "true contribution" in (out / "heatmap.html").read_text(encoding="utf-8")
    records = sorted(out.glob("runs/*/seed-*/run.json"))
    assert len(records) == 4
    final = json.loads(records[0].read_text())["final"]
    assert {"held_out_score", "held_out_gold", "credit_truth"} == final.keys()

    request.getfixturevalue("undrawn")
    request.getfixturevalue("in_threads")  # once through a real process is enough, and results may not depend on it

    # Methods meet the same first batch: before any update their responses are the same.
    curves = report.results.curves
    for metric in ("score", "length"):
        assert (curves["sparse"][metric][:, 0] == curves["uniform"][metric][:, 0]).all()
        assert curves["sparse"][metric].shape == (2, 2)

    # A finished run is not repeated, a cut one goes on from its checkpoint and comes out the same.
    stamps = {path: path.stat().st_mtime_ns for path in records}
    before = (records[0].parent / "metrics.jsonl").read_text().splitlines()
    records[0].unlink()
    again, _ = run_compare(chosen)
    assert {path for path in records if path.stat().st_mtime_ns != stamps[path]} == {records[0]}
    after = (records[0].parent / "metrics.jsonl").read_text().splitlines()
    timing = ("seconds", "tokens_per_second")
    for old, new in zip(before, after, strict=True):
        pair = [{k: v for k, v in json.loads(line).items() if k not in timing} for line in (old, new)]
        assert pair[0] == pair[1]
    assert again.verdict == report.verdict

    # Other settings are refused by name, and nothing is touched.
    with pytest.raises(FileExistsError, match=r"ppo\.lam was 0\.95 and is 0\.5"):
        run_compare(chosen, ppo={"lam": 0.5})
    with pytest.raises(FileExistsError, match="steps was 2 and is 3"):
        run_compare(replace(chosen, steps=3))
    assert len(list(out.glob("runs/*/seed-*/run.json"))) == 4


def test_a_run_by_itself(tmp_path):
    run = one_run(tmp_path, "sparse@lam=1", seed=3)
    assert not finished(run)
    execute(run)
    assert finished(run)
    record = json.loads((run.folder / "run.json").read_text())
    assert record["settings"]["ppo"]["lam"] == 1.0
    assert record["settings"]["ppo"]["seed"] == 3
    assert record["settings"]["redistributor"] == "Sparse()"
    assert run.folder == tmp_path / "out" / "runs" / "sparse-lam1" / "seed-3"
    with pytest.raises(FileExistsError, match=r"seed-3 holds a finished run.*steps was 2 and is 5"):
        finished(replace(run, steps=5))
    results = load_results("t", [run])
    assert results.seeds == (3,)
    assert results.curves["sparse-lam1"]["held_out_gold"].shape == (1, 1)


def test_a_run_on_other_models_than_its_siblings_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="changed after the experiment began"):
        execute(replace(one_run(tmp_path), fingerprint="another"))


def test_a_finished_run_with_lines_missing_is_not_averaged(tmp_path):
    run = one_run(tmp_path)
    execute(run)
    metrics = run.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    del lines[1]["score"]
    lines[0]["kl"] = "nan"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = load_results("t", [run]).curves["sparse"]
    assert np.isnan(curves["score"]).tolist() == [[False, True]]
    assert np.isnan(curves["kl"]).tolist() == [[True, False]]
    metrics.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match="has 1 step, not the 2"):
        load_results("t", [run])


def test_a_failing_run_is_named(tmp_path, in_threads):
    run = replace(one_run(tmp_path), task=BrokenTask())
    with pytest.raises(RuntimeError, match="sparse, seed 0 failed: the disk is gone"):
        run_all([run], processes=1)
    assert not finished(run)


def test_credit_is_compared_with_the_truth():
    loaded, config = table_loaded(), with_settings(PAPER_SETTINGS, PPO)

    class Truth(Uniform):
        """Hands out exactly the true contributions."""

        def __call__(self, rollout):
            return (rollout.sequences.response_ids == 3) * rollout.sequences.response_mask * 1.0

    rollout = frozen_rollout(loaded, [Sparse()], config, [[1], [2], [4], [1, 5]])
    assert credit_figures(loaded, rollout, Truth())["credit_truth"] == pytest.approx(1)
    assert credit_figures(loaded, rollout, Sparse())["credit_truth"] < 1
    assert credit_figures(loaded, rollout, Uniform()) == {}  # equal credit ranks nothing
    assert credit_figures(replace(loaded, contributions=None), rollout, Truth()) == {}


class Learning(Uniform):
    """Credit that says so until it has observed a rollout."""

    def __call__(self, rollout):
        raise AssertionError("measured before it has learned")

    def observe(self, rollout):
        pass

    def state(self):
        return {}

    def load_state(self, state):
        pass


def test_what_has_learned_nothing_is_not_measured():
    loaded, config = table_loaded(), with_settings(PAPER_SETTINGS, PPO)
    assert credit_figures(loaded, frozen_rollout(loaded, [], config, [[1], [2]]), Learning()) == {}
    shown = examples(loaded, parse_arms(f"uniform,{__name__}.Learning"), config, [[1], [2]])
    assert [list(example.rows) for example in shown] == [["uniform"]] * 2
    shown = examples(replace(loaded, contributions=None), parse_arms(f"{__name__}.Learning"), config, [[1]])
    assert len(terminal(shown).renderables) == 2


def test_examples_show_the_same_responses_once_per_method():
    config = with_settings(PAPER_SETTINGS, PPO)
    arms = parse_arms("sparse,uniform,sparse@lam=1")
    shown = examples(table_loaded(), arms, config, [[i % 5 + 1] for i in range(12)])
    assert [list(example.rows) for example in shown] == [["sparse", "uniform"]] * 12
    for example in shown:
        for row in example.rows.values():
            assert sum(row) == pytest.approx(example.score)
            assert len(row) == len(example.tokens)
        truth = example.reference_rows["true contribution"]
        assert truth == tuple(float(token.strip() == "3") for token in example.tokens)
        assert "⟨eos⟩" not in example.tokens[:-1]
    assert any(example.tokens[-1] == "⟨eos⟩" for example in shown)


@pytest.mark.parametrize(
    "bad", [{"seeds": 0}, {"seeds": [1, 1]}, {"seeds": [-1]}, {"steps": 0}, {"processes": -1}, {"eval_prompts": 0}]
)
def test_bad_comparisons_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ComparisonSettings(**bad)


def test_controls_join_unless_already_there():
    assert [arm.label for arm in ComparisonSettings().arms()] == ["sparse", "uniform", "abc", "sparse-lam1"]
    twice = ComparisonSettings(redistributors=["sparse@lam=1"])
    assert [arm.label for arm in twice.arms()] == ["sparse-lam1"]


@pytest.mark.parametrize(
    "preset",
    fast(("demo", "positive_generation_cpu"), sorted(PRESETS.glob("*.yaml")), lambda path: path.stem),
    ids=lambda path: path.stem,
)
def test_presets_can_be_run(preset):
    given = SCRIPT.parser().parse_args(["--config", str(preset)], defaults=False).as_dict()
    chosen = ComparisonSettings(
        **{name: value for name, value in given.items() if name not in ("config", "ppo", "loading")}
    )
    runs = plan(chosen, TableTask(), Panel(), with_settings(PAPER_SETTINGS, given.get("ppo", {})))
    assert len(runs) == len(chosen.arms()) * len(chosen.seed_list())


def test_the_papers_presets_hold_the_papers_settings():
    given = SCRIPT.parser().parse_args(["--config", str(PRESETS / "positive_generation_paper.yaml")], defaults=False)
    paper = PPOConfig.from_paper("positive_generation")
    assert with_settings(paper, given.as_dict()["ppo"]) == paper
    for task in ("summarisation", "dialogue"):
        given = SCRIPT.parser().parse_args(["--config", str(PRESETS / f"{task}_paper.yaml")], defaults=False).as_dict()
        config = with_settings(with_settings(paper, make_task(task).ppo), given["ppo"])
        assert replace(config, micro_batch_tokens=4096) == PPOConfig.from_paper(task)


def test_the_command_line_says_what_is_wrong(capsys, tmp_path):
    for argv, said in (
        (["--redistributors", "magic"], "no redistributor 'magic'"),
        (["--ppo.lam", "3"], "lam must be in"),
        (["--ppo.seed", "3"], "ppo.seed"),
        (["--task", "chess"], "chess"),
    ):
        with pytest.raises(SystemExit):
            SCRIPT.main([*argv, "--out", str(tmp_path / "out")])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_of_this_process_come_out_as_those_of_workers(tmp_path, in_threads):
    def curves(place, processes):
        run = replace(one_run(tmp_path / place), steps=2)
        run_all([run], processes=processes)
        found = load_results("t", [run]).curves["sparse"]
        return {name: values.tolist() for name, values in found.items() if name not in ("seconds", "tokens_per_second")}

    assert curves("here", 0) == curves("there", 1)


@pytest.mark.parametrize("written", ["abc(beta=0.5)@lam=1", "segment(inner=uniform(beta=0.5), place=end)"])
def test_an_error_that_begins_with_the_method_begins_with_the_arm(written):
    (arm,) = parse_arms([written])
    method = arm.redistributor()
    assert in_labels(arm, f"{method} is lost, as with abc") == f"{arm.label} is lost, as with abc"
    assert in_labels(arm, f"lost: {method} itself") == f"lost: {method} itself"


def test_a_run_of_this_process_that_fails_or_is_stopped_is_named(tmp_path, monkeypatch):
    run = replace(one_run(tmp_path), task=BrokenTask())
    with pytest.raises(RunFailed, match=r"sparse, seed 0 failed: the disk is gone \(more in .*seed-0.log\)"):
        run_all([run], processes=0)
    assert "Traceback" in log_of(run).read_text()
    monkeypatch.setattr(BrokenTask, "load", lambda _: sys.exit(130))
    with pytest.raises(Interrupted, match="0 of 1 due run finished"):
        run_all([run], processes=0)


def test_the_first_lines_say_which_arms_run_and_which_was_added(tmp_path):
    def said(**changes):
        asked = settings(tmp_path, seeds=1, **changes)
        return announced(asked, plan(asked, TableTask(), Panel(), ppo_of(TableTask(), PPO)))[1]

    added = " (sparse-lam1 runs besides as a control; --controls '' leaves it out)"
    assert said(redistributors="uniform", controls="sparse@lam=1").startswith(f"uniform, sparse-lam1{added}: 2 runs")
    assert said(redistributors="sparse@lam=1", controls="sparse@lam=1").startswith("sparse-lam1: 1 run of")
    assert said(redistributors="uniform", controls="").startswith("uniform: 1 run of")


@pytest.mark.usefixtures("undrawn", "in_threads")
def test_a_comparison_says_that_all_has_finished_or_how_to_see_what_has(tmp_path, monkeypatch, capsys):
    run_compare(settings(tmp_path, redistributors="sparse", seeds=1))
    assert "nothing is trained" not in capsys.readouterr().err
    run_compare(settings(tmp_path, redistributors="sparse", seeds=1))
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "finished at" in line]
    assert re.match(r"the one run has finished at step \d+ on [\d-]{10} [\d:]{5} UTC, so nothing is trained; ", said)
    assert all(way in said for way in ("--redistributors", "--seeds", "--steps", "--out", "--overwrite true"))

    def fail(*_):
        raise RunFailed("sparse, seed 1 failed: the disk is gone")

    monkeypatch.setattr(comparison, "run_all", fail)
    page = f"benchmarks report {tmp_path / 'out'} writes a page of them"
    with pytest.raises(RunFailed, match=rf"disk is gone\nfinished: 1 of 2 runs; python -m {page}"):
        run_compare(settings(tmp_path, redistributors="sparse", seeds=2))
    with pytest.raises(RunFailed, match=r"disk is gone$"):
        run_compare(settings(tmp_path / "other", redistributors="sparse", seeds=2))


@pytest.mark.parametrize(
    ("arms", "ppo", "runs", "without"),
    [
        ("sparse,uniform", {}, ["sparse", "uniform", "sparse-lam1"], []),
        ("sparse", {"lam": 1.0}, ["sparse"], ["sparse-lam1"]),
        ("sparse", {"advantages": "rloo", "responses_per_prompt": 2}, ["sparse"], ["sparse-lam1"]),
        ("sparse@gamma=0.9", {"advantages": "reinforce_plus_plus"}, ["sparse-gamma0.9", "sparse-lam1"], []),
        ("sparse@lam=1", {"advantages": "reinforce_plus_plus"}, ["sparse-lam1"], []),  # asked for, so it is no control
    ],
)
def test_a_control_that_would_repeat_an_arm_is_left_out_and_named(tmp_path, arms, ppo, runs, without):
    asked = settings(tmp_path, redistributors=arms, controls="sparse@lam=1", seeds=1)
    config = ppo_of(TableTask(), {**PPO, **ppo})
    planned = plan(asked, TableTask(), Panel(), config)
    assert [run.arm.label for run in planned] == runs
    assert left_out(asked, [Panel()], config) == without
    named = "without the control sparse-lam1, which would repeat another arm with these settings"
    assert (named in announced(asked, planned, left_out=without)[1]) == bool(without)


@pytest.mark.parametrize("method", [Uniform(), RewardAttention()])
def test_dense_credit_that_an_estimator_loses_is_refused_before_any_run(method):
    config = PPOConfig(advantages="grpo", responses_per_prompt=2)
    with pytest.raises(ValueError, match="advantages 'grpo' add up a response's rewards before they compare them"):
        require_kept(method, config)
    require_kept(Sparse(), config)
    require_kept(method, replace(config, advantages="rloo_to_go"))
    require_kept(method, replace(config, first_step_checks="warn"))
