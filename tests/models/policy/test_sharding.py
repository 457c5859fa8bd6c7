"""Weights divided among gloo processes are trained as one process trains them whole."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resumable import left_behind
from several import in_processes

from models import LoraSettings, load_policy, load_reward_model
from models.tiny import save_tiny
from models.weights.division import local
from redistributors import DecoderAttention, Uniform
from rlhf_core import KLConfig, PPOConfig, PPOTrainer
from rlhf_core.distributed import ProcessLost, rank

PROMPTS = [[4 + (3 * row) % 20, *range(5, 5 + row)] for row in range(6)]
CONFIG = PPOConfig(
    rollout_batch_size=6,
    minibatch_size=3,  # two rows of one process, one of another, none of a third
    epochs=2,
    learning_rate=1e-3,
    max_grad_norm=0.5,
    max_length=(3, 9),
    micro_batch_tokens=20,  # one or two rows a pass
    seed=3,
)
RUN_TIME = {"seconds", "tokens_per_second"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "reward": save_tiny(root / "reward", family="llama", head="classifier", num_labels=2, seed=2),
        "plain": save_tiny(root / "plain", family="llama", seed=1),
        "tied": save_tiny(root / "tied", family="llama", seed=1, tie_word_embeddings=True),
    }


def trainer(
    folders: dict[str, str], config: PPOConfig = CONFIG, method=None, *, kind: str = "plain", **loading: Any
) -> PPOTrainer:
    policy = load_policy(folders[kind], **loading)
    reward = load_reward_model(folders["reward"], score="logit_difference")
    return PPOTrainer(policy, reward, method or Uniform(), config)


def stepped(learner: PPOTrainer, folder: Path) -> list[dict[str, float]]:
    """Four steps, and the policy in the folder."""
    figures = [learner.step(PROMPTS) for _ in range(4)]
    learner.policy.save(str(folder))
    return [{name: one[name] for name in one if name not in RUN_TIME | {"value_clip_fraction"}} for one in figures]


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def require_same_weights(one: Path, other: Path, **loading: Any) -> None:
    of_one, of_other = (load_policy(str(folder), **loading) for folder in (one, other))
    assert of_one.parameters()
    for mine, theirs in zip(of_one.parameters(), of_other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("count", "settings", "loading"),
    [
        pytest.param(
            2, {"critic_warmup": 1}, {"gradient_checkpointing": True}, id="checkpointed", marks=pytest.mark.slow
        ),
        pytest.param(
            3, {"kl": KLConfig(kind="full")}, {"kind": "tied", "critic": "model"}, id="tied", marks=pytest.mark.slow
        ),
    ],
)
def test_divided_weights_are_trained_as_whole_ones(count, settings, loading, folders, tmp_path):
    config = replace(CONFIG, **settings)
    loading = loading | ({"critic_model": folders["reward"]} if "critic" in loading else {})
    method = DecoderAttention()

    def divided() -> tuple[list[int], list[dict[str, float]]]:
        learner = trainer(folders, config, method, **loading, shard=True)
        figures, sharding = stepped(learner, tmp_path / "divided"), learner.policy.sharding
        states = (learner.optimizer.state[part] for part in sharding.parts)
        moments = [value for state in states for value in state.values() if value.ndim]
        reference = map(local, sharding.reference.parameters())
        return [sum(one.nbytes for one in held) for held in (sharding.parts, reference, moments)], figures

    whole = trainer(folders, config, method, **loading)
    made(tmp_path / "divided")
    parts = in_processes(count, divided)
    assert all(isinstance(part, tuple) for part in parts), parts
    due = stepped(whole, made(tmp_path / "whole"))
    total = sum(one.nbytes for one in whole.policy.language_model.parameters())
    for held, times in zip(zip(*(held for held, _ in parts), strict=True), (1, 1, 2), strict=True):
        assert sum(held) == times * total
        assert max(held) < 1.1 * times * total / count
    for _, figures in parts:
        assert figures == parts[0][1]
    for one, other in zip(parts[0][1], due, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    require_same_weights(tmp_path / "divided", tmp_path / "whole", critic=loading.get("critic", "shared"))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(folders, tmp_path):
    def run(out: Path, steps: int, **loading: Any) -> None:
        trainer(folders, kind="tied", **loading).fit(PROMPTS, steps, out=out, save_every=1, resume=True)

    run(tmp_path / "whole", 3)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for step in (2, 3):
        shutil.rmtree(tmp_path / f"run/checkpoint-{step}")
    assert in_processes(3, lambda: run(tmp_path / "run", 2, shard=True)) == [None] * 3
    run(tmp_path / "run", 3)
    for step in (2, 3):
        (tensors, *_), (due, *_) = (left_behind(tmp_path / out, step) for out in ("run", "whole"))
        assert tensors.keys() == due.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, due[name], atol=1e-5, rtol=0, msg=name)


def test_a_refused_step_leaves_every_part_as_it_was(folders):
    def work() -> tuple[bool, bool]:
        learner = trainer(folders, replace(CONFIG, minibatch_size=6, epochs=1), shard=True)
        learner.step(PROMPTS)
        before = [part.detach().clone() for part in learner.policy.parameters()]

        def same() -> bool:
            return all(torch.equal(one, part) for one, part in zip(before, learner.policy.parameters(), strict=True))

        answers = iter(["as a test"])
        learner.guard.why_not_admit = lambda loss, norm: next(answers, "")
        learner.step(PROMPTS)
        kept = same()
        learner.step(PROMPTS)
        return kept, same()

    assert in_processes(2, work) == [(True, False)] * 2


def test_an_error_between_passes_is_the_same_in_all(folders):
    def work() -> None:
        learner = trainer(folders, shard=True)

        def fails(*_: Any) -> Any:
            raise ValueError("no score")

        if rank() == 1:
            learner.reward.score = fails
        learner.step(PROMPTS)

    for answer in in_processes(2, work):
        assert isinstance(answer, ValueError)
        assert str(answer) == "rank 1 of 2: no score"


def test_memory_that_runs_out_in_a_shared_pass_ends_all_and_says_what_to_lower(folders):
    def work() -> None:
        learner = trainer(folders, shard=True)
        critic, of_rows = learner.policy.critic, type(learner.policy.critic).values

        def values(*given: Any) -> torch.Tensor:
            if rank() == 1 and torch.is_grad_enabled():
                raise MemoryError
            return of_rows(*given)

        type(critic).values = values
        learner.step(PROMPTS)

    first, failed = in_processes(2, work)
    assert isinstance(first, ProcessLost)
    assert isinstance(failed, ProcessLost)
    assert "MemoryError" in str(failed)
    assert "lower PPOConfig.micro_batch_tokens" in str(failed)


def test_a_gradient_outside_an_update_is_refused(folders):
    def work() -> None:
        learner = trainer(folders, shard=True)
        sequences = learner.collect(PROMPTS).sequences
        learner.policy.evaluate(sequences, frozenset())

    for answer in in_processes(2, work):
        assert isinstance(answer, RuntimeError)
        assert "trained by PPOTrainer.update alone" in str(answer)


def test_an_optimizer_whose_state_has_no_parts_is_refused(folders):
    def work() -> None:
        policy = load_policy(folders["plain"], shard=True)
        reward = load_reward_model(folders["reward"], score="logit_difference")
        PPOTrainer(policy, reward, Uniform(), CONFIG, optimizer=lambda trained, _: torch.optim.SGD(trained, lr=0.1))

    for answer in in_processes(2, work):
        assert isinstance(answer, ValueError)
        assert "Adam or AdamW, got SGD" in str(answer)


@pytest.mark.parametrize(
    ("loading", "said"),
    [
        ({}, "this is one alone; start several"),
        ({"lora": LoraSettings()}, "an adapter's are few; leave it out"),
        ({"autocast": "bfloat16"}, "were never run together; leave out one of them"),
        ({"compile_decoding": True}, "where they first lay; leave out compile_decoding"),
    ],
)
def test_what_cannot_be_divided_is_refused(loading, said, folders):
    with pytest.raises(ValueError, match=said):
        load_policy(folders["plain"], **{"shard": True, **loading})
