"""The contract every registered redistributor inherits, and the paper's five methods by hand."""

import re
from dataclasses import replace

import pytest
import torch
from fakes import evidence_for, ragged_sequences, rollout_of, sequences_of, unchecked

from redistributors import (
    REDISTRIBUTORS,
    Attention,
    DecoderAttention,
    EnsembleCredit,
    Entropy,
    EntropyPeaks,
    Information,
    LogRatio,
    OwnRewards,
    PotentialProjection,
    PrefixDifference,
    RewardAttention,
    Segment,
    Sentences,
    Sparse,
    Uniform,
    check,
)
from redistributors.parts.attention_requests import AttentionRow, AttentionRowMean
from redistributors.parts.credit import check_residual, normalised, signed
from redistributors.parts.state_features import PriorLogprobs, StateValue
from rlhf_core.evidence import Layout, SentenceEnds
from rlhf_core.scorers.aggregation import Entropic
from rlhf_core.types import Sequences

SCORES = (2.0, -3.0, 0.0, 0.5)


def rollout_for(redistributor):
    sequences = ragged_sequences()
    return rollout_of(sequences, SCORES, evidence_for(redistributor, sequences.response_mask))


@pytest.fixture(params=sorted(REDISTRIBUTORS))
def redistributor(request):
    return REDISTRIBUTORS[request.param]()


def test_compares_by_value_and_does_not_change(redistributor):
    assert redistributor == replace(redistributor)
    assert len({redistributor, replace(redistributor)}) == 1
    with pytest.raises(AttributeError):
        redistributor.beta = 0.1


def test_keeps_the_contract_and_declares_all_that_holds(redistributor):
    report = check(redistributor)
    assert report.passed, report
    assert all(one.held == one.declared for one in report.tests), report


@pytest.mark.parametrize(
    "method",
    [
        Attention(reading="rollout", layers="all"),
        Attention(reading="gradient", sinks=1, floor=0.5),
        DecoderAttention(shift=1),
        EnsembleCredit(aggregate=Entropic(lam=0.5)),
        EnsembleCredit(inner=PrefixDifference(), members=3),
        Information(place="spread"),
        LogRatio(mode="shape"),
        LogRatio(mode="rescale"),
        OwnRewards(residual="nowhere"),
        PotentialProjection(gamma=0.9, features=(StateValue(), PriorLogprobs())),
        PrefixDifference(gamma=0.9),
        PrefixDifference(prompt_share="last"),
        PrefixDifference(prompt_share="nowhere"),
        Segment(boundaries=Sentences(), inner=LogRatio(), place="end"),
        Segment(boundaries=EntropyPeaks(), inner=PrefixDifference(), place="end"),
    ],
    ids=lambda method: repr(method)[:60],
)
def test_keeps_the_contract_under_other_settings(method):
    report = check(method)
    assert report.passed, report


def test_scales_with_the_score(redistributor):
    """Attributions are in units of the score, and weights are the same in any; where sentences end has no unit."""
    rollout = rollout_for(redistributor)
    scaled = {
        request: evidence if isinstance(request, SentenceEnds) else 1000 * evidence
        for request, evidence in rollout.evidence.items()
    }
    large = replace(rollout, scores=1000 * rollout.scores, raw_scores=1000 * rollout.raw_scores, evidence=scaled)
    if redistributor.conserving:
        torch.testing.assert_close(redistributor(rollout) * 1000, redistributor(large), atol=1e-3, rtol=1e-5)


def test_an_unknown_name_says_the_nearest_and_lists_all():
    with pytest.raises(KeyError, match="no redistributor 'abcc'; did you mean 'abc'. There are sparse, uniform, abc,"):
        REDISTRIBUTORS["abcc"]
    assert "abcc" not in REDISTRIBUTORS
    assert REDISTRIBUTORS.get("abcc") is None


def test_sparse_by_hand():
    token_scores = Sparse()(rollout_for(Sparse()))
    assert token_scores[0].tolist() == [0, 0, 0, 2, 0, 0]
    assert token_scores[1].tolist() == [-3, 0, 0, 0, 0, 0]


def test_uniform_by_hand():
    rollout = rollout_for(Uniform())
    assert Uniform()(rollout)[0].tolist() == [0.5, 0.5, 0.5, 0.5, 0, 0]
    torch.testing.assert_close(Uniform(beta=0.8)(rollout)[0], torch.tensor([0.4, 0.4, 0.4, 0.8, 0, 0]))
    assert torch.equal(Uniform(beta=0.0)(rollout), Sparse()(rollout))


def attention_case(method, weights, score=1.0):
    response = [1] * len(weights)
    evidence = {method.request: torch.tensor([weights])}
    return method(rollout_of(sequences_of([[1]], [response]), [score], evidence))[0].tolist()


def test_abc_by_hand():
    assert attention_case(RewardAttention(beta=1.0), [0.1, 0.3, 0.1], 2.0) == pytest.approx([0.4, 1.2, 0.4])
    assert attention_case(RewardAttention(), [0.1, 0.3, 0.1], 2.0) == pytest.approx([0.32, 0.96, 0.32 + 0.4])


def test_attention_that_misses_the_response_falls_back_to_the_last_token():
    method = RewardAttention(beta=1.0)
    assert attention_case(method, [0.0, 0.0, 0.0]) == [0, 0, 1]
    rollout = rollout_of(sequences_of([[1], [1]], [[1, 1], [1, 1]]), [1, 1], {method.request: torch.eye(2) * 0.5})
    assert method.metrics(rollout) == {"credit_fallback": 0.0}
    nothing = rollout_of(sequences_of([[1], [1]], [[1, 1], [1, 1]]), [1, 1], {method.request: torch.zeros(2, 2)})
    assert method.metrics(nothing) == {"credit_fallback": 1.0}


