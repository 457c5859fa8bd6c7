"""Differences of prefix scores: by hand, against truncated forwards of real models, and as exact shaping."""

import pytest
import torch
from fakes import TablePolicy, rollout_of, sequences_of, unchecked

from models import load_policy, load_reward_model
from models.tiny import save_tiny
from redistributors import Attention, PrefixDifference, RewardAttention, Sparse
from rlhf_core import PPOConfig, PPOTrainer, ScoreConfig
from rlhf_core.checks import check_gamma
from rlhf_core.evidence import PrefixScores
from rlhf_core.returns import generalized_advantages

SCORE = 5.0
PREFIXES = [1.0, 3.0, 2.0]


def case(**settings):
    rollout = rollout_of(sequences_of([[1]], [[2, 3, 4]]), [SCORE], {PrefixScores(): torch.tensor([PREFIXES])})
    return PrefixDifference(**settings)(rollout)[0].tolist()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"prompt_share": "nowhere"}, [2, -1, 3]),
        ({"prompt_share": "first"}, [3, -1, 3]),
        ({"prompt_share": "last"}, [2, -1, 4]),
        ({"prompt_share": "nowhere", "gamma": 0.5}, [0.5 * 3 - 1, 0.5 * 2 - 3, 5 - 2]),
        ({"prompt_share": "first", "gamma": 0.5}, [0.5 * 3, 0.5 * 2 - 3, 5 - 2]),
    ],
)
def test_by_hand(settings, wanted):
    assert case(**settings) == pytest.approx(wanted)


@pytest.mark.parametrize("share", ["first", "nowhere"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (1.0, 0.0), (0.9, 0.7)])
def test_advantages_are_those_of_sparse_once_the_critic_is_shifted_by_the_potential(share, gamma, lam):
    """A critic of the shaped reward is V − Φ (Wiewiora 2003); every GAE advantage is then the same on every path."""
    sequences = sequences_of([[1]] * 3, [[2, 3, 4, 5], [2], [2, 3]])
    mask = sequences.response_mask
    potential = torch.where(mask, torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)), 0)
    rollout = rollout_of(sequences, [1.0, -2.0, 0.5], {PrefixScores(): potential})
    shaped = PrefixDifference(gamma=gamma, prompt_share=share)(rollout)
    if share == "first":
        potential[:, 0] = 0
    arguments = {"mask": mask, "gamma": gamma, "lam": lam}
    plain = generalized_advantages(Sparse()(rollout), rollout.values, **arguments)
    moved = generalized_advantages(shaped, rollout.values - potential, **arguments)
    torch.testing.assert_close(moved, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_token_scores_are_differences_of_truncated_forwards(tmp_path, family):
    policy = load_policy(save_tiny(tmp_path / "policy", family))
    reward = load_reward_model(save_tiny(tmp_path / "reward", family, head="classifier"), score="single_logit")
    config = PPOConfig(
        rollout_batch_size=8,
        minibatch_size=8,
        min_length=8,
        max_length=(8, 15),
        score=ScoreConfig(centring="running_mean", clip=2.0),
    )
    trainer = PPOTrainer(policy, reward, PrefixDifference(prompt_share="nowhere"), config)
    rollout = trainer.collect(["w2 w3", "w4"] * 4)
    token_scores = trainer.redistribute(rollout)
    for row, (prompt, response) in enumerate(zip(rollout.sequences.prompts(), rollout.sequences.responses())):
        # a prompt and a response need two tokens, so that r(x, nothing) is left out where the prompt has one
        scores = reward.score_ids([prompt + response[:t] for t in range(max(0, 2 - len(prompt)), len(response) + 1)])
        first = len(response) - len(scores) + 1
        # centring and clipping change the score alone, so they show on the last token
        torch.testing.assert_close(token_scores[row, first : len(response) - 1], scores.diff()[:-1])
        expected = rollout.scores[row] - scores[-2]
        assert float(token_scores[row, len(response) - 1]) == pytest.approx(float(expected), abs=1e-4)


def test_training_with_an_exact_critic_shift_is_refused_at_another_gamma():
    with pytest.raises(ValueError, match=r"^prefix-difference.* is exact at gamma 1.0, the config's gamma is 0.9"):
        check_gamma(PrefixDifference(), 0.9)
    check_gamma(PrefixDifference(gamma=0.9), 0.9)
    assert not PrefixDifference(gamma=0.9).conserving
    assert not PrefixDifference(prompt_share="nowhere").conserving
    assert TablePolicy().provides(PrefixScores()) is False


@pytest.mark.parametrize("gamma", [-0.1, 1.5, "1", None, True])
def test_what_is_no_discount_is_refused(gamma):
    with pytest.raises(ValueError, match=f"^PrefixDifference: gamma is a discount .*, got {gamma!r}$"):
        unchecked(PrefixDifference, gamma=gamma)


def test_the_last_token_is_no_place_for_the_prompts_share_under_a_discount():
    with pytest.raises(ValueError, match=r"'last' is shaping only at gamma 1, got gamma 0.9; place it 'first' or"):
        PrefixDifference(gamma=0.9, prompt_share="last")


@pytest.mark.parametrize(
    ("method", "early"),
    [(Attention(floor=1.0), True), (Attention(sinks=2), True), (RewardAttention(), True), (Sparse(), False)],
)
def test_credit_before_the_end_is_refused_under_a_discount_however_long_it_takes_to_begin(method, early):
    if not early:
        return check_gamma(method, 0.9)
    with pytest.raises(ValueError, match="conserves the score but places it before the last token"):
        check_gamma(method, 0.9)


def test_other_places_for_the_prompts_share_are_refused():
    with pytest.raises(ValueError, match="prompt_share must be one of first, last, nowhere, got 'everywhere'"):
        unchecked(PrefixDifference, prompt_share="everywhere")
