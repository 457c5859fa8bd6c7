"""bitsandbytes' paged 8-bit AdamW on a card. A pretended card has the CPU version of its update, and plain memory for
pages."""

from dataclasses import replace

import pytest
import torch
from card_counts import CONFIG, PROMPTS

from models import load_policy, paged_adamw_8bit
from models.tiny import save_tiny, tiny_gpt2
from redistributors import Sparse
from rlhf_core import PPOTrainer
from rlhf_core.optimizer import make_optimizer


def on_a_card(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")(test))


CHANGES = {"min_length": 2, "max_length": (3, 5), "epochs": 1, "minibatch_size": 4, "learning_rate": 1e-3}
SHORT = replace(CONFIG, **CHANGES, optimizer="adamw", weight_decay=0.5)
PAGED, SMALL = 100_000, 4096
"""Numbers of a parameter from which its states are paged, and below which they are float32."""


def lengths(prompts, responses):
    return [float(len(response)) for response in responses]


def trainer(root, optimizer=paged_adamw_8bit) -> PPOTrainer:
    """Of a policy with parameters of every size that bitsandbytes treats in its own way."""
    if not (root / "policy").exists():
        save_tiny(root / "policy", seed=1, context=3200, vocab_size=256)
    policy = load_policy(str(root / "policy"), device="cuda")
    return PPOTrainer(policy, lengths, Sparse(), SHORT, optimizer=optimizer)


def weights(learner) -> torch.Tensor:
    return torch.cat([parameter.detach().cpu().reshape(-1) for parameter in learner.policy.parameters()])


def test_it_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="needs its parameters on a CUDA device, got cpu"):
        paged_adamw_8bit(tiny_gpt2().parameters(), SHORT)


@on_a_card
def test_states_are_made_before_the_first_step(tmp_path):
    optimizer = trainer(tmp_path).optimizer
    (group,) = optimizer.param_groups
    assert (type(optimizer).__name__, group["lr"], group["weight_decay"]) == ("PagedAdamW8bit", 1e-3, 0.5)
    sizes = set()
    for parameter in group["params"]:
        state, size = optimizer.state[parameter], parameter.numel()
        assert state["step"] == 0
        for moment in (state["state1"], state["state2"]):
            assert moment.dtype == (torch.float32 if size < SMALL else torch.uint8)
            assert getattr(moment, "is_paged", False) == (size >= PAGED)
        sizes.add((size >= SMALL) + (size >= PAGED))
    assert sizes == {0, 1, 2}


@on_a_card
def test_it_moves_weights_as_adamw_does(tmp_path):
    learners = trainer(tmp_path), trainer(tmp_path, make_optimizer)
    before = weights(learners[0])
    for learner in learners:
        assert learner.step(PROMPTS)["skipped_minibatches"] == 0
    mine, theirs = (weights(learner) - before for learner in learners)
    assert theirs.norm() > 0
    assert torch.nn.functional.cosine_similarity(mine, theirs, dim=0) > 0.95


@pytest.mark.slow
@on_a_card
def test_a_run_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    trainer(tmp_path).fit(PROMPTS, 1, out=tmp_path / "run")
    resumed, whole = trainer(tmp_path), trainer(tmp_path)
    resumed.fit(PROMPTS, 2, out=tmp_path / "run", resume=True)
    whole.fit(PROMPTS, 2, out=tmp_path / "whole")
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-4, atol=1e-5)
    assert {type(resumed.optimizer).__name__, type(whole.optimizer).__name__} == {"PagedAdamW8bit"}


@on_a_card
def test_no_room_for_the_states_is_said_before_anything_is_sampled(tmp_path, card):
    learner = trainer(tmp_path)
    card.limit = card.held + 1000
    with pytest.raises(MemoryError, match="paged_adamw_8bit: out of memory while it makes its states"):
        paged_adamw_8bit(learner.policy.parameters(), SHORT)
