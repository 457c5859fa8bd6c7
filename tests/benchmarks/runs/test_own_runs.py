"""Comparing and training on one's own prompts and reward, from Python and from the command line."""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from stub_hub import serving

from benchmarks import train as train_command
from benchmarks.compare import SCRIPT, compare, train
from benchmarks.experiments import single_training
from benchmarks.experiments.own_runs import _methods
from benchmarks.runs import experiment
from benchmarks.tasks.model_settings import Loading
from models import LoraSettings, load_policy
from models.tiny import save_tiny
from redistributors import DecoderAttention, Position, PotentialProjection, Segment, Uniform
from rlhf_core.config import PPOConfig

PPO = {"rollout_batch_size": 4, "minibatch_size": 4, "epochs": 1, "max_length": [3, 5]}
FLAGS = [word for name, value in PPO.items() for word in (f"--ppo.{name}", json.dumps(value))]
ROWS = [{"prompt": f"w{2 + i} w{3 + i}", "answer": i} for i in range(20)]
CALLS: list[int] = []


def shorter(prompts, responses, answer):
    """Few words."""
    return [-float(len(response.split())) for response in responses]


def fails_later(prompts, responses):
    """Works when it is tried, and on the first evaluations."""
    CALLS.append(1)
    if len(CALLS) > 3:
        raise KeyError("late")
    return [0.0] * len(responses)


@dataclass(frozen=True)
class Raises:
    """Called with anything, it raises ``error``."""

    error: BaseException

    def __call__(self, *_, **__):
        raise self.error


@dataclass(frozen=True)
class Forgets:
    """A method that says it conserves the score, and drops half of it."""

    needs: ClassVar = frozenset()
    causal: ClassVar = True
    conserving: ClassVar = True

    def __call__(self, rollout):
        return Uniform()(rollout) / 2


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("policy") / "p", seed=1, hidden_size=16, n_layers=1, n_heads=2)


def given(policy, out, **changes):
    return {
        "policy": policy,
        "prompts": ROWS,
        "reward": shorter,
        "steps": 1,
        "ppo": PPO,
        "eval_prompts": 2,
        "out": out,
    } | changes


@pytest.mark.usefixtures("undrawn")
def test_a_function_of_this_file_is_compared_on_rows_of_this_process(policy, tmp_path, capsys):
    chosen = given(policy, tmp_path / "mine", redistributors=["sparse", Uniform(beta=0.5)], seeds=1, controls="")
    report = compare(**chosen)
    assert list(report.results.arms) == ["sparse", "uniform-beta0.5"]
    said = capsys.readouterr().out
    assert "2 runs of 1 step, one after the other (processes=2 runs two at a time), in " in said.replace("\n", " ")
    assert report.verdict in said.replace("\n", " ") or "seed" in report.verdict
    assert {"table.md", "heatmap.html", "results.json"} <= {path.name for path in (tmp_path / "mine").iterdir()}
    assert [json.loads(line) for line in (tmp_path / "mine.prompts.jsonl").read_text().splitlines()] == ROWS

    more = compare(**{**chosen, "redistributors": ["sparse", "uniform(beta=0.5)", "abc-d"]})  # goes on
    assert list(more.results.arms) == ["sparse", "uniform-beta0.5", "abc-d"]
    with pytest.raises(FileExistsError, match=r"mine.prompts.jsonl holds other prompts"):
        compare(**{**chosen, "prompts": ROWS[:10]})
    with pytest.raises(ValueError, match="abc is not possible here: a callable returns a score"):
        compare(**{**chosen, "redistributors": "abc", "out": tmp_path / "other"})


