"""Entropy as weights: by hand, against the entropy of a real policy, and what happens where there is none."""

import math

import pytest
import torch
from fakes import ragged_sequences, rollout_of, sequences_of
from generated import tries
from hypothesis import given
from hypothesis import strategies as st

from models import load_policy
from models.tiny import save_tiny
from redistributors import Entropy, Sparse, Uniform
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.evidence import TokenEntropy


def case(entropies, score, **settings):
    rollout = rollout_of(
        sequences_of([[1]], [[2] * len(entropies)]), [score], {TokenEntropy(): torch.tensor([entropies])}
    )
    return Entropy(**settings)(rollout)[0].tolist()


def test_by_hand():
    """Entropies 1, 3 and 1: a fifth, three fifths and a fifth of the score, whatever its sign."""
    assert case([1.0, 3.0, 1.0], 10.0) == pytest.approx([2, 6, 2])
    assert case([1.0, 3.0, 1.0], -10.0) == pytest.approx([-2, -6, -2])
    assert case([1.0, 3.0, 1.0], 10.0, beta=0.5) == pytest.approx([1, 3, 1 + 5])
    assert case([0.0, 2.0, 0.0], 10.0) == pytest.approx([0, 10, 0])


def test_without_entropy_the_score_stays_on_the_last_token():
    assert case([0.0, 0.0, 0.0], 4.0) == [0, 0, 4]
    entropies = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    rollout = rollout_of(sequences_of([[1], [1]], [[2, 2], [2, 2]]), [1.0, 1.0], {TokenEntropy(): entropies})
    assert Entropy().metrics(rollout) == {"credit_fallback": 0.5}


def test_an_entropy_that_rounding_left_below_0_is_none():
    assert case([-1e-7, 1.0, 1.0], 4.0) == [0, 2, 2]
    assert case([-1e-7, -1e-7, 0.0], 4.0) == [0, 0, 4]


@tries(30)
@given(level=st.floats(1e-3, 20), score=st.floats(-100, 100))
def test_equal_entropies_are_uniform_credit_and_beta_0_is_sparse(level, score):
    sequences = ragged_sequences()
    entropies = sequences.response_mask * torch.tensor(level)
    rollout = rollout_of(sequences, [score, 1.0, -2.0, 0.0], {TokenEntropy(): entropies})
    torch.testing.assert_close(Entropy()(rollout), Uniform()(rollout))
    assert torch.equal(Entropy(beta=0.0)(rollout), Sparse()(rollout))


def test_the_entropy_is_that_of_the_distribution_a_token_was_drawn_from(tmp_path):
    """Tempered, and without EOS on the first two tokens, as another reading of the logits has it."""
    policy = load_policy(save_tiny(tmp_path / "policy", std=0.5))
    config = PPOConfig(rollout_batch_size=4, minibatch_size=4, min_length=2, max_length=(3, 6), temperature=0.7)
    trainer = PPOTrainer(policy, TokenReward(lambda p, r: [float(len(x)) for x in r]), Entropy(), config)
    rollout = trainer.collect([[2, 3], [4], [5, 6], [7]])
    token_scores = trainer.redistribute(rollout)
    for row, (prompt, response) in enumerate(zip(rollout.sequences.prompts(), rollout.sequences.responses())):
        with torch.no_grad():
            logits = policy.language_model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / 0.7
        logits[:2, list(policy.eos_ids)] = -math.inf
        named = sorted(policy.vocabulary.values())
        entropies = torch.distributions.Categorical(logits=logits[:, named]).entropy()
        wanted = rollout.scores[row] * entropies / entropies.sum()
        torch.testing.assert_close(token_scores[row, : len(response)], wanted, atol=1e-5, rtol=1e-4)
