"""The page that ``fit`` writes into a run's folder: when, from what, and that the run never depends on it."""

import json
import sys
from dataclasses import dataclass, field

import pytest
import torch
from fakes import TablePolicy
from table_trainer import CONFIG, PROMPTS, Learner, share_of_threes, trainer

from redistributors import LeaveOneOut, Sparse, Uniform
from rlhf_core import PPOTrainer, TokenReward
from rlhf_core.pages.parts import noted_maps
from rlhf_core.pages.run_record import read_run
from rlhf_core.run import page
from rlhf_core.run.page import baselines, command, first_rows, write_page


def fit(folder, steps=4, method=None, **settings):
    learner = trainer(method)
    learner.fit(PROMPTS, steps, out=folder, eval_prompts=[[1], [2]], eval_every=2, **settings)
    return learner


def noted(folder):
    return json.loads((folder / "report.json").read_text())


def test_a_run_leaves_a_page_that_can_be_made_again_from_its_folder_alone(tmp_path):
    fit(tmp_path / "run")
    written = (tmp_path / "run" / "report.html").read_bytes()
    assert b"Step 4 of 4" in written
    (tmp_path / "run" / "report.html").unlink()
    write_page(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_bytes() == written


def test_the_page_is_written_before_the_first_step_at_every_evaluation_and_at_the_end(tmp_path, monkeypatch):
    seen = []
    write = page.write_page
    monkeypatch.setattr(page, "write_page", lambda folder: (write(folder), seen.append(read_run(folder).step)))
    fit(tmp_path / "run", steps=5)
    assert seen == [0, 2, 4, 5, 5]


def test_credit_is_that_of_the_responses_in_samples_under_the_own_method_and_what_costs_nothing(tmp_path):
    fit(tmp_path / "run", method=Uniform(beta=0.5), methods={"even": Uniform(), "half": Uniform(beta=0.5)})
    samples = [one for one in read_run(tmp_path / "run").samples if one["step"] == 4]
    maps = noted_maps(noted(tmp_path / "run"))
    assert noted(tmp_path / "run")["credit_step"] == 4
    assert [one.prompt for one in maps] == [one["prompt"] for one in samples]
    for one, sample in zip(maps, samples, strict=True):
        assert one.score == sample["score"]
        assert sum(one.counts) == sample["length"]
        assert [*one.rows] == ["half", "even", "sparse"]  # uniform is what "even" is
        assert all(sum(row) == pytest.approx(one.score, abs=1e-6) for row in one.rows.values())


def test_a_method_whose_evidence_the_run_does_not_measure_is_left_out(tmp_path):
    fit(tmp_path / "run", methods={"loo": LeaveOneOut()})
    assert [[*one.rows] for one in noted_maps(noted(tmp_path / "run"))] == [["uniform", "sparse"]] * 2


@pytest.mark.parametrize(
    ("method", "methods", "named"),
    [
        (Uniform(), {}, "uniform"),
        (Uniform(beta=0.5), {"even": Uniform()}, "uniform(beta=0.5)"),
        (Uniform(beta=0.5), {"half": Uniform(beta=0.5)}, "half"),
    ],
)
def test_the_page_and_the_first_line_name_the_method_as_it_is_typed(method, methods, named, tmp_path, capsys):
    fit(tmp_path / "run", steps=1, method=method, methods=methods)
    assert f"<h1>{named}, seed 0</h1>" in (tmp_path / "run" / "report.html").read_text()
    assert capsys.readouterr().err.startswith(f"{named}: 1 step")


def test_evidence_of_the_own_method_is_measured_on_the_shown_responses_only(tmp_path):
    asked = []

    def reward(prompts, responses):
        asked.append(len(responses))
        return share_of_threes(prompts, responses)

    learner = PPOTrainer(TablePolicy(), TokenReward(reward), LeaveOneOut(), CONFIG)
    learner.fit(PROMPTS, 1, out=tmp_path / "run", eval_prompts=[[1]] * 9)
    maps = noted_maps(noted(tmp_path / "run"))
    assert len(maps) == 4
    assert "leave-one-out" in maps[0].rows
    assert asked.count(9) == 2  # the evaluations
    assert asked.count(4) == 2  # what the page asks again


def test_sparse_credit_asks_no_model_again(tmp_path):
    calls = []

    def reward(prompts, responses):
        calls.append(len(responses))
        return share_of_threes(prompts, responses)

    PPOTrainer(TablePolicy(), TokenReward(reward), Sparse(), CONFIG).fit(PROMPTS, 1, out=tmp_path / "run")
    assert calls == [4, 16, 4]


def test_numbers_of_a_run_do_not_depend_on_its_page(tmp_path, monkeypatch):
    fit(tmp_path / "with", method=Learner())
    monkeypatch.setattr("rlhf_core.run.fit.update_page", lambda *_: None)
    fit(tmp_path / "without", method=Learner())
    assert not (tmp_path / "without" / "report.json").exists()

    def figures(name):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if "second" not in key} for line in lines]

    assert figures("with") == figures("without")
    assert (tmp_path / "with" / "samples.jsonl").read_text() == (tmp_path / "without" / "samples.jsonl").read_text()