def test_decoder_attention_with_and_without_the_published_shift():
    weights = [0.2, 0.6, 0.0]  # no row sees the last token
    assert attention_case(DecoderAttention(beta=1.0), weights) == pytest.approx([0.25, 0.75, 0])
    assert attention_case(DecoderAttention(beta=1.0, shift=1), weights) == pytest.approx([0, 0.25, 0.75])


def test_tiny_evidence_keeps_its_shape_and_negative_evidence_is_refused():
    mask = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(normalised(torch.tensor([[1e-38, 3e-38]]), mask), torch.tensor([[0.25, 0.75]]))
    with pytest.raises(ValueError, match="non-negative, got -1.0 at row 0, token 1"):
        normalised(torch.tensor([[1.0, -1.0]]), mask)


@pytest.mark.parametrize(
    ("residual", "wanted"),
    [("last", [2, -4, 6 - -2]), ("uniform", [2 + 8 / 3, -4 + 8 / 3, 8 / 3]), ("nowhere", [2, -4, 0])],
)
def test_signed_attributions_keep_their_signs_and_place_what_is_left(residual, wanted):
    """Attributions 1, -2 and 0 in raw units, at 2 score units each, leave 8 of a score of 6."""
    rollout = replace(rollout_of(sequences_of([[1], [1]], [[1, 1, 1], [1]]), [6.0, -1.0]), score_scale=2.0)
    found = signed(torch.tensor([[1.0, -2, 0], [3, 9, 9]]), rollout, residual=residual)
    assert found[0].tolist() == pytest.approx(wanted)
    assert found[1].tolist() == pytest.approx([6 if residual == "nowhere" else -1, 0, 0])


def test_other_places_for_a_residual_are_refused():
    with pytest.raises(ValueError, match=r"^me: residual must be one of last, uniform, nowhere, got 'first'$"):
        check_residual("first", "me")


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan"), "0.8", None, True])
@pytest.mark.parametrize("make", [Uniform, RewardAttention, DecoderAttention, Entropy])
def test_beta_outside_its_range_is_refused(make, beta):
    with pytest.raises(ValueError, match=f"^{make.__name__}: beta.*, got {beta!r}$"):
        unchecked(make, beta=beta)


@pytest.mark.parametrize("layer", ["last", 1.0, None, True])
@pytest.mark.parametrize("make", [RewardAttention, DecoderAttention])
def test_what_is_no_layer_is_refused(make, layer):
    with pytest.raises(ValueError, match=f"^{make.__name__}: layer .*, got {layer!r}$"):
        unchecked(make, layer=layer)


@pytest.mark.parametrize("shift", [2, "1", 1.0, True])
def test_other_shifts_are_refused(shift):
    with pytest.raises(ValueError, match=f"shift must be 0 or 1, got {shift!r}$"):
        unchecked(DecoderAttention, shift=shift)


@pytest.mark.parametrize("rows", ["first", ["mean"]])
def test_other_rows_are_refused(rows):
    with pytest.raises(ValueError, match=re.escape(f"rows must be one of mean, last, got {rows!r}")):
        unchecked(DecoderAttention, rows=rows)


def layout_for(sequences: Sequences) -> Layout:
    """Prompts of one token, so response token t stands at column t + 1."""
    mask = sequences.response_mask
    positions = torch.where(mask, torch.arange(mask.shape[1]) + 1, 0)
    return Layout(response_positions=positions, response_mask=mask, read_positions=mask.sum(1) - 1)


def test_the_mean_over_rows_divides_by_the_rows_that_could_see_a_token():
    """Prompt p, response a b c: rows p, a, b predict a, b, c; a is seen by rows a and b, b by row b, c by none. With a
    window of one, row b would not see a."""
    layout = layout_for(sequences_of([[1]], [[1, 1, 1]]))
    tap = AttentionRowMean(source="policy")
    rows = tap.rows(layout)
    assert rows.tolist() == [[0, 1, 2]]
    two_heads = torch.tensor([[[1, 0, 0, 0], [0.2, 0.8, 0, 0], [0.1, 0.3, 0.6, 0]], [[1, 0, 0, 0.0]] * 3])[None]
    total = tap.reduce(two_heads, rows, layout)
    assert tap.finish(total, torch.tensor([[2, 1, 0]])).tolist()[0] == pytest.approx([(0.4 + 0.15) / 2, 0.3, 0])
    assert tap.finish(total, torch.tensor([[1, 1, 0]])).tolist()[0] == pytest.approx([0.4 + 0.15, 0.3, 0])


def test_the_mean_over_rows_may_be_computed_in_chunks():
    sequences = ragged_sequences(prompt_lengths=(1, 1, 1, 1))
    layout, tap = layout_for(sequences), AttentionRowMean(source="policy")
    rows = tap.rows(layout)
    weights = torch.rand(4, 2, rows.shape[1], 7) * (rows >= 0)[:, None, :, None]
    whole = tap.reduce(weights, rows, layout)
    chunks = [tap.reduce(weights[:, :, s : s + 2], rows[:, s : s + 2], layout) for s in range(0, rows.shape[1], 2)]
    torch.testing.assert_close(sum(chunks), whole)


def test_the_read_row_is_one_row_averaged_over_heads():
    layout = layout_for(sequences_of([[1]], [[1, 1, 1]]))
    tap = AttentionRow(source="reward")
    assert tap.rows(layout).tolist() == [[2]]
    weights = torch.tensor([[[0.1, 0.3, 0.6, 0]], [[0.5, 0.5, 0, 0.0]]])[None]
    assert tap.reduce(weights, tap.rows(layout), layout).tolist()[0] == pytest.approx([0.4, 0.3, 0])
