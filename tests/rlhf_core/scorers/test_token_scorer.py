"""Scorers with rewards of their own for spans of text or for tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import TablePolicy, ragged_sequences, rollout_of, sequences_of, small_run, unchecked, unheard
from generated import tries
from hypothesis import given
from hypothesis import strategies as st
from texts import TEXTS, byte_fallback, byte_level

from models.policy.loading import load_policy
from models.tiny import save_tiny
from redistributors import RewardAttention
from redistributors.own_rewards import OwnRewards
from rlhf_core import PPOTrainer, ScoreConfig, TokenReward
from rlhf_core.checks import check_needs
from rlhf_core.scorers.token_scorer import OwnTokenRewards, PerTokenReward, SpanReward

OWN = OwnTokenRewards()
NEEDS = frozenset({OWN})
SEQUENCES = ragged_sequences()
TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}


def token_rewards(fn, sequences=SEQUENCES):
    return PerTokenReward(fn).score(sequences, NEEDS)


def test_token_rewards_sum_to_the_score_and_are_handed_on():
    scored = token_rewards(lambda prompts, responses: [[token - 2.5 for token in row] for row in responses])
    for row, ids in enumerate(SEQUENCES.responses()):
        assert scored.scores[row] == pytest.approx(sum(ids) - 2.5 * len(ids))
        assert scored.evidence[OWN][row, : len(ids)].tolist() == [token - 2.5 for token in ids]
        assert not scored.evidence[OWN][row, len(ids) :].any()
    assert PerTokenReward(unheard).provides(OWN)
    assert not PerTokenReward(unheard).provides(RewardAttention().request)
    assert token_rewards(lambda p, r: [np.ones(len(row)) for row in r]).scores.tolist() == [4, 1, 6, 3]
    assert PerTokenReward(lambda p, r: [[1.0] * len(row) for row in r]).score(SEQUENCES, frozenset()).evidence == {}
    with pytest.raises(ValueError, match="OwnTokenRewards and nothing else"):
        PerTokenReward(lambda p, r: r).score(SEQUENCES, RewardAttention().needs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda r: r[:-1], "must return one list for each of the 4 responses"),
        (lambda r: 1.0, "must return one list for each of the 4 responses, got 1.0"),
        (lambda r: [[1.0] * 3] * 4, r"of shape \(3,\) for row 0, whose response has 4 tokens, EOS included"),
        (lambda r: [*([1.0] * len(x) for x in r[:3]), [["a"]]], "row 3: expected numbers"),
        (lambda r: [[float("nan")] * len(x) for x in r], "row 0: rewards must be finite"),
    ],
)
def test_token_rewards_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        token_rewards(lambda prompts, responses: given(responses))


def row_of(tokenizer, prompt, response, eos=True):
    end = [tokenizer.eos_token_id] if eos else []
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response)]
    return sequences_of([ids[0]], [ids[1] + end])


def spans_on(tokenizer, sequences, spans):
    def decode(rows):
        return [tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in rows]

    return SpanReward(lambda prompts, responses: spans, decode).score(sequences, NEEDS)


def test_spans_by_hand():
    """ " sat" and "!" earn; a span that cuts a token shares by bytes, and EOS has none."""
    tokenizer = TOKENIZERS["byte-level"]
    sequences = row_of(tokenizer, "the café", " zzé")
    assert tokenizer.convert_ids_to_tokens(sequences.responses()[0]) == ["Ġ", "z", "z", "Ã©", "<eos>"]
    scored = spans_on(tokenizer, sequences, [[(0, 2, 3.0), (1, 4, 8.0), (3, 4, -1.0)]])
    assert scored.scores.tolist() == [10.0]
    assert scored.evidence[OWN].tolist() == [[1.5, 1.5 + 2, 2, 4 - 1, 0]]


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@tries(40)
@given(text=TEXTS, data=st.data())
def test_every_span_is_split_over_its_tokens_by_bytes(tokenizer, text, data):
    """Against the tokenizers library's own account of which characters a token belongs to."""
    first = data.draw(st.integers(0, len(text) - 1))
    last = data.draw(st.integers(first + 1, len(text)))
    sequences = row_of(tokenizer, "the cat", text)
    space = tokenizer is TOKENIZERS["byte-fallback"]  # a text encoded alone begins with one, which shows in its place
    scored = spans_on(tokenizer, sequences, [[(first + space, last + space, 7.0)]])
    assert float(scored.scores) == pytest.approx(7)
    earned = scored.evidence[OWN][0]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for token, (start, end) in enumerate(encoding["offset_mapping"]):
        if end <= first or start >= last:
            assert float(earned[token]) == pytest.approx(0, abs=1e-6)
    assert (earned >= 0).all()


