"""What a sentence tells the reward model: by hand, as a sum of prefix differences, and against truncated forwards."""

from dataclasses import replace

import pytest
import torch
from fakes import TablePolicy, ragged_sequences, rollout_of, sequences_of, unchecked
from generated import tries
from hypothesis import given
from hypothesis import strategies as st

from models import load_policy, load_reward_model
from models.tiny import save_tiny
from redistributors import Information, PrefixDifference, Sparse
from rlhf_core import PPOConfig, PPOTrainer, ScoreConfig, TokenReward
from rlhf_core.evidence import PrefixScores, SentenceEnds
from rlhf_core.returns import generalized_advantages

WORDS = ["The", "end.", "Why?", "no", "3", "tail"]
SCORE, PREFIXES = 5.0, [1.0, 3.0, 2.0, 4.0, 7.0]


def case(ends, marks=SentenceEnds.marks, **settings):
    evidence = {PrefixScores(): torch.tensor([PREFIXES]), SentenceEnds(marks=marks): torch.tensor([ends])}
    rollout = rollout_of(sequences_of([[1]], [[2] * 5]), [SCORE], evidence)
    return Information(marks=marks, **settings)(rollout)[0].tolist()


@pytest.mark.parametrize(
    ("ends", "at_end", "over_the_sentence"),
    [
        ([0, 1, 0, 1, 0], [0, 2, 0, 7 - 2, 5 - 7], [1, 1, 2.5, 2.5, -2]),
        ([1, 1, 1, 1, 1], [3, 2 - 3, 4 - 2, 7 - 4, 5 - 7], [3, -1, 2, 3, -2]),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 5], [1, 1, 1, 1, 1]),
    ],
)
def test_by_hand(ends, at_end, over_the_sentence):
    """The score of the text up to a sentence's end less that of the sentence before it; the first counts from 0."""
    ends = [float(end) for end in ends]
    assert case(ends) == pytest.approx(at_end)
    assert case(ends, place="spread") == pytest.approx(over_the_sentence)


def test_other_marks_are_other_sentences():
    assert case([0.0, 1.0, 0.0, 0.0, 0.0], marks=";") == pytest.approx([0, 2, 0, 0, 3])


@tries(30)
@given(seed=st.integers(0, 2**32), lam=st.floats(0, 1), scale=st.floats(0.1, 10))
def test_it_sums_to_the_score_and_is_the_sparse_score_with_the_critic_shifted(seed, lam, scale):
    """A critic of the shaped reward is V − Φ (Wiewiora 2003), Φ the score after the last whole sentence."""
    sequences = ragged_sequences()
    mask, generator = sequences.response_mask, torch.Generator().manual_seed(seed)
    prefixes = torch.where(mask, torch.randn(mask.shape, generator=generator), 0)
    ends = torch.where(mask, torch.rand(mask.shape, generator=generator) < 0.4, 0).float()
    evidence = {PrefixScores(): prefixes, SentenceEnds(): ends}
    rollout = replace(rollout_of(sequences, [1.0, -2.0, 0.5, 3.0], evidence), score_scale=scale)
    token_scores = Information()(rollout)
    torch.testing.assert_close(token_scores.sum(1), rollout.scores, atol=1e-5, rtol=1e-5)
    potential = torch.zeros_like(prefixes)
    for row, time in mask.nonzero().tolist():
        whole = [t + 1 for t in range(time) if ends[row, t]]
        potential[row, time] = scale * prefixes[row, whole[-1]] if whole else 0
    plain = generalized_advantages(Sparse()(rollout), rollout.values, mask, gamma=1.0, lam=lam)
    moved = generalized_advantages(token_scores, rollout.values - potential, mask, gamma=1.0, lam=lam)
    torch.testing.assert_close(moved, plain, atol=1e-4, rtol=1e-4)


def test_token_scores_are_differences_of_truncated_forwards(tmp_path):
    """With words that end a sentence, on real models; centring shows in the last sentence alone."""
    policy = load_policy(save_tiny(tmp_path / "policy", "llama", words=WORDS))
    reward = load_reward_model(save_tiny(tmp_path / "reward", "llama", head="classifier", words=WORDS))
    config = PPOConfig(
        rollout_batch_size=8,
        minibatch_size=8,
        min_length=12,
        max_length=(12, 15),
        score=ScoreConfig(centring="running_mean", clip=2.0),
    )
    trainer = PPOTrainer(policy, reward, Information(), config)
    rollout = trainer.collect(["The end.", "no"] * 4)
    token_scores, several = trainer.redistribute(rollout), 0
    for row, (prompt, response) in enumerate(zip(rollout.sequences.prompts(), rollout.sequences.responses())):
        texts = policy.decode([[token] for token in response[:-1]])
        ends = [t + 1 for t, text in enumerate(texts) if "." in text or "?" in text]
        scores = [0.0, *reward.score_ids([prompt + response[:end] for end in ends]).tolist()]
        wanted = torch.zeros(len(response))
        wanted[[end - 1 for end in ends]] = torch.tensor(scores).diff()
        wanted[-1] = float(rollout.scores[row]) - scores[-1]
        torch.testing.assert_close(token_scores[row, : len(response)], wanted, atol=1e-4, rtol=1e-4)
        several += len(ends) > 1
    assert several
    assert trainer.figures(rollout, token_scores, trainer.estimate_returns(rollout, token_scores))["segments"] > 1


def test_a_reward_without_beginnings_is_refused():
    reward = TokenReward(lambda prompts, responses: [0.0] * len(prompts))
    with pytest.raises(ValueError, match="^information needs .* cannot give"):
        PPOTrainer(TablePolicy(), reward, Information(), PPOConfig())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"place": "start"}, "^Information: place must be one of spread, end, got 'start'"),
        ({"marks": ""}, "^Sentences: marks are the characters that end a sentence, got ''"),
    ],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        unchecked(Information, **settings)


def test_it_is_prefix_difference_where_every_token_ends_a_sentence():
    sequences = ragged_sequences()
    mask = sequences.response_mask
    evidence = {PrefixScores(): torch.where(mask, torch.randn(mask.shape), 0), SentenceEnds(): mask.float()}
    rollout = rollout_of(sequences, [1.0, -2.0, 0.5, 3.0], evidence)
    assert torch.equal(Information()(rollout), PrefixDifference()(rollout))
