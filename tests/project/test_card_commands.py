"""Commands with ``--device cuda`` or its like, at the smallest size; on a pretended card where there is none."""

import json
import os

import pytest
import torch
from prepared import prepared

from benchmarks import card, compare, credit_faithfulness, memory, positive_generation, throughput
from models.tiny import save_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card"),
]
ON_A_CARD = ["--loading.device", "cuda"]
RUNS = ["--seeds", "1", "--steps", "2", "--eval_every", "2", "--eval_prompts", "4", "--processes", "0"]
SIZES = [
    "--ppo.rollout_batch_size",
    "4",
    "--ppo.minibatch_size",
    "2",
    "--ppo.min_length",
    "2",
    "--ppo.max_length",
    "[3, 5]",
]


@pytest.mark.parametrize("script", [positive_generation, compare])
def test_runs_of_a_comparison(script, tmp_path):
    apart = ["--task", "positive_generation", "--loading.reward_device", "cpu"]
    task = apart if script is compare else []
    models = ["--models", str(prepared(tmp_path / "models")), "--redistributors", "sparse,abc", "--controls", ""]
    out = ["--out", str(tmp_path / "out")]
    script.SCRIPT.main([*task, *models, *ON_A_CARD, *RUNS, *SIZES, *out])
    figures = [json.loads(line) for file in tmp_path.rglob("metrics.jsonl") for line in file.read_text().splitlines()]
    assert len(figures) == 2 * 2
    assert list(tmp_path.rglob("table.md"))


def test_faithfulness_of_credit(tmp_path):
    models = ["--task", "positive_generation", "--models", str(prepared(tmp_path / "models"))]
    sizes = ["--responses", "2", "--points", "2", "--continuations", "2", "--orders", "1", "--warm", "1"]
    methods = ["--redistributors", "uniform,abc"]
    credit_faithfulness.main([*models, *sizes, *methods, *ON_A_CARD, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "table.md").is_file()


def test_memory_beside_its_prediction(tmp_path, capsys):
    policy = save_tiny(tmp_path / "policy", context=128)
    reward = save_tiny(tmp_path / "reward", head="classifier", num_labels=2, context=128)
    models = ["--policy", policy, "--reward", reward, "--dtype", "float32", "--four_bit", "none", "--training", "full"]
    sizes = ["--prompt_tokens", "8", "--response_tokens", "8", "--rollout_batch_size", "4", "--card_gib", "8"]
    memory.main([*models, *sizes, "--gradient_checkpointing", "false", "--measure", "required"])
    assert "under a cap of" in capsys.readouterr().out


def test_throughput_to_its_end(tmp_path, monkeypatch):
    """All that is measured on the day that a card is lent, in processes of their own; here at the size of a first
    try."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), os.getcwd()]))
    throughput.main(["--cases", "[tiny]", "--repeats", "1", "--device", "cuda", "--out", str(tmp_path)])
    assert {path.stem for path in tmp_path.glob("*.csv")} == {"table", "phases", "noise"}


def test_a_card_is_measured_to_the_end(tmp_path, monkeypatch):
    """By the command for the day that a card is lent, at the size of a first try."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), os.getcwd()]))
    card.main(["--cases", "[tiny]", "--repeats", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "card.json").read_text())
    assert found["environment"]["devices"] != "no CUDA device"
    tiny = found["cases"]["tiny"]
    assert tiny["steps"][0]["sampled_tokens_per_second"] > 0
    memory = tiny["memory"]
    assert all(memory["measured_bytes"][phase] > 0 for phase in memory["predicted_bytes"])
