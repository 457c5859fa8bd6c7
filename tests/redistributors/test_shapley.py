"""Shapley values against shapiq, captum, brute force, and the axioms that define them."""

import itertools
import warnings
from dataclasses import replace
from math import factorial

import numpy as np
import pytest
import torch
from fakes import ragged_sequences, rollout_of, sequences_of, unchecked

from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.loading import load_reward_model
from models.tiny import save_tiny, tiny_gpt2_classifier, tiny_tokenizer
from redistributors import Shapley
from redistributors.shapley import RANKS, averaged, spans_of
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.scorers.callables import CallableProbe

SEQUENCES = ragged_sequences(lengths=(4, 1, 9, 6))
SAMPLED = {"players": 4, "exact_up_to": 0}


@pytest.fixture(scope="module")
def judge():
    model = tiny_gpt2_classifier(vocab_size=33, std=0.3).double()
    return ClassifierReward(model, tiny_tokenizer(vocab_size=33, padding="own"), score="single_logit")


def values(method, reward, sequences=SEQUENCES):
    return reward.score(sequences, method.needs).evidence[method.request]


def scores_by_hand(judge, rows):
    with torch.no_grad():
        return torch.stack([judge.model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])


def altered(judge, row, absent):
    """The game of one response over its tokens: which stand, as a tuple of bools, to its score."""
    prompt, response = SEQUENCES.prompts()[row], SEQUENCES.responses()[row]
    null = judge.tokenizer.pad_token_id

    def play(stands):
        if absent == "delete":
            ids = prompt + [token for token, there in zip(response, stands) if there]
        else:
            ids = prompt + [token if there else null for token, there in zip(response, stands)]
        return float(scores_by_hand(judge, [ids])[0])

    return play, len(response)


def gap(judge, row, absent):
    """r(x, y) − r(x, nothing)."""
    play, length = altered(judge, row, absent)
    return play([True] * length) - play([False] * length)


def game_reward(play):
    """A callable that scores a response of distinct tokens by the set of them that is left."""
    return TokenReward(lambda prompts, responses: [play(frozenset(row)) for row in responses])


def game_values(method, play, tokens):
    return values(method, game_reward(play), sequences_of([[9]], [list(tokens)]))[0]


def random_game(tokens, seed=0):
    table = {}
    generator = np.random.default_rng(seed)
    for size in range(len(tokens) + 1):
        for members in itertools.combinations(tokens, size):
            table[frozenset(members)] = float(generator.normal())
    return table.__getitem__


# -- oracles


@pytest.mark.parametrize("absent", ["delete", "replace"])
def test_spans_have_the_values_that_shapiq_computes(judge, absent):
    import shapiq

    method = Shapley(players=5, absent=absent)
    found, spans = values(method, judge), spans_of(SEQUENCES.response_mask, 5)
    for row in (0, 2, 3):
        play, length = altered(judge, row, absent)
        own = spans[row, :length].numpy()

        def game(coalitions, play=play, own=own):
            return np.array([play(coalition[own]) for coalition in coalitions])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = shapiq.ExactComputer(game, n_players=int(own.max()) + 1)("SV")
        for span in range(int(own.max()) + 1):
            of_span = found[row, :length][own == span]
            assert float(of_span.sum()) == pytest.approx(wanted[(span,)], abs=1e-9)
            assert (of_span == of_span[0]).all()


