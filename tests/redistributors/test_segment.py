"""Segments: by hand, what they keep of the inner method, and where the policy says they end."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fakes import TablePolicy, evidence_for, ragged_sequences, rollout_of, sequences_of, unchecked

from models.policy import causal_policy as policy_module
from models.policy.loading import load_policy
from models.rewards.loading import load_reward_model
from models.tiny import save_tiny
from redistributors import (
    DecoderAttention,
    EntropyPeaks,
    NGrams,
    PrefixDifference,
    RewardAttention,
    Segment,
    Sentences,
    Shapley,
    Sparse,
    Uniform,
)
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.checks import check_gamma
from rlhf_core.evidence import FullKL, SentenceEnds, TokenEntropy

WORDS = ["The", "end.", "Why?", "no", "3.14", "tail", "line\u2028", "。"]
SEQUENCES = ragged_sequences(lengths=(7, 1, 4, 3))
INNERS = [Sparse(), Uniform(), RewardAttention(), DecoderAttention(), PrefixDifference(), Shapley(residual="nowhere")]
BOUNDARIES = [NGrams(n=1), NGrams(n=2), NGrams(), Sentences(), EntropyPeaks(threshold=0.5)]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Token scores as given."""

    scores: tuple[float, ...]
    needs = frozenset()
    causal = True
    conserving = False

    def __call__(self, rollout):
        return torch.tensor([self.scores]).masked_fill(~rollout.sequences.response_mask, 0)


def case(length, evidence=None):
    return rollout_of(sequences_of([[1]], [[2] * length]), [1.0], evidence)


def segmented(scores, boundaries, place, evidence=None):
    return Segment(inner=Table(scores=scores), boundaries=boundaries, place=place)(case(len(scores), evidence)).tolist()


# -- by hand


def test_n_grams_by_hand():
    scores = (1.0, 2.0, -4.0, 0.5, 8.0)
    assert segmented(scores, NGrams(n=2), "end") == [[0, 3, 0, -3.5, 8]]
    assert segmented(scores, NGrams(n=2), "spread") == [[1.5, 1.5, -1.75, -1.75, 8]]
    assert segmented(scores, NGrams(n=7), "end") == [[0, 0, 0, 0, 7.5]]
    assert segmented(scores, NGrams(n=7), "spread") == [[1.5] * 5]


def test_sentences_by_hand():
    """The last token ends a segment whether or not it holds a full stop; two in a row are two segments."""
    evidence = {SentenceEnds(): torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]])}
    scores = (1.0, 2.0, -4.0, 0.5, 8.0)
    assert segmented(scores, Sentences(), "end", evidence) == [[0, 3, -4, 0, 8.5]]
    assert segmented(scores, Sentences(), "spread", evidence) == [[1.5, 1.5, -4, 4.25, 4.25]]


def test_entropy_cuts_before_the_token_that_was_hard_to_foresee():
    """The first token's entropy cuts nothing, there is no segment before it; at the threshold there is no cut."""
    evidence = {TokenEntropy(): torch.tensor([[5.0, 1.0, 2.5, 2.0, 3.0]])}
    scores = (1.0, 2.0, -4.0, 0.5, 8.0)
    assert segmented(scores, EntropyPeaks(), "end", evidence) == [[0, 3, 0, -3.5, 8]]
    assert segmented(scores, EntropyPeaks(threshold=9), "end", evidence) == [[0, 0, 0, 0, 7.5]]


# -- what is kept of the inner method


