"""The same arms under every critic, on the smallest embedded task."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from table_task import settings
from tiny_toy import TINY

from benchmarks.critics import SCRIPT
from benchmarks.experiments.critics import EXPERIMENT, panels, with_critic
from benchmarks.experiments.settings import Critics
from benchmarks.tasks.definitions import Toy
from benchmarks.tasks.model_settings import Loading
from models.weights.lora_settings import LoraSettings

LOADING = Loading(lora=LoraSettings(rank=2))
PPO = {"rollout_batch_size": 4, "minibatch_size": 4, "epochs": 1, "critic_warmup": 1, "max_length": [8, 8]}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_every_critic_has_its_rows(tmp_path):
    chosen = settings(tmp_path, redistributors="sparse", seeds=1, processes=0, loading=LOADING)
    task, text = Toy(cache=str(tmp_path / "cache"), recipe=TINY, loading=LOADING), io.StringIO()
    done = EXPERIMENT.run(chosen, task, PPO, Console(file=text, width=160), Critics())
    assert list(done.results) == ["shared", "adapter", "model"]
    lines = (tmp_path / "out" / "critics" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:5]] == [["| " + name, "sparse"] for name in done.results]
    assert "critic_gradient_norm" in done.results["adapter"].curves["sparse"]
    assert "critic_gradient_norm" not in done.results["shared"].curves["sparse"]
    first = [results.curves["sparse"]["score"][:, :2] for results in done.results.values()]
    assert (first[0] == first[1]).all()  # in the warm-up all see the same policy
    assert (first[0] == first[2]).all()


def test_a_panel_is_a_task_whose_policy_has_that_critic(tmp_path):
    task = Toy(cache=str(tmp_path), recipe=TINY, loading=LOADING)
    found = panels(settings(tmp_path), Critics(critics=("model", "shared")))
    assert [panel.task(task).loading.critic for panel in found] == ["model", "shared"]
    assert with_critic(task, "shared") == task
    with pytest.raises(ValueError, match="--loading.lora.rank 8"):
        with_critic(replace(task, loading=Loading()), "adapter")


def test_critics_that_make_no_comparison(tmp_path):
    with pytest.raises(ValueError, match="different kinds, at least one"):
        Critics(critics=("model", "model"))
    with pytest.raises(ValueError, match="name it in --critics"):
        panels(settings(tmp_path, loading=Loading(critic="model")), Critics())
    assert SCRIPT.parser().parse_args(["--critics", "[shared, model]"]).critics == ("shared", "model")
