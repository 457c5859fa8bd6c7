"""The same arms under every critic, on the smallest embedded task."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from table_task import settings
from tiny_toy import TINY

from benchmarks.critics import SCRIPT
from benchmarks.experiments.critics import EXPERIMENT, OVER_POSITION, comparisons, panels, with_critic
from benchmarks.experiments.settings import Critics
from benchmarks.reporting.statistics import Results, holm
from benchmarks.runs.comparison import ComparisonResults
from benchmarks.tasks.definitions import Toy
from benchmarks.tasks.model_settings import Loading
from models.weights.lora_settings import LoraSettings
from rlhf_core.config import PPOConfig

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
    assert "over position, last 2" in lines[0]
    assert [line.split(" | ")[:2] for line in lines[2:5]] == [["| " + name, "sparse"] for name in done.results]
    assert "critic_gradient_norm" in done.results["adapter"].curves["sparse"]
    assert "critic_gradient_norm" not in done.results["shared"].curves["sparse"]
    first = [results.curves["sparse"]["score"][:, :2] for results in done.results.values()]
    assert (first[0] == first[1]).all()  # in the warm-up all see the same policy
    assert (first[0] == first[2]).all()


def test_comparisons_are_paired_by_seed_and_corrected_within_a_question(tmp_path):
    seeds = (0, 1, 2, 3)

    def curves(*ends):
        """Explained variance over position of each seed, far from its end in all but the last ten steps."""
        explained = np.array([[9.0] * 5 + [end] * 10 for end in ends])
        return {OVER_POSITION: explained, "score": explained}

    shared = {"sparse": curves(-0.3, -0.2, -0.4, -0.1), "abc": curves(-0.2, -0.1, -0.3, 0.0)}
    model = {"sparse": curves(0.3, 0.5, 0.1, 0.5), "abc": curves(0.3, 0.4, 0.1, 0.6)}
    found = {
        name: Results(task="toy", seeds=seeds, curves=by_arm) for name, by_arm in (("shared", shared), ("model", model))
    }
    done = ComparisonResults(settings=settings(tmp_path), task=Toy(), config=PPOConfig(), results=found)
    rows = {row[:3]: row[3:] for row in comparisons(done, Critics()).rows}
    assert list(rows) == [
        *(("0, a mean per position", name, arm) for name in found for arm in ("sparse", "abc")),
        *(("critic 'shared'", "model", arm) for arm in ("sparse", "abc")),
        *(("sparse", name, "abc") for name in found),
    ]
    means = [one.mean for one, *_ in rows.values()]
    assert means == pytest.approx([-0.25, -0.15, 0.35, 0.35, 0.6, 0.5, 0.1, 0])
    p, corrected = rows["critic 'shared'", "model", "sparse"][1:]
    alone = stats.ttest_1samp([0.6, 0.7, 0.5, 0.6], 0).pvalue
    assert (p, corrected) == (pytest.approx(alone), pytest.approx(2 * alone))
    of_ends = [curve[OVER_POSITION][:, -1] for by_arm in found.values() for curve in (by_arm.curves.values())]
    against_0 = holm([stats.ttest_1samp(ends, 0).pvalue for ends in of_ends])
    assert [row[2] for row in list(rows.values())[:4]] == pytest.approx(against_0)


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