@pytest.mark.parametrize("inner", INNERS, ids=lambda inner: type(inner).__name__)
@pytest.mark.parametrize("place", ["end", "spread"])
def test_sums_are_those_of_the_inner_method(inner, place):
    for boundaries in BOUNDARIES:
        method = Segment(inner=inner, boundaries=boundaries, place=place)
        evidence = evidence_for(method, SEQUENCES.response_mask)
        rollout = rollout_of(SEQUENCES, [2.0, -3.0, 0.0, 0.5], evidence)
        torch.testing.assert_close(method(rollout).sum(1), inner(rollout).sum(1), atol=1e-6, rtol=1e-6)
        assert method.needs == inner.needs | boundaries.needs
        assert method.conserving == inner.conserving
        assert method.causal == (inner.causal and place == "end")
        if boundaries == NGrams(n=1):
            assert torch.equal(method(rollout), inner(rollout))


def test_segments_of_segments():
    inner = Segment(inner=Table(scores=(1.0, 2.0, -4.0, 0.5, 8.0)), boundaries=NGrams(n=2), place="end")
    assert Segment(inner=inner, boundaries=NGrams(n=4), place="end")(case(5)).tolist() == [[0, 0, 0, -0.5, 8]]


@pytest.mark.parametrize("boundaries", BOUNDARIES, ids=repr)
def test_placed_at_the_end_no_sum_looks_ahead(boundaries):
    """Eight tokens, of which the last three change, with what is told of them. A token's entropy is told before it is
    drawn, so that of the sixth stays."""
    method = Segment(inner=PrefixDifference(), boundaries=boundaries, place="end")
    one, other = (sequences_of([[1]], [[2, 3, 4, 5, 2, *tail]]) for tail in ([3, 4, 5], [1, 1, 1]))
    evidence = evidence_for(method, one.response_mask, seed=1)
    changed = evidence_for(method, one.response_mask, seed=2)
    for request, values in changed.items():
        known = 5 if isinstance(request, SentenceEnds) else 6
        values[:, :known] = evidence[request][:, :known]
    before, after = method(rollout_of(one, [2.0], evidence)), method(rollout_of(other, [-1.0], changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before, after)
    if boundaries == NGrams(n=2):  # tokens 5 and 6 are a segment
        spread = replace(method, place="spread")
        changes = spread(rollout_of(one, [2.0], evidence)) != spread(rollout_of(other, [-1.0], changed))
        assert changes[0, :5].tolist() == [False] * 4 + [True]


def test_the_figures_of_the_inner_method_and_the_number_of_segments():
    rollout = rollout_of(SEQUENCES, [1.0] * 4, evidence_for(RewardAttention(), SEQUENCES.response_mask))
    inner = RewardAttention().metrics(rollout)
    assert Segment(boundaries=NGrams(n=2)).metrics(rollout) == {**inner, "segments": (4 + 1 + 2 + 2) / 4}
    assert Segment(inner=Sparse()).metrics(rollout) == {"segments": (2 + 1 + 1 + 1) / 4}


# -- what the policy says


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("segment")
    shared = {"words": WORDS, "vocab_size": 10}
    policy = save_tiny(root / "policy", "llama", seed=1, **shared)
    return policy, save_tiny(root / "reward", head="classifier", seed=2, **shared)


@pytest.fixture(scope="module")
def policy(folders):
    return load_policy(folders[0])


@pytest.mark.parametrize("cells", [2**28, 0], ids=["whole", "in parts"])
@torch.no_grad()
def test_token_entropy_is_the_entropy_of_the_evaluation(policy, cells, monkeypatch):
    monkeypatch.setattr(policy_module, "KEPT_CELLS", cells)
    evaluation = policy.evaluate(SEQUENCES, frozenset({TokenEntropy(), SentenceEnds()}))
    assert torch.equal(evaluation.evidence[TokenEntropy()], policy.evaluate(SEQUENCES, frozenset()).entropy)
    assert evaluation.evidence[TokenEntropy()][0, :7].min() > 0
    assert set(evaluation.evidence) == {TokenEntropy(), SentenceEnds()}
    beside = policy.evaluate(SEQUENCES, frozenset({TokenEntropy(), FullKL()}))
    torch.testing.assert_close(beside.evidence[TokenEntropy()], evaluation.entropy)


@torch.no_grad()
def test_tokens_that_hold_a_mark_end_a_sentence(policy):
    ids = [2 + WORDS.index(word) for word in ("The", "end.", "no", "Why?", "3.14", "。", "tail")]
    sequences = sequences_of([[2], [2]], [[*ids, 1], [3]])

    def ends(request):
        return policy.evaluate(sequences, frozenset({request})).evidence[request].tolist()

    assert ends(SentenceEnds()) == [[0, 1, 0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert ends(SentenceEnds(marks="?")) == [[0, 0, 0, 1, 0, 0, 0, 0], [0] * 8]


def test_a_policy_says_what_it_can_tell(policy):
    for request in (TokenEntropy(), SentenceEnds()):
        assert policy.provides(request)
        assert not policy.provides(replace(request, source="reference"))
    assert "sentence ends and log-probabilities of its auxiliaries, not SentenceEnds of the reward" in policy.why_not(
        SentenceEnds(source="reward")
    )
    reward = TokenReward(lambda prompts, responses: [0.0] * len(prompts))
    with pytest.raises(ValueError, match=r"^segment.* needs SentenceEnds.*TablePolicy cannot give"):
        PPOTrainer(TablePolicy(), reward, Segment(inner=Uniform(), boundaries=Sentences()), PPOConfig())


@pytest.mark.parametrize("place", ["end", "spread"])
@pytest.mark.parametrize("boundaries", [NGrams(), Sentences(), EntropyPeaks(threshold=0.5)])
def test_two_steps_on_real_architectures(folders, boundaries, place):
    reward = load_reward_model(folders[1], score="single_logit")
    config = PPOConfig(rollout_batch_size=4, minibatch_size=4, min_length=2, max_length=(3, 9), epochs=1)
    learner = PPOTrainer(load_policy(folders[0]), reward, Segment(boundaries=boundaries, place=place), config)
    for _ in range(2):
        metrics = learner.step([[2, 3], [4], [5, 6, 7], [8]])
        assert metrics["conservation_error"] < 1e-5
        assert 1 <= metrics["segments"] <= 9
        assert np.isfinite(list(metrics.values())).all()


# -- refusals


class Learner(Uniform):
    def observe(self, rollout):
        pass

    def state(self):
        return {}

    def load_state(self, state):
        pass


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("inner", Learner(), "inner must not learn"),
        ("inner", PrefixDifference(gamma=0.9), "its sums are undiscounted; give inner gamma=1"),
        ("inner", RewardAttention, "inner must be a redistributor"),
        ("inner", "abc", "inner must be a redistributor.*got 'abc'"),
        ("boundaries", 5, "boundaries must be like NGrams.*got 5"),
        ("boundaries", NGrams, "boundaries must be like NGrams"),
        ("place", "middle", "place must be one of spread, end, got 'middle'"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(setting, value, message):
    with pytest.raises(ValueError, match=f"^Segment: .*{message}"):
        unchecked(Segment, **{setting: value})


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (NGrams, {"n": 0}),
        (NGrams, {"n": 2.0}),
        (NGrams, {"n": True}),
        (Sentences, {"marks": ""}),
        (Sentences, {"marks": None}),
        (EntropyPeaks, {"threshold": -1.0}),
        (EntropyPeaks, {"threshold": float("nan")}),
        (EntropyPeaks, {"threshold": "high"}),
    ],
)
def test_impossible_boundaries_are_refused(make, bad):
    with pytest.raises(ValueError, match=f"^{make.__name__}: .*, got"):
        unchecked(make, **bad)


def test_discounts_are_refused_wherever_a_segment_ends():
    """In a short response all segments may end with it, and still credit lands early in a long one."""
    for place in ("end", "spread"):
        with pytest.raises(ValueError, match=r"^segment.*exact at gamma 1.0, the config's gamma is 0.9"):
            check_gamma(Segment(boundaries=NGrams(n=9), place=place), 0.9)
