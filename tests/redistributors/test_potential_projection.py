"""A learned potential: the regression against closed forms, the shaping identities, and that it never sees ahead."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import TablePolicy, evidence_for, ragged_sequences, rollout_of, sequences_of, unchecked
from resumable import CONFIG as RESUMABLE
from resumable import PROMPTS, share_of_threes
from safetensors.torch import load, save

from models import load_policy, load_reward_model
from models.tiny import save_tiny
from redistributors import PotentialProjection, PrefixDifference, RewardAttention, Sparse, Uniform
from redistributors.parts.ridge import RecursiveRidge
from redistributors.parts.state_features import HiddenState, Position, PriorLogprobs, StateFeatures, StateValue
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.checks import check_gamma
from rlhf_core.returns import generalized_advantages
from rlhf_core.run.checkpoint import load_state

SCORES = (2.0, -3.0, 0.5, 1.0)
CHEAP = (Position(), StateValue(), PriorLogprobs())


def rollout_for(method, seed, scores=SCORES, sequences=None):
    """Every figure drawn by ``seed``."""
    sequences = sequences or ragged_sequences()
    mask, generator = sequences.response_mask, torch.Generator().manual_seed(seed)
    rollout = rollout_of(sequences, scores, evidence_for(method, mask, seed))
    noise = [torch.randn(mask.shape, generator=generator) * mask for _ in range(3)]
    return replace(rollout, values=noise[0], logprobs=noise[1], ref_logprobs=noise[2])


def learned(seeds=(1, 2, 3), **settings):
    method = PotentialProjection(**settings)
    for seed in seeds:
        method.observe(rollout_for(method, seed))
    return method


# -- the regression


def closed_form(parts, ridge, decay):
    """Least squares on the rows, weighted by age, with one more row a feature that pulls its weight to 0 as strongly as
    ``ridge`` times the feature's own sum of squares."""
    weights = [decay ** (len(parts) - 1 - age) for age in range(len(parts))]
    x = np.concatenate([np.sqrt(w) * part[0] for w, part in zip(weights, parts)])
    y = np.concatenate([np.sqrt(w) * part[1] for w, part in zip(weights, parts)])
    pull = np.diag(np.sqrt(ridge) * np.linalg.norm(x, axis=0))
    return np.linalg.lstsq(np.concatenate([x, pull]), np.concatenate([y, np.zeros(len(pull))]), rcond=None)[0]


