"""Every experiment script end to end on a thirty-line policy: what it runs, writes, shares and refuses."""

import gzip
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console
from table_task import TableTask, settings

from benchmarks.base.folder_lock import locked
from benchmarks.base.run_folder import claim_folder, run_record
from benchmarks.experiments import table1
from benchmarks.experiments.settings import SamplingMismatch as Mismatch
from benchmarks.experiments.settings import TableOne
from benchmarks.runs.comparison import run_comparison
from benchmarks.runs.samplers import SAMPLERS
from benchmarks.runs.settings import SAMPLER_NAMES, ComparisonSettings

SCRIPTS = {
    "learning_curves": "curves",
    "reward_kl": "frontier",
    "over_optimisation": "proxy_gold",
    "generation_length": "lengths",
    "beta_sweep": "betas",
    "sampling_mismatch": "mismatch",
}
OPTIONS = {
    "generation_length": {"lengths": ((1, 3), (2, 5))},
    "beta_sweep": {"method": "uniform", "betas": (0.0, 1.0)},
    "sampling_mismatch": {"lengths": ((1, 4),), "samplers": ("matched", "unrestricted-logprobs")},
}


FAST = ("reward_kl",)
"""One of a kind; the others are slow tests."""


def script(name):
    return importlib.import_module(f"benchmarks.{name}").SCRIPT


def run(name, chosen, **ppo):
    text, made = io.StringIO(), script(name)
    options = made.options(**OPTIONS.get(name, {}))
    done = made.experiment().run(chosen, TableTask(), ppo, Console(file=text, width=160), options)
    return done, text.getvalue()


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS if name not in FAST)]
)
def test_a_script_writes_its_table_and_a_figure_one_can_look_at(name, tmp_path):
    chosen = settings(tmp_path, steps=3)
    done, printed = run(name, chosen)
    folder = tmp_path / "out" / name
    assert {path.name for path in folder.iterdir()} == {
        "table.md", "table.csv", f"{SCRIPTS[name]}.png", f"{SCRIPTS[name]}.pdf"
    }  # fmt: skip
    image = Image.open(folder / f"{SCRIPTS[name]}.png").convert("L")
    dark = sum(image.histogram()[:128])
    assert dark > 1000
    assert "written to" in printed
    rows = (folder / "table.md").read_text().count("\n| ")
    assert rows >= len(done.results)
    runs = list((tmp_path / "out" / "runs").glob("**/run.json"))
    panels = script(name).experiment().panels(chosen, script(name).options(**OPTIONS.get(name, {})))
    assert len(runs) == len(panels) * 2 * 2


@pytest.mark.usefixtures("in_threads", "undrawn")
@pytest.mark.slow
def test_scripts_share_the_runs_of_one_folder(tmp_path):
    chosen = settings(tmp_path, steps=3)
    run("value_loss_variance", chosen)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").glob("*/*/run.json")}
    run("reward_kl", chosen)
    run("learning_curves", replace(chosen, models=None, cache="elsewhere"))  # where files stand makes no difference
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").glob("*/*/run.json")}
    table = table1.table([table1.read(tmp_path / "out")], TableOne(comparisons=[]))
    assert [row[1] for row in table.rows] == ["sparse", "uniform"]
    assert table.rows[0][2] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("in_threads", "undrawn")
def test_a_gold_score_is_logged_on_every_step(tmp_path):
    done, _ = run("over_optimisation", settings(tmp_path, steps=3))
    assert done.only.curves["sparse"]["gold_score"].shape == (2, 3)


def test_over_optimisation_without_a_gold_score_is_refused_before_anything_runs(tmp_path):
    made = script("over_optimisation")
    panels, options = made.experiment().panels, made.options()
    with_gold, without = str(tmp_path), str(tmp_path / "gold")
    (tmp_path / "gold").mkdir()
    for task, models in (("toy", None), ("positive_generation", with_gold)):
        assert len(panels(ComparisonSettings(task=task, models=models), options)) == 1
    for task, models in (("positive_generation", without), ("positive_generation", None), ("dialogue", with_gold)):
        with pytest.raises(ValueError, match=f"task '{task}' with models .* has no gold score"):
            panels(ComparisonSettings(task=task, models=models), options)


@pytest.mark.usefixtures("in_threads", "undrawn")
def test_the_papers_curves_stand_behind_ours_on_its_own_tasks_only(tmp_path):
    file = tmp_path / "curves.json.gz"
    with gzip.open(file, "wt") as lines:
        json.dump({"dialogue": {"reward": {"sparse": [[0, 1, 2]], "abc": [[1, 2, 3]]}}}, lines)
    with pytest.raises(ValueError, match="did not run the task 'toy'"):
        run("learning_curves", settings(tmp_path, paper_curves=str(file)))
    run("learning_curves", settings(tmp_path / "b", task="dialogue", paper_curves=str(file)))
    with pytest.raises(ValueError, match="paper_curves: no file"):
        ComparisonSettings(paper_curves=str(tmp_path / "absent"))