@pytest.mark.slow
def test_one_run_is_trained_and_taken_further(policy, tmp_path, capsys):
    where = train(**given(policy, tmp_path / "run", redistributor="abc-d"))
    assert where == tmp_path / "run" / "checkpoint-1" / "policy"
    assert load_policy(str(where))
    assert "held-out score" in capsys.readouterr().out
    assert_it_says_that_it_ended(given(policy, tmp_path / "run", redistributor="abc-d"), where, capsys)
    where = train(**given(policy, tmp_path / "run", redistributor="abc-d", steps=2))
    assert where.parent.name == "checkpoint-2"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="holds a run with other settings"):
        train(**given(policy, tmp_path / "run", redistributor="sparse", steps=2))
    (tmp_path / "run.prompts.jsonl").unlink()
    with pytest.raises(ValueError, match="holds a run with other settings: .*prompts was"):
        train(**given(policy, tmp_path / "run", redistributor="abc-d", steps=2, prompts=ROWS[:15]))
    (tmp_path / "run.prompts.jsonl").unlink()
    train(**given(policy, tmp_path / "run", redistributor="sparse", overwrite=True))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def assert_it_says_that_it_ended(chosen, policy, capsys):
    """In one line; and everything is left as it is."""
    run = policy.parents[1]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    end = json.loads((run / "report.json").read_text())["written"]
    assert train(**chosen) == policy
    said = capsys.readouterr()
    assert said.out.splitlines()[1:] == [  # after the number of prompts
        f"{run} finished at step 1 on {end}; its page is {run}/report.html. To train longer, raise --steps; to start "
        "anew, add --overwrite true. The policy is in",
        f"{policy}",
    ]
    assert "goes on" not in said.err
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("start", "name"), [(train, "redistributor"), (lambda **all_: compare(**all_, seeds=1), "redistributors")]
)
def test_a_method_that_breaks_the_contract_is_refused_before_the_first_step(policy, tmp_path, start, name):
    method = Forgets() if start is train else ["sparse", Forgets()]
    with pytest.raises(ValueError, match=r"Forgets: breaks the contract of a redistributor .*sum: rows miss the score"):
        start(**given(policy, tmp_path / "run", **{name: method}))
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_folder_that_holds_no_run_is_left_alone(policy, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        train(**given(policy, tmp_path / "run", overwrite=True))
    assert (tmp_path / "run" / "thesis.txt").exists()


def test_the_command_trains_says_what_it_wrote_and_what_went_wrong(policy, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    flags = ["--policy", policy, "--data", str(prompts), *FLAGS, "--steps", "2", "--eval_prompts", "2"]
    train_command.main([*flags, "--reward", f"{__name__}:shorter", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert said.startswith("own: responses of 1 to 5 tokens, 4 a step")
    assert said.endswith(f"{tmp_path / 'run' / 'checkpoint-2' / 'policy'}\n")
    for changed, status, words in (
        (["--reward", f"{__name__}:fails_later"], 1, r"sparse, seed 0 failed: KeyError: 'late' \(more in "),
        (["--reward", f"{__name__}:shortest"], 2, "has no 'shortest'; did you mean 'shorter'?"),
        (["--reward", f"{__name__}:shorter", "--redistributor", "abc"], 2, "abc is not possible here"),
        (
            ["--reward", f"{__name__}:shorter", "--ppo.max_length", "[80, 80]"],
            2,
            "or allow responses of at most",
        ),
        (["--reward", f"{__name__}:shorter", "--redistributor", "abd"], 2, "no redistributor 'abd'"),
    ):
        with pytest.raises(SystemExit) as ended:
            train_command.main([*flags, *changed, "--out", str(tmp_path / "failed")])
        assert ended.value.code == status
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert words.replace("\\", "") in error
    assert "KeyError: 'late'" in (tmp_path / "failed.log").read_text()
    assert SCRIPT.parser().parse_args([]).eval_prompts == 16


def test_a_run_that_is_stopped_says_the_command_to_go_on(tmp_path, monkeypatch, capsys):
    for stop, status in ((SystemExit(143), 143), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(single_training, "run_training", Raises(stop))
        monkeypatch.setattr(sys, "argv", ["dense-rlhf", "train", "--overwrite", "true"])
        with pytest.raises(SystemExit) as ended:
            train_command.main(["--out", str(tmp_path / "run"), "--overwrite", "true"])
        assert ended.value.code == status
        said = "stopped; to go on: dense-rlhf train --overwrite true --overwrite false\n"
        assert capsys.readouterr().err == said


@pytest.mark.slow
def test_a_ruined_policy_is_said_at_the_end(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(single_training, "ruined_runs", lambda runs: f"Look at {', '.join(runs)}: [it] collapsed")
    train(**given(policy, tmp_path / "run"))
    assert capsys.readouterr().out.endswith("/policy\nLook at sparse, seed 0: [it] collapsed\n")
    monkeypatch.setattr(experiment, "ruined_runs", lambda runs: f"Look at {', '.join(runs)}: [it] collapsed")
    compare(**given(policy, tmp_path / "runs", redistributors="sparse", seeds=1, controls=""))
    assert capsys.readouterr().out.endswith("\nLook at sparse, seed 0: [it] collapsed\n")


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of huggingface_hub's own upload
def test_a_policy_is_pushed_only_when_that_is_asked_for(policy, tmp_path, monkeypatch, capsys):
    with serving(monkeypatch) as hub:
        train(**given(policy, tmp_path / "run"))
        assert hub.requests == []
        where = train(**given(policy, tmp_path / "run", push_to_hub="me/mine"))
    assert f"pushed to {hub.url}/me/mine: README.md, config.json" in capsys.readouterr().out
    assert hub.files["model.safetensors"] == (where / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
def test_a_push_that_fails_loses_nothing_and_says_how_to_try_again(policy, tmp_path, monkeypatch, capsys):
    prompts, run = tmp_path / "prompts.jsonl", tmp_path / "run"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    flags = ["--policy", policy, "--data", str(prompts), *FLAGS, "--steps", "1", "--eval_prompts", "2"]
    flags += ["--reward", f"{__name__}:shorter", "--out", str(run), "--push_to_hub"]
    with serving(monkeypatch, refuses="/preupload/"), pytest.raises(SystemExit) as ended:
        train_command.main([*flags, "me/mine"])
    assert ended.value.code == 1
    where = run / "checkpoint-1" / "policy"
    said = capsys.readouterr().err
    assert f"its policy is in {where}, but it was not pushed to me/mine: " in said
    assert "403" in said
    (command,) = (line for line in said.splitlines() if line.startswith("To push it again: python -c "))
    with serving(monkeypatch) as hub:
        exec(shlex.split(command)[-1], {})
    assert "config.json" in hub.files


@pytest.mark.parametrize(
    ("repo", "words"),
    [("mine", "'mine' is no name of a hub repository"), ("me/mine", "there is no token"), ("", "'' is no name")],
)
def test_a_push_that_cannot_work_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys, repo, words):
    with serving(monkeypatch) as hub:
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        monkeypatch.setattr("benchmarks.experiments.single_training.run_training", None)
        with pytest.raises(SystemExit) as ended:
            train_command.main(["--out", str(tmp_path / "run"), "--push_to_hub", repo])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
        with pytest.raises(ValueError, match=words):
            train(**given("nowhere", tmp_path / "run", push_to_hub=repo))
    assert hub.requests == []
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_nobody_else_could_load_is_refused_before_it_is_trained(policy, tmp_path, monkeypatch):
    loading = Loading(lora=LoraSettings(rank=2))
    with serving(monkeypatch) as hub, pytest.raises(ValueError, match="is an adapter on the local folder"):
        train(**given(policy, tmp_path / "run", push_to_hub="me/mine", loading=loading))
    assert hub.requests == []
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_cannot_be_named_or_written_is_refused_with_the_way_out(policy, tmp_path, monkeypatch):
    chosen = given(policy, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be imported by name.*top level"):
        compare(**{**chosen, "reward": lambda prompts, responses: [0.0]})
    with pytest.raises(ValueError, match="prompt 1 cannot be written as JSON .*give texts, numbers and lists"):
        compare(**{**chosen, "prompts": [ROWS[0], {"prompt": "a", "answer": Path()}]})
    with pytest.raises(ValueError, match="ppo sets a seed"):
        compare(**{**chosen, "ppo": {"seed": 1}})
    monkeypatch.setattr(sys.modules["__main__"], "own", shorter, raising=False)
    monkeypatch.setattr(shorter, "__module__", "__main__")
    with pytest.raises(ValueError, match="the reward own is defined in the program itself"):
        compare(**{**chosen, "processes": 1})
    assert not (tmp_path / "out").exists()


def test_instances_are_written_as_on_the_command_line():
    assert _methods("sparse") == "sparse"
    written = _methods([Uniform(beta=0.5), Uniform(), "abc", DecoderAttention(rows="last"), Segment(inner=Uniform())])
    assert written == ["uniform(beta=0.5)", "uniform", "abc", "abc-d2", "segment(inner=uniform)"]
    with pytest.raises(ValueError, match="is not an instance of a dataclass"):
        _methods([3])
    with pytest.raises(ValueError, match="has settings that are objects"):
        _methods([PotentialProjection(features=(Position(),))])


def test_a_whole_config_stands_in_for_changes(policy, tmp_path):
    config = PPOConfig(**{**PPO, "max_length": (3, 5)}, lam=0.5)
    train(**given(policy, tmp_path / "run", ppo=config))
    noted = json.loads((tmp_path / "run" / "settings.json").read_text())["config"]
    assert noted["lam"] == 0.5
    assert noted["max_length"] == [3, 5]
