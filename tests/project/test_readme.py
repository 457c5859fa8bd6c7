"""What the README says works: its Python runs, its files exist, and what it logs is in docs/metrics.md."""

import contextlib
import json
import re
from pathlib import Path

import pytest

from redistributors import REDISTRIBUTORS, check
from rlhf_core import PPOTrainer, Redistributor
from rlhf_core.config import PPOConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def example_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        exec(compile(EXAMPLES[0], "README.md", "exec"), names)
    return names, folder / "run"


def test_the_example_runs_and_logs_only_metrics_of_the_glossary(example_run):
    names, folder = example_run
    assert (folder / "checkpoint-2/policy").is_dir()
    logged = set().union(*(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()))
    trainer = names["trainer"]
    assert isinstance(trainer, PPOTrainer)
    logged |= {f"eval_{name}" for name in trainer.evaluate([[2, 3]])}
    described = set(re.findall(r"`([a-z_0-9]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", METRICS, flags=re.MULTILINE))))
    described |= {"step"}
    assert logged <= described


@pytest.fixture(scope="module")
def one_rollout(example_run):
    names = dict(example_run[0])
    with contextlib.chdir(example_run[1].parent):
        exec(compile(EXAMPLES[1], "README.md", "exec"), names)
    return names


def test_one_rollout_goes_through_every_method(one_rollout):
    assert set(one_rollout["methods"]) == set(REDISTRIBUTORS)
    assert "if " not in EXAMPLES[1]
    assert all(
        request in one_rollout["rollout"].evidence for m in one_rollout["methods"].values() for request in m.needs
    )


def test_the_ten_line_redistributor_is_one(one_rollout):
    names = dict(one_rollout)
    exec(compile(EXAMPLES[2], "README.md", "exec"), names)
    method = names["FirstToken"]()
    assert isinstance(method, Redistributor)
    assert check(method).passed
    assert len(EXAMPLES[2].strip().splitlines()) <= 13
    token_scores = method(names["rollout"])
    assert (token_scores != 0).sum(1).tolist() == [1] * 8
    learner = PPOTrainer(names["policy"], names["reward"], method, PPOConfig(first_step_checks="warn"))
    assert learner.redistribute(names["rollout"]).equal(token_scores)


def test_the_readme_counts_and_names_every_method():
    _, table = README.split("\n## Methods\n")
    named = {name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.+?)`", cell)}
    assert f"| methods of credit | {len(REDISTRIBUTORS)}, and your own |" in README
    assert set(REDISTRIBUTORS) <= named


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([\w/._-]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