def test_replaced_spans_have_the_values_that_captum_computes(judge):
    from captum.attr import ShapleyValues as Captum

    found, spans = values(Shapley(players=4, absent="replace"), judge), spans_of(SEQUENCES.response_mask, 4)
    for row, (prompt, response) in enumerate(zip(SEQUENCES.prompts(), SEQUENCES.responses())):
        oracle = Captum(lambda ids, prompt=prompt: scores_by_hand(judge, [prompt + part for part in ids.tolist()]))
        own = spans[row, : len(response)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = oracle.attribute(
                torch.tensor([response]), baselines=judge.tokenizer.pad_token_id, feature_mask=own[None]
            )[0]
        for t in range(len(response)):  # captum gives each token its span's whole value
            share = float(wanted[t]) / int((own == own[t]).sum())
            assert float(found[row, t]) == pytest.approx(share, abs=1e-6)


def owen(play, spans):
    """Owen 1977: coalitions of other spans and of the token's own span, each weighted as in Shapley's formula."""

    def subsets(members):
        for size in range(len(members) + 1):
            weight = factorial(size) * factorial(len(members) - size) / factorial(len(members) + 1)
            yield from ((weight, set(chosen)) for chosen in itertools.combinations(members, size))

    found = {}
    for span in spans:
        others = [other for other in spans if other != span]
        for token in span:
            found[token] = sum(
                outer * inner * (play(frozenset(before | {token})) - play(frozenset(before)))
                for outer, chosen in subsets(others)
                for inner, mates in subsets([mate for mate in span if mate != token])
                for before in [mates.union(*chosen)]
            )
    return found


def test_all_orders_that_keep_spans_together_average_to_the_owen_values():
    response, spans = [1, 2, 3, 4, 5], torch.tensor([0, 0, 0, 1, 1])
    play = random_game(response)
    generator = torch.Generator().manual_seed(0)
    drawn = sorted({tuple(RANKS["owen"](spans, generator).tolist()) for _ in range(500)})
    assert len(drawn) == 2 * factorial(2) * factorial(3)
    probe = CallableProbe(scores_of=game_reward(play).scores, sequences=sequences_of([[9]], [response]))
    wanted = owen(play, ((1, 2, 3), (4, 5)))
    found = averaged(probe, torch.tensor([drawn]), "delete")[0]
    assert found.tolist() == pytest.approx([wanted[token] for token in response], abs=1e-5)
    sampled = game_values(Shapley(players=2, split="owen", permutations=600), play, response)
    assert sampled.tolist() == pytest.approx([wanted[token] for token in response], abs=0.15)
    plain = game_values(Shapley(), play, response)
    assert float((plain - found).abs().max()) > 0.2  # it is another value


def test_drawn_orders_of_tokens_keep_spans_together():
    spans = torch.tensor([0, 0, 0, 1, 1])
    generator = torch.Generator().manual_seed(0)
    for ranks in [RANKS["owen"](spans, generator).tolist() for _ in range(100)]:
        assert sorted(ranks) == list(range(5))
        assert sorted(ranks[:3]) in ([0, 1, 2], [2, 3, 4])
    assert {tuple(RANKS["equal"](spans, generator).tolist()) for _ in range(50)} == {(0, 0, 0, 1, 1), (1, 1, 1, 0, 0)}


# -- axioms


def test_an_additive_game_gives_each_token_its_own_worth():
    worth = {1: 2.0, 2: -3.0, 3: 0.0, 4: 0.5}
    for method in (Shapley(), Shapley(**SAMPLED), Shapley(players=2, split="owen")):
        found = game_values(method, lambda left: 7 + sum(worth[token] for token in left), (1, 2, 3, 4))
        assert found.tolist() == pytest.approx([2, -3, 0, 0.5], abs=1e-6)
    halves = game_values(Shapley(players=2), lambda left: sum(worth[token] for token in left), (1, 2, 3, 4))
    assert halves.tolist() == pytest.approx([-0.5, -0.5, 0.25, 0.25], abs=1e-6)


def test_a_dummy_gets_nothing_and_equals_get_the_same():
    """Worth 1 once both 1 and 2 are there; 3 never matters, in any order."""
    both = {1, 2}
    found = game_values(Shapley(), lambda left: float(both <= left), (1, 3, 2))
    assert found.tolist() == pytest.approx([0.5, 0, 0.5], abs=1e-6)
    assert game_values(Shapley(**SAMPLED), lambda left: float(both <= left), (1, 3, 2))[1] == 0


def test_the_value_of_a_sum_of_games_is_the_sum_of_values():
    tokens = (1, 2, 3, 4, 5)
    one, other = random_game(tokens, 1), random_game(tokens, 2)
    for method in (Shapley(), Shapley(**SAMPLED), Shapley(players=2, split="owen")):
        whole = game_values(method, lambda left: one(left) - 3 * other(left), tokens)
        parts = game_values(method, one, tokens) - 3 * game_values(method, other, tokens)
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("split", ["equal", "owen"])
@pytest.mark.parametrize("absent", ["delete", "replace"])
@pytest.mark.parametrize("exact_up_to", [0, 3, 10])
def test_values_sum_to_what_the_response_adds_at_any_budget(judge, split, absent, exact_up_to):
    method = Shapley(players=4, split=split, absent=absent, exact_up_to=exact_up_to, permutations=2)
    found = values(method, judge)
    wanted = [gap(judge, row, absent) for row in range(4)]
    assert found.sum(1).tolist() == pytest.approx(wanted, abs=1e-9)
    assert not found[~SEQUENCES.response_mask].any()


# -- sampling


def test_drawn_orders_come_close_to_the_exact_values(judge):
    exact = values(Shapley(players=5), judge)
    errors = [
        float((values(Shapley(players=5, exact_up_to=0, permutations=n), judge) - exact).abs().max()) for n in (2, 2000)
    ]
    assert errors[0] > 0.3
    assert errors[1] < 0.1


def test_an_order_and_its_reverse_are_exact_where_players_meet_in_pairs_only():
    """A token comes in after each other one in one order of a pair: with no effect of three, one pair is enough."""
    tokens = (1, 2, 3, 4, 5, 6)
    generator = np.random.default_rng(0)
    effects = {pair: generator.normal() for pair in itertools.combinations(tokens, 2)}

    def play(left):
        return sum(effect for pair, effect in effects.items() if set(pair) <= left)

    one_pair = game_values(Shapley(exact_up_to=0, permutations=2), play, tokens)
    torch.testing.assert_close(one_pair, game_values(Shapley(), play, tokens), atol=1e-5, rtol=1e-5)


def test_a_row_draws_the_same_orders_alone_and_in_any_batch(judge):
    for method in (Shapley(**SAMPLED), Shapley(players=3, split="owen"), Shapley(players=12, exact_up_to=4)):
        together = values(method, judge)
        for row in range(4):
            alone = SEQUENCES.select(torch.tensor([row]))
            found = values(method, judge, alone)[0]
            torch.testing.assert_close(found, together[row, : len(found)], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"players": 4}, 16 + 2 + 16 + 16),
        ({"players": 6}, 16 + 2 + 64 + 64),
        ({"players": 4, "exact_up_to": 0, "permutations": 2}, 8 + 2 + 8 + 8),
        ({"players": 4, "split": "owen", "permutations": 2}, (16 + 1) + (2 + 1) + (18 + 1) + (12 + 1)),
    ],
)
def test_the_cost_is_the_one_that_is_stated(judge, settings, passes):
    """Responses of 4, 1, 9 and 6 tokens; where the coalitions of some are enumerated and orders of others drawn, each
    is scored once more, as it is."""
    probe = judge.probe(SEQUENCES)
    Shapley(**settings).request.measure(probe)
    assert (probe.cost.forwards, probe.cost.backwards) == (passes, 0)