def test_a_response_without_text_has_one_span():
    tokenizer = TOKENIZERS["byte-level"]
    sequences = sequences_of([tokenizer("the")["input_ids"]], [[tokenizer.eos_token_id]])
    assert spans_on(tokenizer, sequences, [[(0, 0, 2.0)]]).evidence[OWN].tolist() == [[2.0]]
    assert spans_on(tokenizer, sequences, [[]]).scores.tolist() == [0.0]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 9, 1.0)], r"row 0: the span \(0, 9\) does not fit its response of 4 characters, ' sat'"),
        ([(-1, 2, 1.0)], r"row 0: the span \(-1, 2\) does not fit"),
        ([(2, 2, 1.0)], r"row 0: the span \(2, 2\) does not fit"),
        ([(0.5, 2, 1.0)], r"row 0: the span \(0.5, 2\) does not fit"),
        ([(0, 2)], r"row 0: spans are \(start, end, reward\), got \[\(0, 2\)\]"),
        ([(0, 2, "good")], "row 0: expected numbers"),
        ([(0, 2, float("inf"))], "row 0: rewards must be finite"),
    ],
)
def test_spans_that_do_not_fit_are_refused_with_their_row(spans, message):
    tokenizer = TOKENIZERS["byte-level"]
    with pytest.raises(ValueError, match=message):
        spans_on(tokenizer, row_of(tokenizer, "the cat", " sat"), [spans])


def test_a_decoder_that_joins_words_differently_alone_is_followed():
    """TablePolicy writes a space between tokens, so that a response alone has one less than in its place."""
    sequences = sequences_of([[1, 2]], [[3, 4, 5]])
    reward = SpanReward(lambda prompts, responses: [[(0, 2, 1.0), (2, 4, 2.0), (4, 6, 3.0)]], TablePolicy().decode)
    assert reward.score(sequences, NEEDS).evidence[OWN].tolist() == [[1, 2, 3]]


def test_own_rewards_are_scaled_and_conserve():
    rewards = torch.tensor([[1.0, -2, 4, 0, 0, 0], [3, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 5, 0, 0, 0]])
    rollout = rollout_of(SEQUENCES, 0.5 * rewards.sum(1) + 2, {OWN: rewards})
    rollout = replace(rollout, raw_scores=rewards.sum(1), score_scale=0.5)
    found = {where: OwnRewards(residual=where)(rollout) for where in ("last", "uniform", "nowhere")}
    torch.testing.assert_close(found["nowhere"], 0.5 * rewards)
    assert found["last"][0].tolist() == pytest.approx([0.5, -1, 2, 2, 0, 0])
    assert found["uniform"][0].tolist() == pytest.approx([1, -0.5, 2.5, 0.5, 0, 0])
    for where, token_scores in found.items():
        conserved = torch.allclose(token_scores.sum(1), rollout.scores)
        assert conserved == OwnRewards(residual=where).conserving
    assert OwnRewards().metrics(rollout) == {"credit_residual": pytest.approx(2)}
    with pytest.raises(ValueError, match="OwnRewards: residual must be one of last, uniform, nowhere, got 'first'"):
        unchecked(OwnRewards, residual="first")


def test_a_reward_model_without_rewards_of_its_own_is_refused():
    with pytest.raises(ValueError, match="TokenReward cannot give"):
        check_needs(OwnRewards(), TablePolicy(), TokenReward(unheard))


@pytest.mark.parametrize("kind", ["tokens", "spans"])
def test_two_steps_of_ppo(tmp_path, kind):
    policy = load_policy(save_tiny(str(tmp_path)))
    rewards = {
        "tokens": PerTokenReward(lambda prompts, responses: [[1.0 * (t == 5) for t in row] for row in responses]),
        "spans": SpanReward(
            lambda prompts, responses: [
                [(start, start + 2, 1.0) for start in range(len(text) - 1) if text[start : start + 2] == "w5"]
                for text in responses
            ],
            policy.decode,
        ),
    }
    config = small_run(score=ScoreConfig(centring="running_mean"))
    learner = PPOTrainer(policy, rewards[kind], OwnRewards(), config)
    for _ in range(2):
        assert learner.step([[2, 3], [4], [5, 6, 7], [8]])["conservation_error"] < 1e-5