@pytest.mark.parametrize("decay", [1.0, 0.7])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 10.0])
def test_the_recursive_fit_is_the_closed_form_on_all_that_was_seen(ridge, decay):
    generator = np.random.default_rng(0)
    scales = np.array([1, 100, 1e-3, 10])
    parts = [(generator.normal(size=(n, 4)) * scales, generator.normal(size=n)) for n in (7, 1, 12)]
    fit = RecursiveRidge(size=4, ridge=ridge, decay=decay)
    for x, y in parts:
        fit.observe(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(fit.weights().numpy(), closed_form(parts, ridge, decay), rtol=1e-8)
    assert fit.observations == pytest.approx(7 * decay**2 + decay + 12)


def test_a_feature_that_was_never_anything_but_0_weighs_nothing():
    fit = RecursiveRidge(size=2, ridge=1e-12, decay=1.0)
    assert fit.weights().tolist() == [0, 0]
    fit.observe(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([3.0, 6.0]))
    assert fit.weights().tolist() == pytest.approx([3, 0])


def by_hand_states(rollout, request):
    """Constant, t, t², projected hidden state: row by row, of every state but the first."""
    found = []
    for row, length in enumerate(rollout.sequences.response_lengths.tolist()):
        for t in range(1, length):
            found.append([1.0, t, t**2, *rollout.evidence[request][row, t].double().tolist()])
    return np.array(found)


def test_the_potential_is_fitted_to_the_credit_before_each_state():
    features = HiddenState(request=StateFeatures(dims=3))
    method = learned((1, 2), features=(Position(), features), ridge=1e-3, decay=0.9)
    parts = []
    for seed in (1, 2):
        rollout = rollout_for(method, seed)
        credit = RewardAttention()(rollout)
        lengths = rollout.sequences.response_lengths.tolist()
        so_far = [float(credit[row, :t].double().sum()) for row, n in enumerate(lengths) for t in range(1, n)]
        parts.append((by_hand_states(rollout, features.request), np.array(so_far)))
    weights = closed_form(parts, 1e-3, 0.9)
    rollout = rollout_for(method, 5)
    potential = method.potential(rollout)
    later = rollout.sequences.response_mask.clone()
    later[:, 0] = False
    wanted = by_hand_states(rollout, features.request) @ weights
    np.testing.assert_allclose(potential[later].numpy(), wanted, rtol=1e-6)
    assert not potential[~later].any()
    target = RewardAttention()(rollout).double()
    target = (target.cumsum(1) - target)[later].numpy()
    figures = method.metrics(rollout)
    assert figures["potential_r2"] == pytest.approx(1 - np.mean((target - wanted) ** 2) / np.var(target))
    assert figures["potential_observations"] == pytest.approx(10 * (1 + 0.9))


def test_features_by_hand():
    rollout = rollout_of(sequences_of([[1]], [[2, 3, 4]]), [1.0])
    tokens = {"logprobs": [-1.0, -2.0, -4.0], "ref_logprobs": [-3.0, -5.0, -7.0], "values": [0.5, 0.25, 0.125]}
    rollout = replace(rollout, **{name: torch.tensor([x]) for name, x in tokens.items()})
    assert Position()(rollout).tolist() == [[[0, 0], [1, 1], [2, 4]]]
    assert PriorLogprobs()(rollout).tolist() == [[[0, 0], [-1, -3], [-3, -8]]]
    assert StateValue()(rollout).tolist() == [[[0.5], [0.25], [0.125]]]


# -- shaping


def test_before_anything_was_seen_it_is_sparse():
    method = PotentialProjection()
    rollout = rollout_for(method, 1)
    assert torch.equal(method(rollout), Sparse()(rollout))
    assert method.metrics(rollout) == {"potential_observations": 0.0}


@pytest.mark.parametrize("features", [(Position(), HiddenState()), CHEAP], ids=["hidden", "cheap"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (1.0, 0.0), (0.9, 1.0), (0.9, 0.5)])
def test_advantages_are_those_of_sparse_with_the_potential_added_to_the_critic(features, gamma, lam):
    method = learned(gamma=gamma, features=features)
    rollout = rollout_for(method, 7)
    token_scores, arguments = method(rollout), {"mask": rollout.sequences.response_mask, "gamma": gamma, "lam": lam}
    assert float((token_scores - Sparse()(rollout)).abs().max()) > 0.1
    assert float(method.potential(rollout)[:, 0].abs().max()) == 0
    shaped = generalized_advantages(token_scores, rollout.values, **arguments)
    shifted = rollout.values + method.potential(rollout).float()
    sparse = generalized_advantages(Sparse()(rollout), shifted, **arguments)
    torch.testing.assert_close(shaped, sparse, atol=1e-5, rtol=1e-5)
    discounts = gamma ** torch.arange(token_scores.shape[1])
    totals = [(x * discounts).sum(1) for x in (token_scores, Sparse()(rollout))]
    torch.testing.assert_close(*totals, atol=1e-5, rtol=1e-5)  # the return of a whole response


def test_nothing_later_reaches_an_earlier_token():
    """Another ending: other tokens, other score, other evidence, values and log-probabilities from the third token on,
    but for what the state before it tells."""
    features = (*CHEAP, HiddenState())
    method = learned(features=features)
    one, other = (
        rollout_for(method, seed, [score], sequences_of([[1]], [response]))
        for seed, score, response in ((5, 2.0, [2, 3, 4, 5]), (6, -1.0, [2, 3, 1, 1]))
    )
    for request in HiddenState().needs:
        other.evidence[request][:, :3] = one.evidence[request][:, :3]
    other.values[:, :3] = one.values[:, :3]
    for name in ("logprobs", "ref_logprobs"):
        getattr(other, name)[:, :2] = getattr(one, name)[:, :2]
    assert torch.equal(method(one)[:, :2], method(other)[:, :2])
    assert not torch.equal(method(one)[:, 2:], method(other)[:, 2:])


def test_a_scale_of_the_scores_changes_neither_fit_nor_shape():
    plain, scaled = PotentialProjection(), PotentialProjection()
    rollouts = [rollout_for(plain, seed) for seed in (1, 2)]
    doubled = [replace(rollout, scores=2 * rollout.scores, score_scale=2.0) for rollout in rollouts]
    plain.observe(rollouts[0])
    scaled.observe(doubled[0])
    torch.testing.assert_close(plain.potential(rollouts[1]), scaled.potential(rollouts[1]))
    torch.testing.assert_close(2 * plain(rollouts[1]), scaled(doubled[1]))


@pytest.mark.parametrize("inner", [RewardAttention(), PrefixDifference(prompt_share="nowhere")])
def test_it_conserves_once_it_has_learned_whatever_the_inner_method(inner):
    method = learned(inner=inner)
    rollout = rollout_for(method, 9)
    assert method.conserving
    torch.testing.assert_close(method(rollout).sum(1), rollout.scores, atol=1e-5, rtol=1e-5)
    assert not method(rollout)[~rollout.sequences.response_mask].any()
    assert not replace(method, gamma=0.5).conserving


# -- learning


def test_what_was_learned_survives_a_file_and_no_copy_by_settings_has_it():
    method = learned()
    rollout, text = rollout_for(method, 9), repr(method)
    again = PotentialProjection()
    again.load_state(load(save(dict(method.state()))))
    assert torch.equal(again(rollout), method(rollout))
    assert all(torch.equal(again.state()[name], x) for name, x in method.state().items())
    assert torch.equal(copy.deepcopy(method)(rollout), method(rollout))
    fresh = replace(method)
    assert (fresh, hash(fresh), repr(fresh)) == (method, hash(method), text)
    assert torch.equal(fresh(rollout), Sparse()(rollout))
    method.observe(rollout)
    assert not torch.equal(again(rollout), method(rollout))
    assert repr(method) == text
    with pytest.raises(ValueError, match="the saved fit has 35 features a state, this one 3; load it into"):
        PotentialProjection(features=(Position(),)).load_state(method.state())


def table_trainer():
    method = PotentialProjection(inner=Uniform(), features=CHEAP)
    return PPOTrainer(TablePolicy(), TokenReward(share_of_threes), method, RESUMABLE)


def test_a_rollout_is_shaped_by_earlier_steps_only():
    trainer, past = table_trainer(), []
    for _ in range(3):
        fresh = replace(trainer.redistributor)
        for rollout in past:
            fresh.observe(rollout)
        rollout = trainer.collect(PROMPTS)
        token_scores = trainer.redistribute(rollout)
        assert torch.equal(token_scores, fresh(rollout))
        trainer.update(trainer.estimate_returns(rollout, token_scores))
        trainer.conclude(rollout)
        past.append(rollout)
        assert not torch.equal(trainer.redistribute(rollout), token_scores)


def test_a_run_taken_up_again_goes_on_with_what_was_learned(tmp_path):
    table_trainer().fit(PROMPTS, 4, out=tmp_path / "whole")
    table_trainer().fit(PROMPTS, 2, out=tmp_path / "parts")
    table_trainer().fit(PROMPTS, 4, out=tmp_path / "parts", resume=True)
    curves = [
        [json.loads(line).get("potential_r2") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert curves[0] == curves[1]
    assert curves[0][0] is None
    assert len({*curves[0]}) == 4
    states = [load_state(tmp_path / name / "checkpoint-4").tensors for name in ("whole", "parts")]
    assert float(states[0]["redistributor.weight"]) > 0
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    reward = save_tiny(root / "reward", "llama", head="classifier", seed=2)
    return save_tiny(root / "policy", "llama", seed=1), reward


def real_trainer(tiny, method, rows=16):
    config = PPOConfig(rollout_batch_size=rows, minibatch_size=rows, max_length=(8, 12), epochs=1)
    return PPOTrainer(load_policy(tiny[0]), load_reward_model(tiny[1], score="single_logit"), method, config)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_potential_that_is_linear_in_the_state_is_recovered(tiny, seed):
    """The score of a beginning is linear in the hidden state, of 32 numbers; 40 of a projection hold them all."""
    features = (HiddenState(request=StateFeatures(dims=40, seed=seed)),)
    r2 = []
    for ridge in (1.0, 1e-2, 1e-10):
        method = PotentialProjection(inner=PrefixDifference(), features=features, ridge=ridge)
        trainer = real_trainer(tiny, method)
        figures = [trainer.step(["w2 w3", "w4"] * 8) for _ in range(2)]
        r2.append(figures[1]["potential_r2"])
    assert r2[0] < r2[1] < r2[2]
    assert r2[2] > 1 - 1e-5


def test_the_potential_foretells_more_from_step_to_step(tiny):
    """A projection that loses some of what tells the score, fitted to few states a step."""
    features = (Position(), HiddenState(request=StateFeatures(dims=24)))
    method = PotentialProjection(inner=PrefixDifference(), features=features)
    trainer = real_trainer(tiny, method, rows=4)
    curve = [trainer.step(["w2 w3", "w4", "w5 w6 w7", "w9"]).get("potential_r2") for _ in range(10)]
    assert curve[0] is None
    assert np.mean(curve[-4:]) > np.mean(curve[1:3]) + 0.1
    assert np.mean(curve[-4:]) > 0.2


@pytest.mark.parametrize("seed", [0, 1])
def test_projected_states_do_not_know_their_token_and_a_seed_fixes_them(tiny, seed):
    reward = load_reward_model(tiny[1], score="single_logit")
    request = StateFeatures(dims=5, seed=seed)
    assert request.shape(3, 7) == (3, 7, 5)
    s = sequences_of([[2, 3]] * 2, [[4, 5, 6], [4, 7, 8]])
    found = reward.score(s, frozenset({request})).evidence[request]
    torch.testing.assert_close(found[0, :2], found[1, :2])
    assert float((found[0, 2] - found[1, 2]).abs().max()) > 1e-2
    again = load_reward_model(tiny[1], score="single_logit").score(s, frozenset({request})).evidence[request]
    assert torch.equal(found, again)
    other = StateFeatures(dims=5, seed=seed + 1)
    assert not torch.allclose(reward.score(s, frozenset({other})).evidence[other], found)


class Counting(Uniform):
    """Learns, after a fashion."""

    def observe(self, rollout): ...
    def state(self): ...
    def load_state(self, state): ...


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inner": Counting()}, "inner must not change during a run, but Counting.* learns"),
        ({"inner": PrefixDifference(gamma=0.9)}, "its sums are undiscounted; give inner gamma=1, got pref"),
        ({"inner": RewardAttention}, "inner must be a redistributor, such as RewardAttention\\(\\), got <class"),
        ({"features": [Position()]}, "features must be a tuple of state features, got"),
        ({"features": ()}, "features must be a tuple of state features, got"),
        ({"features": (Position,)}, "features must be a tuple of state features, got"),
        ({"gamma": 1.5}, "gamma is a discount in \\[0, 1\\], got 1.5"),
        ({"ridge": 0.0}, "ridge is the strength of the penalty, a number above 0, got 0.0"),
        ({"decay": 0.0}, "decay is what an older step counts for each newer one, in \\(0, 1\\], got 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        unchecked(PotentialProjection, **settings)


def test_dimensions_that_are_none_are_refused_and_a_discount_must_be_the_configs():
    with pytest.raises(ValueError, match="dims must be the number of dimensions of a state, 1 or more, got 0"):
        StateFeatures(dims=0)
    with pytest.raises(ValueError, match=r"is exact at gamma 1.0, the config's gamma is 0.9"):
        check_gamma(PotentialProjection(), 0.9)
    check_gamma(PotentialProjection(gamma=0.9), 0.9)
