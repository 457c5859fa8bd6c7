"""Several processes train what one process would: gloo processes, forked from the one that tests."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import TablePolicy
from several import in_processes

from redistributors import PotentialProjection, Sparse, Uniform
from redistributors.parts.state_features import Position
from rlhf_core import JSONLines, KLConfig, PPOConfig, PPOTrainer, ScoreConfig, TensorBoard, TokenReward, distributed

PROMPTS = [[1], [2, 3], [4, 5, 1], [5], [3, 3, 1], [2], [1, 1], [4]]
CONFIG = PPOConfig(
    rollout_batch_size=8,
    minibatch_size=3,
    epochs=2,
    learning_rate=0.01,
    max_length=(2, 8),
    kl=KLConfig(init_coef=0.1, target=0.01, horizon=20.0),
    score=ScoreConfig(centring="running_mean", scaling="running_std"),
    seed=3,
)
RUN_TIME = {"seconds", "tokens_per_second"}


def share_of_threes(prompts, responses):
    return [row.count(3) / len(row) for row in responses]


def trainer(config=CONFIG, reward=share_of_threes, method=None, policy=None) -> PPOTrainer:
    return PPOTrainer(policy or TablePolicy(), TokenReward(reward), method or Uniform(), config)


def this_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def potential_of_position() -> PotentialProjection:
    """A method that learns."""
    return PotentialProjection(inner=Uniform(), features=(Position(),))


def trained(config: PPOConfig, steps: int, method=None) -> dict[str, Any]:
    learner = trainer(config, method=method)
    prompts = PROMPTS[: config.rollout_batch_size // config.responses_per_prompt]
    figures = [learner.step(prompts) for _ in range(steps)]
    state = learner.state()
    return {
        "weights": [parameter.detach() for parameter in learner.policy.parameters()],
        "figures": [{name: one[name] for name in one if name not in RUN_TIME} for one in figures],
        "tensors": dict(state.tensors),
        "numbers": {name: state.numbers[name] for name in ("kl_coef", "score_moments", "guard")},
    }


def require_one_run(parts: list[Any], whole: dict[str, Any]) -> None:
    """All processes are equal to the bit, and one process within 1e-5."""
    for part in parts:
        assert not isinstance(part, BaseException), part
        assert all(torch.equal(one, other) for one, other in zip(part["weights"], parts[0]["weights"], strict=True))
        assert all(torch.equal(tensor, parts[0]["tensors"][name]) for name, tensor in part["tensors"].items())
        assert part["figures"] == parts[0]["figures"]
        assert part["numbers"] == parts[0]["numbers"]
    for one, other in zip(parts[0]["weights"], whole["weights"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    for one, other in zip(parts[0]["figures"], whole["figures"], strict=True):
        assert without_rounding(one) == pytest.approx(without_rounding(other), rel=1e-3, abs=1e-5)


def without_rounding(figures: dict[str, float]) -> dict[str, float]:
    """The share of clipped values counts ties, which rounding decides."""
    return {name: value for name, value in figures.items() if name != "value_clip_fraction"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "settings", "method"),
    [
        pytest.param(2, {"advantages": "gae"}, potential_of_position, marks=pytest.mark.slow),
        (3, {"advantages": "rloo", "responses_per_prompt": 2, "minibatch_size": 4}, Sparse),
        pytest.param(3, {"advantages": "gae"}, potential_of_position, marks=pytest.mark.slow),
        pytest.param(2, {"advantages": "rloo_to_go", "responses_per_prompt": 4}, Uniform, marks=pytest.mark.slow),
        pytest.param(2, {"advantages": "remax", "responses_per_prompt": 2}, Uniform, marks=pytest.mark.slow),
        pytest.param(2, {"loss_mean": "response", "surrogate": "gspo"}, Uniform, marks=pytest.mark.slow),
        pytest.param(3, {"minibatch_size": 1, "max_grad_norm": 0.01}, Uniform, marks=pytest.mark.slow),
    ],
)
def test_several_processes_train_what_one_would(count, settings, method):
    config = replace(CONFIG, **settings)
    steps = 5
    parts = in_processes(count, lambda: trained(config, steps, method()))
    require_one_run(parts, trained(config, steps, method()))


def test_what_decides_is_the_whole_batch():
    """Skipped minibatches and an early stop, in all processes alike."""
    config = replace(CONFIG, target_kl=1e-4, learning_rate=0.3)
    parts = in_processes(2, lambda: trained(config, 2))
    require_one_run(parts, whole := trained(config, 2))
    assert whole["figures"][-1]["stopped_early"] == 1


def fails_in_rank_1(error: Exception) -> Callable[..., list[float]]:
    def reward(prompts, responses):
        if this_rank() == 1:
            raise error
        return share_of_threes(prompts, responses)

    return reward


class Local(ValueError):
    """An error that its own process alone can build."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("no answer"), ValueError), (Local("no", "answer"), (Local, RuntimeError))]
)
def test_an_error_in_one_process_is_the_same_in_all_and_names_its_rank(error, kind):
    for answer in in_processes(2, lambda: trainer(reward=fails_in_rank_1(error)).step(PROMPTS)):
        assert isinstance(answer, kind)
        assert "rank 1 of 2" in str(answer)
        assert "answer" in str(answer)


