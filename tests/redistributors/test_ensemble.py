"""Aggregates of several scores, their shares, and credit that splits as the score does."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from fakes import TablePolicy, evidence_for, ragged_sequences, rollout_of, small_run, unchecked
from generated import tries
from hypothesis import given
from hypothesis import strategies as st

from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.ensemble import RewardEnsemble, load_reward_ensemble
from models.rewards.loading import load_reward_model
from models.tiny import save_tiny, tiny_gpt2_classifier, tiny_tokenizer
from models.training.finetuning import adapted_reward_model
from models.weights.lora_settings import LoraSettings
from models.weights.source import ModelSource
from redistributors import DecoderAttention, PotentialProjection, PrefixDifference, RewardAttention, Sparse
from redistributors.ensemble import EnsembleCredit
from redistributors.parts.attention_requests import AttentionRow
from redistributors.parts.state_features import Position
from rlhf_core import PPOTrainer, ScoreConfig, TokenReward
from rlhf_core.checks import check_gamma, check_needs
from rlhf_core.evidence import PrefixScores
from rlhf_core.scorers.aggregation import (
    Aggregate,
    Entropic,
    Mean,
    MemberScores,
    OfMember,
    UncertaintyWeighted,
    WorstCase,
)

EXACT = [Mean(), WorstCase(), UncertaintyWeighted(lam=0.7), UncertaintyWeighted(lam=0.7, ddof=1)]
AGGREGATES = [*EXACT, Entropic(lam=0.7)]
SCORES = st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=4)
ROW = AttentionRow(source="reward")


def test_aggregates_by_hand():
    scores = torch.tensor([[1.0, 2, 6], [0, 0, 0]])
    assert Mean().aggregate(scores).tolist() == [3, 0]
    assert WorstCase().aggregate(scores).tolist() == [1, 0]
    # deviations -2, -1, 3: squares sum to 14
    assert UncertaintyWeighted(lam=0.5).aggregate(scores).tolist() == pytest.approx([3 - 0.5 * 14 / 3, 0])
    assert UncertaintyWeighted(lam=0.5, ddof=1).aggregate(scores).tolist() == pytest.approx([3 - 0.5 * 7, 0])
    # with lam = log 2, exp(-lam R) is 1/2, 1/4, 1/64, whose mean is 49/192
    lam = torch.tensor(2.0).log()
    wanted = float((torch.tensor(192 / 49)).log() / lam)
    assert Entropic(lam=float(lam)).aggregate(scores).tolist() == pytest.approx([wanted, 0], abs=1e-6)
    shares = UncertaintyWeighted(lam=0.5).shares(scores)[0].tolist()
    assert shares == pytest.approx([1 / 3 + 1 / 3, 1 / 3 + 1 / 6, 1 / 3 - 1 / 2])
    assert WorstCase().shares(scores).tolist() == [[1, 0, 0], [pytest.approx(1 / 3)] * 3]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@tries(40)
@given(scores=SCORES, shift=st.floats(-3, 3))
def test_shares_sum_to_one_and_account_for_the_score_where_declared(aggregate, scores, shift):
    scores = torch.tensor(scores).double()
    shares, together = aggregate.shares(scores), aggregate.aggregate(scores)
    assert isinstance(aggregate, Aggregate)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(scores)).double())
    torch.testing.assert_close(aggregate.aggregate(scores + shift), together + shift)
    missing = together - (shares * scores).sum(1)
    if aggregate.exact:
        torch.testing.assert_close(missing, torch.zeros(len(scores)).double())
    else:  # KL to the even split, over lam
        assert (missing >= -1e-9).all()
        kl = (shares * (shares * scores.shape[1]).log()).sum(1)
        torch.testing.assert_close(missing, kl / aggregate.lam)
    assert aggregate.constant == (aggregate == Mean())


@tries(40)
@given(scores=SCORES)
def test_entropic_lies_between_the_worst_case_and_the_mean_and_reaches_both(scores):
    scores = torch.tensor(scores).double()
    between = Entropic(lam=0.7).aggregate(scores)
    assert (between >= WorstCase().aggregate(scores) - 1e-9).all()
    assert (between <= Mean().aggregate(scores) + 1e-9).all()
    torch.testing.assert_close(Entropic(lam=1e-6).aggregate(scores), Mean().aggregate(scores), atol=1e-3, rtol=0)
    torch.testing.assert_close(Entropic(lam=1e6).aggregate(scores), WorstCase().aggregate(scores), atol=1e-3, rtol=0)


def test_shares_of_the_entropic_aggregate_are_its_slopes():
    scores = torch.tensor([[1.0, 2, 6]], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(Entropic(lam=0.7).aggregate(scores).sum(), scores)
    torch.testing.assert_close(slopes, Entropic(lam=0.7).shares(scores).detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unchecked(lambda: UncertaintyWeighted(lam=1.0), lam=-1.0), "lam must be .* 0 or more, got -1.0"),
        (lambda: unchecked(lambda: UncertaintyWeighted(lam=1.0), lam="1"), "lam must be .* got '1'"),
        (lambda: unchecked(lambda: UncertaintyWeighted(lam=1.0), ddof=2), "ddof must be 0 or 1, got 2"),
        (lambda: unchecked(lambda: Entropic(lam=1.0), lam=0), r"lam must be .* above 0 \(0 would be Mean\(\)\), got 0"),
        (lambda: UncertaintyWeighted(lam=1.0, ddof=1).shares(torch.ones(2, 1)), "needs more than 1 members, got 1"),
    ],
)
def test_settings_that_make_no_aggregate_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def rollout_with(method, raw, *, scale=1.0, shift=0.0, sequences=None, seed=1):
    """A rollout whose members scored ``raw`` and whose score was scaled and shifted."""
    sequences = sequences or ragged_sequences()
    evidence = evidence_for_members(method, sequences.response_mask, seed)
    scores = method.aggregate.aggregate(raw)
    key = MemberScores(aggregate=method.aggregate, members=method.members)
    rollout = rollout_of(sequences, scale * scores + shift, evidence | {key: raw})
    return replace(rollout, raw_scores=scores, score_scale=scale)


def evidence_for_members(method, mask, seed):
    """Weights as of attention for every member, 0 on padding."""
    generator = torch.Generator().manual_seed(seed)
    asked = sorted((request for request in method.needs if isinstance(request, OfMember)), key=repr)
    return {request: torch.rand(mask.shape, generator=generator) * mask for request in asked}


RAW = torch.tensor([[2.0, -1, 0.5], [-3, -3.5, 1], [0, 0, 0], [0.5, 4, 2]])


@pytest.mark.parametrize("residual", ["last", "uniform"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_aggregated_score_is_conserved_whatever_was_done_to_it(aggregate, residual):
    method = EnsembleCredit(members=3, aggregate=aggregate, residual=residual)
    rollout = rollout_with(method, RAW, scale=0.5, shift=torch.tensor([0.3, -0.2, 1.0, 0.0]))
    token_scores = method(rollout)
    assert method.conserving
    torch.testing.assert_close(token_scores.sum(1), rollout.scores)
    assert not token_scores[~rollout.sequences.response_mask].any()


def test_what_an_entropic_aggregate_leaves_goes_where_it_is_said_to_go():
    aggregate = Entropic(lam=0.7)
    methods = {where: EnsembleCredit(members=3, aggregate=aggregate, residual=where) for where in RESIDUALS}
    rollout = rollout_with(methods["last"], RAW)
    mask, found = rollout.sequences.response_mask, {where: method(rollout) for where, method in methods.items()}
    left = rollout.scores - (aggregate.shares(RAW) * RAW).sum(1)
    torch.testing.assert_close(found["nowhere"].sum(1), rollout.scores - left)
    assert not methods["nowhere"].conserving
    assert EnsembleCredit(aggregate=WorstCase(), residual="nowhere").conserving
    last = torch.zeros(mask.shape)
    last[torch.arange(4), rollout.sequences.response_lengths - 1] = left
    torch.testing.assert_close(found["last"] - found["nowhere"], last, atol=1e-6, rtol=1e-5)
    even = torch.where(mask, (left / rollout.sequences.response_lengths)[:, None], 0)
    torch.testing.assert_close(found["uniform"] - found["nowhere"], even, atol=1e-6, rtol=1e-5)


RESIDUALS = ("last", "uniform", "nowhere")


def parts_of(method, rollout, raw):
    """What the inner method says of each member, told by hand as if it were alone."""
    parts = []
    for member in range(method.members):
        evidence = {r: rollout.evidence[OfMember(request=r, member=member)] for r in method.inner.needs}
        parts.append(method.inner(rollout_of(rollout.sequences, raw[:, member], evidence)))
    return torch.stack(parts)


def test_rows_do_not_depend_on_each_other_nor_on_padding():
    method = EnsembleCredit(members=3, aggregate=Entropic(lam=0.7), residual="uniform")
    rollout = rollout_with(method, RAW)
    together = method(rollout)
    for row in range(4):
        alone = rollout.sequences.select(torch.tensor([row]))
        shapes = {request: request.shape(*alone.response_ids.shape) for request in method.needs}
        evidence = {request: rollout.evidence[request][row : row + 1, : shapes[request][1]] for request in shapes}
        token_scores = method(rollout_of(alone, rollout.scores[row : row + 1], evidence))
        torch.testing.assert_close(token_scores[0], together[row, : token_scores.shape[1]])


@pytest.mark.parametrize("ddof", [0, 1])
def test_uncertainty_weighting_is_the_mean_less_lam_times_the_covariance_with_the_score(ddof):
    method = EnsembleCredit(members=3, aggregate=UncertaintyWeighted(lam=0.4, ddof=ddof))
    rollout = rollout_with(method, RAW)
    parts = parts_of(method, rollout, RAW)
    for row in range(4):
        for token in range(int(rollout.sequences.response_lengths[row])):
            both = torch.stack([parts[:, row, token], RAW[row]])
            wanted = parts[:, row, token].mean() - 0.4 * torch.cov(both, correction=ddof)[0, 1]
            assert float(method(rollout)[row, token]) == pytest.approx(float(wanted), abs=1e-5)


def test_the_worst_case_is_the_worst_members_credit():
    method = EnsembleCredit(members=3, aggregate=WorstCase())
    rollout = rollout_with(method, RAW)
    parts, worst = parts_of(method, rollout, RAW), RAW.argmin(1)
    for row in (0, 1, 3):
        torch.testing.assert_close(method(rollout)[row], parts[worst[row], row])


@pytest.mark.parametrize("inner", [RewardAttention(), PrefixDifference(), Sparse(), DecoderAttention()])
@pytest.mark.parametrize("aggregate", [*EXACT, Entropic(lam=2.0)])
def test_members_that_agree_are_one_reward_model(aggregate, inner):
    """Centred, scaled and clipped scores included."""
    method = EnsembleCredit(inner=inner, members=3, aggregate=aggregate)
    sequences = ragged_sequences()
    alone = {r: x.abs() for r, x in evidence_for(inner, sequences.response_mask).items()}
    raw = torch.tensor([1.5, -2, 0, 3])
    shift = torch.tensor([0.3, -0.2, 1.0, 0.0])
    single = replace(rollout_of(sequences, 0.5 * raw + shift, alone), raw_scores=raw, score_scale=0.5)
    evidence = {r: alone[r.request] if isinstance(r, OfMember) else alone.get(r) for r in method.needs}
    evidence |= {MemberScores(aggregate=aggregate, members=3): raw[:, None].expand(-1, 3)}
    torch.testing.assert_close(method(replace(single, evidence=evidence)), inner(single), atol=1e-5, rtol=1e-5)


def test_metrics_measure_disagreement():
    method = EnsembleCredit(inner=Sparse(), members=2)
    raw = torch.tensor([[1.0, 3.0]] * 4)
    figures = method.metrics(rollout_with(method, raw))
    tokens = 4 + 1 + 6 + 3
    assert figures == {"member_disagreement": pytest.approx(4 / tokens), "member_score_std": pytest.approx(1.0)}
    attention = EnsembleCredit(members=3)
    assert attention.metrics(rollout_with(attention, RAW))["credit_fallback"] == 0.0


def test_needs_causality_and_discount_are_those_of_the_inner_method():
    method = EnsembleCredit(inner=DecoderAttention(), members=3)
    assert method.needs == DecoderAttention().needs | {MemberScores(aggregate=Mean(), members=3)}
    both = EnsembleCredit(members=2).needs
    assert both == {
        MemberScores(aggregate=Mean(), members=2),
        *(OfMember(request=ROW, member=member) for member in (0, 1)),
    }
    assert EnsembleCredit(inner=PrefixDifference()).causal
    assert not EnsembleCredit(inner=PrefixDifference(), aggregate=WorstCase()).causal
    assert not hasattr(EnsembleCredit(), "gamma")
    discounted = EnsembleCredit(inner=PrefixDifference(gamma=0.9))
    check_gamma(discounted, 0.9)
    with pytest.raises(ValueError, match=r"exact at gamma 0.9, the config's gamma is 1.0"):
        check_gamma(discounted, 1.0)
    with pytest.raises(ValueError, match="places it before the last token"):
        check_gamma(EnsembleCredit(), 0.9)
    check_gamma(EnsembleCredit(inner=Sparse()), 0.9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, "members must be a whole number from 1 on, got 0"),
        ({"residual": "first"}, "residual must be one of last, uniform, nowhere, got 'first'"),
        ({"inner": "abc"}, "inner must be a redistributor and aggregate a rule"),
        ({"aggregate": "mean"}, "inner must be a redistributor and aggregate a rule"),
        ({"inner": RewardAttention}, r"such as RewardAttention\(\) and Mean\(\), got <class"),
        ({"aggregate": Mean}, r"such as RewardAttention\(\) and Mean\(\), got"),
    ],
)
def test_settings_that_make_no_credit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        unchecked(EnsembleCredit, **settings)


def test_a_method_that_learns_must_be_the_outer_one():
    @dataclass(frozen=True)
    class Learner(Sparse):
        def observe(self, rollout): ...
        def state(self): ...
        def load_state(self, state): ...

    with pytest.raises(ValueError, match=r"learns, and would see 2 members as one; .* features without HiddenState"):
        EnsembleCredit(inner=Learner())


def judge_of(seed, **settings):
    model = tiny_gpt2_classifier(seed=seed, **settings).double()
    return ClassifierReward(model, tiny_tokenizer(), score="single_logit")


JUDGES = [judge_of(seed) for seed in (0, 1, 2)]
SEQUENCES = ragged_sequences()


def test_an_ensemble_scores_and_shows_what_its_members_do():
    ensemble = RewardEnsemble(JUDGES, WorstCase())
    of_last = [OfMember(request=request, member=2) for request in (ROW, PrefixScores())]
    needs = frozenset({*of_last, MemberScores(aggregate=WorstCase(), members=3)})
    scored = ensemble.score(SEQUENCES, needs)
    alone = [judge.score(SEQUENCES, frozenset({ROW, PrefixScores()})) for judge in JUDGES]
    stacked = torch.stack([one.scores for one in alone], dim=1)
    assert torch.equal(scored.evidence[MemberScores(aggregate=WorstCase(), members=3)], stacked)
    assert torch.equal(scored.scores, stacked.min(1).values)
    for request in of_last:
        torch.testing.assert_close(scored.evidence[request], alone[2].evidence[request.request])
    assert scored.evidence.keys() == needs


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (EnsembleCredit(members=2), r"the ensemble has 3 members and Mean\(\)"),
        (EnsembleCredit(inner=Sparse(), members=3, aggregate=WorstCase()), r"the ensemble has 3 members and Mean\(\)"),
        (EnsembleCredit(inner=RewardAttention(layer=7), members=3), "has attention layers 0 to 1, not 7"),
        (RewardAttention(), "wrap the method in EnsembleCredit"),
        (PrefixDifference(), "wrap the method in EnsembleCredit"),
        (PotentialProjection(inner=EnsembleCredit(members=3)), "by OfMember, or give the method features without Hidd"),
    ],
)
def test_a_method_that_does_not_fit_the_ensemble_is_refused_at_construction(method, message):
    with pytest.raises(ValueError, match=message):
        check_needs(method, TablePolicy(), RewardEnsemble(JUDGES, Mean()))


def test_a_method_that_learns_from_an_ensembles_credit_needs_no_states():
    method = PotentialProjection(inner=EnsembleCredit(members=3), features=(Position(),))
    check_needs(method, TablePolicy(), RewardEnsemble(JUDGES, Mean()))


def test_a_single_reward_model_is_no_ensemble():
    with pytest.raises(ValueError, match="cannot give"):
        check_needs(EnsembleCredit(inner=Sparse()), TablePolicy(), JUDGES[0])


def test_members_share_a_vocabulary_and_what_they_cannot_score_is_refused():
    other = ClassifierReward(tiny_gpt2_classifier(), tiny_tokenizer(words=["other"]), score="single_logit")
    with pytest.raises(ValueError, match=r"members \[1\] read other tokens in the same ids than member 0"):
        RewardEnsemble([JUDGES[0], other], Mean())
    with pytest.raises(ValueError, match="members are empty"):
        RewardEnsemble([], Mean())
    ensemble = RewardEnsemble([JUDGES[0], judge_of(3, context=8)], Mean())
    assert ensemble.vocab_size == 32
    with pytest.raises(ValueError, match=r"4 prompt \+ 6 response tokens exceed the context 8"):
        ensemble.validate([[2, 3, 4, 5]], 6)


def test_a_plain_callable_can_be_a_member():
    rule = TokenReward(lambda prompts, responses: [float(len(row)) for row in responses])
    ensemble = RewardEnsemble([rule, JUDGES[0]], Mean())
    assert ensemble.vocabulary == JUDGES[0].vocabulary
    assert not hasattr(RewardEnsemble([rule], Mean()), "vocabulary")
    wanted = (SEQUENCES.response_lengths + JUDGES[0].score(SEQUENCES, frozenset()).scores) / 2
    torch.testing.assert_close(ensemble.score(SEQUENCES, frozenset()).scores, wanted)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters on one base, each with a head and random weights of its own."""
    root = tmp_path_factory.mktemp("adapters")
    base = save_tiny(str(root / "base"))
    folders = []
    for seed in (1, 2):
        adapted = adapted_reward_model(
            ModelSource(name_or_path=base), LoraSettings(rank=2), seed=seed, checkpointing=False
        )
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            for parameter in (p for p in adapted.adapters.parameters() if p.requires_grad):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        adapted.save(str(root / f"adapter{seed}"))
        folders.append(str(root / f"adapter{seed}"))
    return folders


