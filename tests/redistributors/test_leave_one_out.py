"""Leave-one-out credit: hand tables with a callable, captum's feature ablation, and truncation by hand."""

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from fakes import TablePolicy, ragged_sequences, rollout_of, sequences_of, unchecked
from judges import by_hand, judge_of

from redistributors import Gradient, LeaveOneOut
from redistributors.leave_one_out import Occlusion
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.checks import check_needs

SEQUENCES = ragged_sequences()


@pytest.fixture(params=["gpt2", "llama"])
def judge(request):
    return judge_of(request.param)


def scored(prompts, responses):
    """The sum of the tokens, and 10 more where a 3 follows a 2: worth little apart, much together."""
    pairs = [10 * sum(a == 2 and b == 3 for a, b in pairwise(row)) for row in responses]
    return [sum(row) + extra for row, extra in zip(responses, pairs)]


def occluded(sequences, reward=None, **settings):
    request = Occlusion(**settings)
    return (reward or TokenReward(scored)).score(sequences, frozenset({request})).evidence[request]


# 2 and 3 side by side (scores 25), held apart by a 5 (10), and neither (4)
TABLE = sequences_of([[1], [1], [1]], [[2, 3, 1, 4, 5], [2, 5, 3], [4]])


def test_single_tokens_by_hand():
    """Without the 5 in the second row, 2 and 3 would meet: it is worth 5 - 10."""
    assert occluded(TABLE).tolist() == [[12, 13, 1, 4, 5], [2, -5, 3, 0, 0], [4, 0, 0, 0, 0]]


def test_spans_by_hand():
    """Of two: (2 3), (1 4) and (5); (2 5), (3); (4) alone. Of three: (2 3 1), (4 5); and so on."""
    assert occluded(TABLE, span=2).tolist() == [[7.5, 7.5, 2.5, 2.5, 5], [3.5, 3.5, 3, 0, 0], [4, 0, 0, 0, 0]]
    of_three = [[16 / 3] * 3 + [4.5, 4.5], [10 / 3] * 3 + [0, 0], [4, 0, 0, 0, 0]]
    torch.testing.assert_close(occluded(TABLE, span=3), torch.tensor(of_three))
    torch.testing.assert_close(occluded(TABLE, span=9)[0], torch.full((5,), 5.0))


@pytest.mark.parametrize("span", [1, 2, 4])
def test_deletion_is_the_score_of_the_shortened_row(judge, span):
    found = Occlusion(span=span).measure(judge.probe(SEQUENCES))
    for row, (prompt, response) in enumerate(zip(SEQUENCES.prompts(), SEQUENCES.responses())):
        whole = by_hand(judge, prompt + response)
        for start in range(0, len(response), span):
            without = response[:start] + response[start + span :]
            n = len(response) - len(without)
            effect = whole - by_hand(judge, prompt + without)
            assert found[row, start : start + n].tolist() == pytest.approx([effect / n] * n, abs=1e-6)
        assert not found[row, len(response) :].any()


@pytest.mark.parametrize("span", [1, 3])
def test_replacement_is_captums_feature_ablation(judge, span):
    from captum.attr import FeatureAblation

    found = Occlusion(absent="replace", span=span).measure(judge.probe(SEQUENCES))
    for row, (prompt, response) in enumerate(zip(SEQUENCES.prompts(), SEQUENCES.responses())):
        before = torch.tensor([prompt])

        @torch.no_grad()
        def score(ids, before=before):
            states = judge.model.base_model(input_ids=torch.cat([before, ids], 1)).last_hidden_state
            return judge.model.score(states[:, -1])[:, 0]

        groups = torch.arange(len(response))[None] // span
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = FeatureAblation(score).attribute(
                torch.tensor([response]), baselines=judge.tokenizer.pad_token_id, feature_mask=groups
            )[0]
        sizes = groups[0].bincount()[groups[0]]
        torch.testing.assert_close(found[row, : len(response)], wanted.double() / sizes, atol=1e-5, rtol=1e-5)


def test_on_a_sum_of_embeddings_the_first_order_is_all_there_is():
    """Where the score is linear in each token's embedding, replacement and gradient agree."""
    judge = judge_of("gpt2")
    judge.model.transformer.h = torch.nn.ModuleList()
    judge.model.transformer.ln_f = torch.nn.Identity()
    probe = judge.probe(SEQUENCES)
    torch.testing.assert_close(Occlusion(absent="replace").measure(probe), Gradient().request.measure(probe))


@pytest.mark.parametrize("residual", ["last", "uniform", "nowhere"])
def test_the_residual_goes_where_stated(residual):
    """The row 2 3 1 4 5 scores 25 and its effects add up to 35: 10 too much, counted twice."""
    method = LeaveOneOut(residual=residual)
    sequences = sequences_of([[1]], [[2, 3, 1, 4, 5]])
    rollout = rollout_of(sequences, [25.0], {method.request: occluded(sequences)})
    wanted = {"last": [12, 13, 1, 4, -5], "uniform": [10, 11, -1, 2, 3], "nowhere": [12, 13, 1, 4, 5]}[residual]
    assert method(rollout)[0].tolist() == pytest.approx(wanted)
    assert method.metrics(rollout) == {"credit_residual": pytest.approx(10)}
    assert method.conserving == (residual != "nowhere")
    halved = replace(rollout, scores=rollout.scores / 2, score_scale=0.5)
    torch.testing.assert_close(method(halved), method(rollout) / 2)


@pytest.mark.parametrize("absent", ["delete", "replace"])
def test_a_row_is_the_same_alone_and_in_any_batch(judge, absent):
    together = Occlusion(absent=absent, span=2).measure(judge.probe(SEQUENCES))
    for row, response in enumerate(SEQUENCES.responses()):
        alone = Occlusion(absent=absent, span=2).measure(judge.probe(SEQUENCES.select(torch.tensor([row]))))
        torch.testing.assert_close(alone[0], together[row, : len(response)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("span", "spans"), [(1, [4, 1, 6, 3]), (2, [2, 1, 3, 2]), (6, [1, 1, 1, 1])])
def test_it_costs_a_forward_pass_a_span_and_one_more(judge, span, spans):
    for absent in ("delete", "replace"):
        probe = judge.probe(SEQUENCES)
        Occlusion(absent=absent, span=span).measure(probe)
        assert (probe.cost.forwards, probe.cost.backwards) == (sum(spans) + 4, 0)


@pytest.mark.parametrize("reward", [judge_of(), TokenReward(scored)], ids=["classifier", "callable"])
def test_two_steps_of_training_through_it(reward):
    config = PPOConfig(rollout_batch_size=4, minibatch_size=4, min_length=1, max_length=(2, 5))
    learner = PPOTrainer(TablePolicy(), reward, LeaveOneOut(span=2), config)
    for _ in range(2):
        figures = learner.step([[1], [2, 3], [4], [5]])
        assert figures["conservation_error"] < 1e-5
        assert figures["credit_residual"] >= 0


def test_what_cannot_be_is_refused():
    for name, values in {
        "absent": ("zero", None, ["delete"]),
        "residual": ("first", None),
        "span": (0, -1, 1.0, True, None),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^LeaveOneOut: {name} .*, got "):
                unchecked(LeaveOneOut, **{name: value})
    with pytest.raises(ValueError, match=r"^leave-one-out.*but not replace"):
        check_needs(LeaveOneOut(absent="replace"), TablePolicy(), TokenReward(scored))