def test_table_one_refuses_what_is_no_comparison(tmp_path):
    claim_folder(tmp_path, run_record({}, {}, made_by="another script"), overwrite=False)
    with pytest.raises(ValueError, match="made by another script"):
        table1.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent holds no comparison"):
        TableOne(comparisons=[str(tmp_path), str(tmp_path / "absent")]).require_comparisons()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("generation_length", {"lengths": ((3, 3),)}, "low < high"),
        ("beta_sweep", {"betas": (0.5, 2.0)}, "between 0 and 1"),
        ("reward_kl", {"levels": ()}, "levels must be"),
        ("over_optimisation", {"block": 0}, "block must be 1 or more"),
        ("sampling_mismatch", {"samplers": ("dropout",)}, "matched among them"),
    ],
)
def test_impossible_options_are_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        script(name).options(**options)


def test_every_length_and_sampler_is_a_panel():
    assert tuple(SAMPLERS) == SAMPLER_NAMES
    panels = script("sampling_mismatch").experiment().panels(ComparisonSettings(), Mismatch())
    assert len({panel.name for panel in panels}) == 6
    assert panels[0].changes == {"min_length": 8, "max_length": [8, 15]}


@pytest.mark.parametrize("name", ["positive_generation", "summarisation", "dialogue"])
def test_tasks_have_learning_curves_of_their_own(name):
    defaults = script(name).parser().get_defaults()
    assert (defaults.task, defaults.out) == (name, f"runs/{name}")


def refused(chosen, ppo=None, task=None):
    from benchmarks.runs.comparison import Panel

    with pytest.raises(ValueError) as error:
        run_comparison(chosen, task or TableTask(), ppo or {}, [Panel()])
    return str(error.value)


@pytest.mark.usefixtures("in_threads")
def test_what_cannot_run_is_refused_before_anything_runs(tmp_path):
    chosen = settings(tmp_path)
    assert refused(chosen, {"gamma": 0.9}).startswith("uniform conserves the score")
    assert "abc is not possible here: " in refused(replace(chosen, redistributors=["sparse", "abc"]))
    assert "eval_prompts 9 exceed the task's 3" in refused(replace(chosen, eval_prompts=9))
    models = tmp_path / "out" / "models"
    assert "would hold the models" in refused(replace(chosen, models=str(models)))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_threads")
def test_another_scripts_folder_is_never_deleted(tmp_path):
    folder = tmp_path / "out"
    claim_folder(folder, run_record({}, {}, made_by="benchmarks.prepare"), overwrite=False)
    (folder / "policy").write_text("weights")
    with pytest.raises(FileExistsError, match=r"was made by benchmarks\.prepare"):
        run("reward_kl", settings(tmp_path, overwrite=True))
    assert (folder / "policy").exists()


def test_two_processes_cannot_work_in_one_folder(tmp_path):
    with (
        locked(tmp_path / "out"),
        pytest.raises(FileExistsError, match="another process works in"),
        locked(tmp_path / "out"),
    ):
        pass


CHILD = """
import sys
from rich.console import Console
sys.path[:0] = {paths!r}
from table_task import TableTask, settings
from pathlib import Path
from benchmarks.learning_curves import SCRIPT
from benchmarks.runs.worker_pool import Interrupted
if __name__ == "__main__":
    try:
        SCRIPT.experiment().run(settings(Path({out!r}), steps=4000, seeds=2, processes=2), TableTask(), {{}}, Console())
    except Interrupted as stopped:
        print("STOPPED", stopped, flush=True)
        sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_experiment_ends_with_all_its_workers(tmp_path, how, code):
    """Ctrl-C goes to the whole process group, as from a terminal; a kill only to the parent."""
    file = tmp_path / "child.py"
    file.write_text(CHILD.format(paths=sys.path, out=str(tmp_path)))
    process = subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = tmp_path / "out" / "runs" / "sparse" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert metrics.stat().st_size > 0
    group = os.getpgid(process.pid)
    os.killpg(group, how) if how == signal.SIGINT else process.send_signal(how)
    printed, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert ("0 of 4 due runs finished" in printed) == (how == signal.SIGINT)
    stops = ("Ctrl-C (SIGINT): the step in progress", "SIGTERM")
    assert [said.count(stop) for stop in stops] == [how == signal.SIGINT, 0]  # not once for every worker
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.2)
    else:
        pytest.fail("a worker outlived the experiment")
    size = metrics.stat().st_size
    time.sleep(1)
    assert metrics.stat().st_size == size