def test_members_may_be_adapters_of_one_base(adapters):
    ensemble = load_reward_ensemble(adapters, aggregate=Mean(), score="single_logit")
    needs = [OfMember(request=ROW, member=member) for member in (0, 1)]
    key = MemberScores(aggregate=Mean(), members=2)
    for _ in range(2):
        scored = ensemble.score(SEQUENCES, frozenset({*needs, key}))
        for member, folder in enumerate(adapters):
            alone = load_reward_model(folder, score="single_logit").score(SEQUENCES, frozenset({ROW}))
            torch.testing.assert_close(scored.evidence[key][:, member], alone.scores)
            torch.testing.assert_close(scored.evidence[needs[member]], alone.evidence[ROW])
    assert (scored.evidence[key][:, 0] - scored.evidence[key][:, 1]).abs().min() > 1e-3
    assert ensemble.members[0].reward is ensemble.members[1].reward
    assert not any(parameter.requires_grad for parameter in ensemble.members[0].adapters.parameters())


def test_a_base_may_be_spelled_in_two_ways(adapters, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(adapters[1], copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    base = Path(config["base_model_name_or_path"])
    config["base_model_name_or_path"] = str(base.parent / "adapter1" / ".." / base.name)
    (copy / "adapter_config.json").write_text(json.dumps(config))
    scored = [
        load_reward_ensemble(folders, aggregate=Mean(), score="single_logit").score(SEQUENCES, frozenset()).scores
        for folders in (adapters, [adapters[0], str(copy)])
    ]
    assert torch.equal(*scored)


def test_adapters_that_are_no_ensemble_are_refused(adapters, tmp_path):
    whole = save_tiny(str(tmp_path / "whole"), head="classifier")
    with pytest.raises(ValueError, match="adapters are empty"):
        load_reward_ensemble([], aggregate=Mean(), score="single_logit")
    with pytest.raises(ValueError, match="is not an adapter; load whole reward models one by one"):
        load_reward_ensemble([adapters[0], whole], aggregate=Mean(), score="single_logit")
    base = save_tiny(str(tmp_path / "base"))
    adapted = adapted_reward_model(ModelSource(name_or_path=base), LoraSettings(rank=2), seed=1, checkpointing=False)
    adapted.save(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"adapter is an adapter on .* with 1 label, .* load such reward models"):
        load_reward_ensemble([adapters[0], str(tmp_path / "adapter")], aggregate=Mean(), score="single_logit")


@pytest.mark.parametrize("aggregate", [UncertaintyWeighted(lam=0.1), Entropic(lam=1.0)])
@pytest.mark.parametrize("kind", ["models", "adapters"])
def test_two_steps_of_ppo_with_an_ensemble(tmp_path, adapters, kind, aggregate):
    policy = load_policy(save_tiny(str(tmp_path), "llama"))
    members = {"models": lambda: RewardEnsemble([judge_of(0), judge_of(1)], aggregate)}
    members["adapters"] = lambda: load_reward_ensemble(adapters, aggregate=aggregate, score="single_logit")
    config = small_run(score=ScoreConfig(centring="running_mean", scaling="running_std", clip=2.0))
    learner = PPOTrainer(policy, members[kind](), EnsembleCredit(members=2, aggregate=aggregate), config)
    for _ in range(2):
        figures = learner.step([[2, 3], [4], [5, 6, 7], [8]])
        assert figures["conservation_error"] < 1e-5
        assert figures["member_disagreement"] > 0
        assert figures["member_score_std"] > 0