# -- spans, scores, refusals


def test_spans_by_hand():
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 4])[:, None]
    assert spans_of(mask, 3).tolist() == [
        [0, 0, 0, 1, 1, 2, 2],
        [0, 1, 2, -1, -1, -1, -1],
        [0, -1, -1, -1, -1, -1, -1],
        [0, 0, 1, 2, -1, -1, -1],
    ]
    assert spans_of(mask, 5)[1].tolist() == [0, 1, 2, -1, -1, -1, -1]


def test_the_rest_of_the_score_goes_where_it_is_stated():
    sequences = sequences_of([[1]], [[2, 3]])
    for residual, wanted in (("last", [2.0, 5.0]), ("uniform", [4.0, 3.0]), ("nowhere", [2.0, 1.0])):
        method = Shapley(residual=residual)
        rollout = rollout_of(sequences, [7.0], {method.request: torch.tensor([[4.0, 2.0]])})
        assert method(replace(rollout, score_scale=0.5)).tolist() == [wanted]
        assert method.metrics(replace(rollout, score_scale=0.5)) == {"credit_residual": 4.0}
        assert method.conserving == (residual != "nowhere")


def test_a_callable_can_be_asked_to_delete_but_not_to_replace():
    reward = TokenReward(lambda prompts, responses: [float(len(row)) for row in responses])
    assert reward.provides(Shapley().request)
    assert "not replace" in reward.why_not(Shapley(absent="replace").request)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("players", 0, "players is a number of spans, at least 1, got 0"),
        ("players", 2.0, "players is a number of spans"),
        ("exact_up_to", 17, "exact_up_to is a number of spans from 0 to 16"),
        ("exact_up_to", -1, "exact_up_to is a number of spans from 0 to 16"),
        ("permutations", 3, "permutations is an even number.*got 3"),
        ("permutations", 0, "permutations is an even number"),
        ("split", "fair", "split must be one of equal, owen, got 'fair'"),
        ("absent", ["delete"], r"absent must be one of delete, replace, got \['delete'\]"),
        ("residual", "first", "residual must be one of last, uniform, nowhere"),
    ],
)
def test_impossible_settings_are_refused(setting, value, message):
    with pytest.raises(ValueError, match=f"^Shapley: {message}"):
        unchecked(Shapley, **{setting: value})


@pytest.mark.parametrize("method", [Shapley(), Shapley(players=3, split="owen", absent="replace", permutations=2)])
def test_two_steps_on_real_architectures(method, tmp_path):
    policy = load_policy(save_tiny(tmp_path / "policy", padding="own", seed=1))
    reward = load_reward_model(
        save_tiny(tmp_path / "reward", head="classifier", padding="own", seed=2), score="single_logit"
    )
    config = PPOConfig(rollout_batch_size=4, minibatch_size=4, min_length=2, max_length=(3, 9), epochs=1)
    learner = PPOTrainer(policy, reward, method, config)
    for _ in range(2):
        metrics = learner.step([[2, 3], [4], [5, 6, 7], [8]])
        assert metrics["conservation_error"] < 1e-5
        assert np.isfinite(list(metrics.values())).all()