def test_a_page_that_cannot_be_written_is_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, f"{path} cannot be written: no space")

    monkeypatch.setattr(page, "write_whole", full)
    fit(tmp_path / "run")
    assert read_run(tmp_path / "run").step == 4
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
    said = capsys.readouterr().err
    assert "report.html is not up to date, which the run does not depend on: OSError" in said
    assert "no space" in said


@dataclass(frozen=True)
class Moody:
    """Fails on fewer responses than a step has."""

    needs: frozenset = field(default_factory=frozenset)
    causal: bool = False
    conserving: bool = True

    def __call__(self, rollout):
        if len(rollout.sequences) < 16:
            raise RuntimeError("not in the mood")
        return Uniform()(rollout)


def test_a_method_that_fails_on_the_shown_responses_costs_the_page_its_credit_only(tmp_path, capsys):
    fit(tmp_path / "run", method=Moody())
    assert "not in the mood" in capsys.readouterr().err
    content = (tmp_path / "run" / "report.html").read_text()
    assert "Step 4 of 4" in content
    assert ">Credit</h2>" not in content


def test_a_run_that_is_ended_by_an_error_has_its_last_steps_on_the_page(tmp_path):
    def reward(prompts, responses):
        if len(calls) == 5:
            raise RuntimeError("the judge is gone")
        calls.append(1)
        return share_of_threes(prompts, responses)

    calls = []
    learner = PPOTrainer(TablePolicy(), TokenReward(reward), Sparse(), CONFIG)
    with pytest.raises(RuntimeError, match="the judge is gone"):
        learner.fit(PROMPTS, 9, out=tmp_path / "run", eval_every=100)
    content = (tmp_path / "run" / "report.html").read_text()
    assert "Step 4 of 9" in content
    assert "It ended with an error: RuntimeError: the judge is gone" in content


def test_a_run_that_is_taken_up_goes_on_with_the_texts_of_before_its_first_step(tmp_path):
    fit(tmp_path / "run", steps=2)
    fit(tmp_path / "run", steps=4, resume=True)
    content = (tmp_path / "run" / "report.html").read_text()
    assert "Step 4 of 4" in content
    assert "step 0: score" in content
    assert "step 4: score" in content
    assert "step 2: score" not in content


def test_baselines_are_the_methods_of_these_names():
    learner = trainer()
    rollout = learner.collect(PROMPTS * 4)
    own = baselines(rollout)
    assert torch.allclose(own["sparse"], Sparse()(rollout))
    assert torch.allclose(own["uniform"], Uniform()(rollout))


def test_the_first_rows_of_a_rollout_lose_the_padding_of_the_others():
    rollout = trainer().collect(PROMPTS * 4)
    few = first_rows(rollout, 2)
    width = int(rollout.sequences.response_lengths[:2].max())
    assert few.logprobs.shape == (2, width)
    assert torch.equal(few.scores, rollout.scores[:2])
    assert torch.equal(few.kl, rollout.kl[:2, :width])


@pytest.mark.parametrize(
    ("arguments", "module", "expected"),
    [
        (["/x/benchmarks/report.py", "--a", "b c"], "benchmarks.report", "python -m benchmarks.report --a 'b c'"),
        (["/x/benchmarks/__main__.py", "train"], "benchmarks.__main__", "python -m benchmarks train"),
        (["/x/benchmarks/__main__.py", "train"], None, "python -m benchmarks train"),
        (["train.py", "1"], None, "python train.py 1"),
        (["/venv/bin/dense-rlhf", "train"], None, "dense-rlhf train"),
        (["a.py", "--api_key", "x1", "--auth-token=y2", "z"], None, "python a.py --api_key ... --auth-token=... z"),
        (["-c"], None, ""),
        ([""], None, ""),
    ],
)
def test_the_command_repeats_what_was_called(arguments, module, expected, monkeypatch):
    @dataclass
    class Spec:
        name: str

    @dataclass
    class Main:
        __spec__: Spec | None

    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setitem(sys.modules, "__main__", Main(Spec(module) if module else None))
    assert command() == expected