def test_scores_of_one_process_that_are_not_finite_skip_the_step_in_all(tmp_path):
    def reward(prompts, responses):
        return [float("nan") if this_rank() == 1 and calls[0] == 2 else 0.5 for _ in responses]

    calls = [0]

    def work():
        learner = trainer(reward=lambda *given: calls.__setitem__(0, calls[0] + 1) or reward(*given))
        learner.fit(PROMPTS, 3, out=tmp_path / "run")
        return learner.steps_done, [parameter.detach() for parameter in learner.policy.parameters()]

    (done, weights), (done2, weights2) = in_processes(2, work)
    assert done == done2 == 3
    assert all(torch.equal(one, other) for one, other in zip(weights, weights2, strict=True))
    (record,) = map(json.loads, (tmp_path / "run/skipped.jsonl").read_text().splitlines())
    assert record["reason"].startswith("rank 1 of 2: raw_scores")


def other_prompts():
    return trainer().step(PROMPTS[this_rank() :])


def other_settings():
    return trainer(replace(CONFIG, seed=this_rank()))


def other_arguments():
    trainer().fit(PROMPTS, 1 + this_rank(), out="never made")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (other_prompts, "other prompts"),
        (other_settings, "other settings than rank 0: config.seed"),
        (other_arguments, "other arguments of fit than rank 0: steps"),
    ],
)
def test_processes_that_are_given_different_things_are_refused(work, said):
    for answer in in_processes(2, work):
        assert isinstance(answer, ValueError)
        assert f"rank 1 of 2 processes has {said}" in str(answer)


def test_weights_are_those_of_the_first_process():
    def work():
        return [one.detach() for one in trainer(policy=TablePolicy(seed=this_rank())).policy.parameters()]

    for weights in in_processes(2, work):
        assert all(torch.equal(one, other) for one, other in zip(weights, TablePolicy(seed=0).parameters()))


def test_more_processes_than_rows():
    def work():
        learner = trainer(replace(CONFIG, rollout_batch_size=2, minibatch_size=1))
        return learner.evaluate(PROMPTS[:1]), learner.step(PROMPTS[:2])["score"]

    one = work()
    for evaluated, score in in_processes(3, work):
        assert evaluated == pytest.approx(one[0])
        assert score == pytest.approx(one[1])


def test_gradients_are_summed_and_stay_absent_where_nobody_has_one(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET", 4)  # several messages

    def work():
        distributed.join()
        shapes = {"both": (2, 2), "second": (3,), "nobody": (2,), "half": (5,)}
        made = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        made["half"].data = made["half"].data.to(torch.bfloat16)

        def backward() -> int:
            made["both"].grad = torch.full((2, 2), 1.0 + this_rank())
            made["half"].grad = torch.full((5,), 0.5, dtype=torch.bfloat16)
            if this_rank() == 1:
                made["second"].grad = torch.tensor([1.0, 2, 3])
            return this_rank()

        ranks = distributed.gathered_with_gradients(backward, made.values())
        return ranks, {name: one.grad for name, one in made.items()}

    for ranks, gradients in in_processes(2, work):
        assert ranks == [0, 1]
        assert gradients["both"].tolist() == [[3.0, 3], [3, 3]]
        assert gradients["second"].tolist() == [1, 2, 3]
        assert gradients["half"].tolist() == [1.0] * 5
        assert gradients["nobody"] is None


def begun(out: Path, steps: int, **settings: Any) -> Callable[[], PPOTrainer]:
    def work():
        logger = JSONLines(out.with_name(f"{out.name}-{steps}.jsonl"))
        learner = PPOTrainer(TablePolicy(), TokenReward(share_of_threes), Uniform(), CONFIG, [logger])
        learner.fit(PROMPTS, steps, out=out, eval_prompts=PROMPTS[:3], eval_every=2, save_every=2, **settings)
        logger.close()
        return [parameter.detach() for parameter in learner.policy.parameters()]

    return work


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_one_process_writes_and_another_number_goes_on(tmp_path):
    whole = begun(tmp_path / "whole", 6)()
    parts = in_processes(2, begun(tmp_path / "run", 2))
    assert all(isinstance(part, list) for part in parts), parts
    parts = in_processes(3, begun(tmp_path / "run", 4, resume=True))
    assert all(isinstance(part, list) for part in parts), parts
    last = begun(tmp_path / "run", 6, resume=True)()
    for one, other in zip(last, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    for name in ("metrics.jsonl", "samples.jsonl"):
        found, wanted = (records(tmp_path / run / name) for run in ("run", "whole"))
        assert [one["step"] for one in found] == [one["step"] for one in wanted]
        for one, other in zip(found, wanted, strict=True):
            for key in one.keys() - RUN_TIME - {"value_clip_fraction"}:
                due = other[key] if isinstance(other[key], str) else pytest.approx(other[key], rel=1e-3, abs=1e-4)
                assert one[key] == due, key
    assert [one["step"] for one in records(tmp_path / "run-4.jsonl")] == [3, 4]


@pytest.mark.parametrize("kind", [JSONLines, lambda path: TensorBoard(str(path.parent))], ids=["lines", "board"])
def test_a_logger_that_another_process_makes_writes_nothing(kind, monkeypatch, tmp_path):
    (tmp_path / "first.jsonl").write_text("{}\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    logger = kind(tmp_path / "first.jsonl")
    logger.log(1, {"score": 1.0})
    logger.close()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["{}\n"]


def test_a_signal_to_one_process_ends_all_with_a_checkpoint(tmp_path):
    calls = []

    def reward(prompts, responses):
        calls.append(1)
        if this_rank() == 1 and len(calls) == 2:  # in the first step; the first call is an evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        return share_of_threes(prompts, responses)

    def work():
        try:
            trainer(reward=reward).fit(PROMPTS, 50, out=tmp_path / "run")
        except SystemExit as end:
            return end.code

    assert in_processes(2, work) == [143, 143]
    assert (tmp_path / "run/checkpoint-1/manifest.json").is_file()


def test_a_folder_that_is_not_free_is_refused_in_all(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for answer in in_processes(2, lambda: trainer().fit(PROMPTS, 1, out=tmp_path)):
        assert isinstance(answer, FileExistsError)


@pytest.mark.parametrize("at", ["sampling", "update"])
def test_a_process_that_dies_ends_the_others_at_once(at, tmp_path):
    class Dies(TablePolicy):
        def evaluate(self, sequences, needs, **settings):
            if this_rank() == 1 and torch.is_grad_enabled() == (at == "update"):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().evaluate(sequences, needs, **settings)

    first, killed = in_processes(2, lambda: trainer(policy=Dies()).step(PROMPTS), timeout=60)
    assert isinstance(killed, TimeoutError)
    assert isinstance(first, distributed.ProcessLost)
    assert "resume=True" in str(first)


@pytest.mark.slow
def test_a_process_that_freezes_is_given_up_after_the_timeout(monkeypatch):
    monkeypatch.setenv(distributed.TIMEOUT, "4")

    class Freezes(TablePolicy):
        def evaluate(self, sequences, needs, **settings):
            if this_rank() == 1:
                time.sleep(6)
            return super().evaluate(sequences, needs, **settings)

    first, _ = in_processes(2, lambda: trainer(policy=Freezes()).step(PROMPTS), timeout=60)
    assert isinstance(first, distributed.ProcessLost)
    assert "does not answer" in str(first)
    assert "imed out" in str(first)


@pytest.mark.parametrize(("said", "seconds"), [("90", 90), ("0.5", 0.5), ("", None)])
def test_the_timeout_is_that_of_the_environment(said, seconds, monkeypatch):
    monkeypatch.setenv(distributed.TIMEOUT, said)
    given = []
    make = torch.distributed.init_process_group

    def asked(*args, timeout):
        given.append(timeout and timeout.total_seconds())
        make(*args)

    monkeypatch.setattr(torch.distributed, "init_process_group", asked)
    assert in_processes(2, lambda: (distributed.join(), *given)) == [(2, seconds)] * 2


@pytest.mark.parametrize("said", ["soon", "0", "-3", "inf", "nan"])
def test_a_timeout_that_is_none_is_refused(said, monkeypatch):
    monkeypatch.setenv(distributed.TIMEOUT, said)
    for answer in in_processes(2, lambda: trainer().step(PROMPTS)):
        assert f"DENSE_RLHF_TIMEOUT must be a number of seconds above 0, got '{said}'" in str(answer)


def test_one_process_meets_nobody(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_gather_object", None)
    monkeypatch.setattr(torch.distributed, "all_reduce", None)
    made = object()
    assert distributed.gathered(lambda: made) == [made]
    assert distributed.by_first(lambda: made) is made
    assert distributed.own_share(5) == range(5)
    trainer().step(PROMPTS)
