"""Enumeration against hand computation, and the checks against methods that lie."""

import io
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from benchmarks import theory
from benchmarks.theory import Settings
from benchmarks.worlds.declared_properties import (
    EARLIER,
    length_push,
    make_worlds,
    reward_to_go,
    score_shares,
    shaping_error,
)
from benchmarks.worlds.declared_properties import (
    shaping as says_shaping,
)
from benchmarks.worlds.general_claims import exact_threshold, fixed_point, found_threshold, identities
from benchmarks.worlds.tabular import probabilities, random_world, spread_within, token_logprobs
from benchmarks.worlds.tabular_evidence import Unanswerable, attention, evidence_for
from benchmarks.worlds.tabular_probe import TabularProbe
from benchmarks.worlds.theory_report import Sizes, checked, method_table, run
from redistributors import (
    REDISTRIBUTORS,
    LogRatio,
    MonteCarlo,
    PotentialProjection,
    PrefixDifference,
    RewardAttention,
    Segment,
    Sparse,
    Uniform,
)
from redistributors.parts.attention_requests import AttentionRow, AttentionRowMean
from rlhf_core.evidence import EvidenceRequest, FullKL, PrefixScores, SentenceEnds
from rlhf_core.probe import Variants

SMALL = Sizes(worlds=1, words=2, longest=4)


def world_of(**changes):
    return random_world(**{"words": 2, "shortest": 0, "longest": 4, "seed": 0, **changes})


def test_a_world_holds_every_response_once_and_nothing_else():
    world = world_of(words=1, longest=3)
    assert world.responses == ((0,), (1, 0), (1, 1, 0), (1, 1, 1))
    assert world_of(words=2, shortest=2, longest=2).responses == ((1, 1), (1, 2), (2, 1), (2, 2))
    assert len(world_of(longest=3).responses) == 1 + 2 + 4 * 3
    for shortest in (0, 1, 3):
        world = world_of(shortest=shortest)
        assert float(probabilities(world, world.logits).sum()) == pytest.approx(1)
        assert bool((probabilities(world, world.logits) > 0).all())


def test_scores_are_centred_before_they_are_scaled():
    world = replace(world_of(words=1, longest=1), raw_scores=torch.tensor([5.0, 1.0]), centre=1.0, scale=0.5)
    assert world.scores.tolist() == [2, 0]
    assert world.rewarded(-1.0).scores.tolist() == [-1, -1]


def test_states_and_nodes_number_the_text_before_and_with_a_token():
    world = world_of(words=1, longest=3)
    assert world.states.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 2], [0, 1, 2]]
    assert len({tuple(row[: t + 1]) for row in world.responses for t in range(len(row))}) == int(world.nodes.max()) + 1


def test_the_true_gradient_is_the_slope_of_the_expected_score():
    world, step = world_of(longest=3), 1e-6
    gradient = world.true_gradient(world.scores)
    for state, token in ((0, 0), (2, 1), (1, 2)):
        moved = [world.logits.clone() for _ in range(2)]
        for logits, sign in zip(moved, (1, -1), strict=True):
            logits[state, token] += sign * step
        up, down = (float((probabilities(world, logits) * world.scores).sum()) for logits in moved)
        assert float(gradient[state, token]) == pytest.approx((up - down) / (2 * step), abs=1e-8)


def test_a_baseline_of_the_state_changes_no_expected_gradient():
    world = world_of()
    baseline = torch.randn(len(world.logits), dtype=torch.float64)[world.states]
    assert float(world.policy_gradient(baseline).abs().max()) < 1e-12


def test_state_means_by_hand():
    """Two responses of one token and more: the first token's mean is over all, the second's over those that go on."""
    world = world_of(words=1, longest=2)
    stop = float(token_logprobs(world, world.logits)[0, 0].exp())
    again = float(token_logprobs(world, world.logits)[1, 1].exp())
    means = world.state_means(torch.tensor([[1.0, 0], [2, 10], [4, 20]], dtype=torch.float64))
    first = stop * 1 + (1 - stop) * (again * 2 + (1 - again) * 4)
    assert means[:, 0].tolist() == pytest.approx([first] * 3)
    assert means[1:, 1].tolist() == pytest.approx([10 * again + 20 * (1 - again)] * 2)
    assert float(means[0, 1]) == 0


def test_spread_within_by_hand():
    groups, values = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([1.0, 4, -1, 0, 0.5])
    assert spread_within(groups, values) == 3


def test_attention_reads_no_later_token_and_depends_on_every_earlier_one():
    world, tap = world_of(), AttentionRow(source="reward")
    maps = attention(world, tap)
    here, there = world.responses.index((1, 2, 1, 1)), world.responses.index((1, 2, 2, 0))
    torch.testing.assert_close(maps.sum(-1)[:, :, 0], torch.ones(len(maps), 2, dtype=torch.float64))
    assert torch.equal(maps[here, :, :3], maps[there, :, :3])
    assert not torch.equal(maps[here, :, 3], maps[there, :, 3])
    assert not maps.triu(1).any()
    other = world.responses.index((2, 2, 1, 1))
    assert not torch.isclose(maps[here, :, 4, :4], maps[other, :, 4, :4]).any()


def test_taps_reduce_the_rows_a_model_would_hand_them():
    world = world_of()
    row = world.responses.index((1, 2, 0))
    last, mean = AttentionRow(source="reward"), AttentionRowMean(source="policy")
    weights = attention(world, last)[row].mean(0)
    found = evidence_for(world, RewardAttention())[last][row]
    assert found.tolist() == pytest.approx([*weights[3, 1:4].tolist(), 0])
    weights = attention(world, mean)[row].mean(0)
    found = evidence_for(world, REDISTRIBUTORS["abc-d"]())[mean][row]
    assert found.tolist() == pytest.approx([float(weights[1:3, 1].mean()), float(weights[2, 2]), 0, 0])


def test_full_kl_averages_the_log_ratio_over_the_next_token():
    world = world_of(words=1, longest=1)

    @dataclass(frozen=True)
    class AsksKL(Uniform):
        needs = frozenset({FullKL()})

    ours, theirs = (logits[0].softmax(0) for logits in (world.logits, world.ref_logits))
    expected = sum(p * (p / q).log() for p, q in zip(ours, theirs, strict=True))
    found = evidence_for(world, AsksKL())[FullKL()]
    assert found[:, 0].tolist() == pytest.approx([float(expected)] * 2)


def test_the_probe_scores_what_is_left_of_a_response():
    world = world_of(longest=3)
    row, keep = world.responses.index((1, 2, 0)), torch.ones(len(world.responses), 2, 3, dtype=torch.bool)
    keep[row, 1, 1] = False
    for absent, altered in (("delete", (1, 0)), ("replace", (1, 3, 0))):
        found = TabularProbe(world=world).scores(Variants(keep=keep, absent=absent))
        assert found[row].tolist() == [world.table((1, 2, 0)), world.table(altered)]
        torch.testing.assert_close(found[:, 0], world.raw_scores)


def test_prefix_scores_are_those_of_the_beginnings():
    world = world_of(longest=3)
    row = world.responses.index((1, 0))
    assert TabularProbe(world=world).prefix_scores()[row].tolist() == [world.table(()), world.table((1,)), 0]
    tapped = evidence_for(world, REDISTRIBUTORS["prefix-difference"]())[PrefixScores()]
    torch.testing.assert_close(tapped, TabularProbe(world=world).prefix_scores())


def test_the_first_word_ends_a_sentence():
    world = world_of(longest=3)
    found = evidence_for(world, REDISTRIBUTORS["information"]())[SentenceEnds()]
    assert found[world.responses.index((2, 1, 0))].tolist() == [0, 1, 0]
    assert found[world.responses.index((1, 0))].tolist() == [1, 0, 0]


def test_values_of_continuations_are_expectations_over_the_rest_of_the_response():
    """Before the last token of the longest response: each possible token's score by its probability."""
    world = world_of(longest=2)
    (request,) = MonteCarlo(span=1).needs
    found = evidence_for(world, MonteCarlo(span=1))[request]
    ends = [world.responses.index((1, token)) for token in range(3)]
    chances = torch.stack([probabilities(world, world.logits)[row] for row in ends])
    wanted = (chances * world.raw_scores[ends]).sum() / chances.sum()
    assert found[ends, 1, 0].tolist() == pytest.approx([float(wanted)] * 3)
    assert not found[:, 0].any()


def test_integrated_gradients_of_the_table_are_its_shapley_values():
    """Gauss-Legendre with three nodes is exact for the polynomials of a response of four tokens."""
    world = world_of()
    row, probe, null = (1, 2, 2, 0), TabularProbe(world=world), 3
    nodes, weights = np.polynomial.legendre.leggauss(3)
    points = [probe.embedding_gradients((node + 1) / 2, "null").contributions for node in nodes]
    integrated = sum(weight / 2 * point for weight, point in zip(weights, points, strict=True))

    def score(present):
        return world.table(tuple(token if t in present else null for t, token in enumerate(row)))

    shapley = np.zeros(4)
    for order in permutations(range(4)):
        for place, token in enumerate(order):
            shapley[token] += (score(order[: place + 1]) - score(order[:place])) / 24
    assert integrated[world.responses.index(row)].tolist() == pytest.approx(shapley.tolist())


def test_the_path_ends_at_the_response_and_begins_at_its_baseline():
    world = world_of(longest=3)
    probe, row = TabularProbe(world=world), world.responses.index((1, 2, 0))
    torch.testing.assert_close(probe.embedding_gradients(1.0, "null").scores, world.raw_scores)
    assert float(probe.embedding_gradients(0.0, "null").scores[row]) == world.table((3, 3, 3))
    zero = probe.embedding_gradients(0.5, "zero")
    assert float(zero.scores[row]) == pytest.approx(world.table((1, 2, 0)) / 8)
    assert zero.contributions[row].tolist() == pytest.approx([world.table((1, 2, 0)) / 4] * 3)


def test_the_counterexample_turns_at_ten_over_eighty_one():
    assert exact_threshold() == Fraction(10, 81)
    assert found_threshold() == pytest.approx(10 / 81, abs=1e-7)
    assert fixed_point(0.12) == pytest.approx(1.0, abs=1e-3)
    assert fixed_point(0.13) == pytest.approx(0.9, abs=1e-3)


def test_every_claim_holds_and_its_counterpart_is_seen_not_to():
    found = identities(make_worlds(0, words=2, longest=4))
    assert all(one.holds for one in found), [one for one in found if not one.holds]
    assert sum(one.expected in ("not 0", "< 1", "> 0", "< 0") for one in found) >= 5


def test_uniforms_length_push_by_hand():
    """One word, then stop or go on to three tokens: stopping at two earns 1/2 from there on, going on 2/3."""
    world = world_of(words=1, shortest=1, longest=3)
    stop = float(token_logprobs(world, world.logits)[world.responses.index((1, 0)), 1].exp())
    expected = 2 * (stop * (1 - stop)) ** 2 * (2 / 3 - 1 / 2)
    assert length_push(world.rewarded(1.0), Uniform()) == pytest.approx(expected)
    assert length_push(world.rewarded(-1.0), Uniform()) == pytest.approx(-expected)
    assert length_push(world.rewarded(1.0), Sparse()) == pytest.approx(0, abs=1e-15)


def test_the_share_of_the_score_left_under_uniform_credit():
    world = world_of(shortest=3, longest=3)
    assert score_shares(world, Uniform()).tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert score_shares(world, Uniform(beta=0.5)).tolist() == pytest.approx([1, 5 / 6, 4 / 6])
    assert score_shares(world, Sparse()).tolist() == pytest.approx([1, 1, 1])


def test_shaping_error_knows_a_potential_from_a_look_ahead():
    world = world_of()
    mask, sparse = world.sequences.response_mask, Sparse()(world.rollout({}))
    drawn = torch.randn(len(world.logits), dtype=torch.float64)[world.states].masked_fill(~mask, 0)
    terms = 0.8 * torch.nn.functional.pad(drawn[:, 1:], (0, 1)) - drawn
    assert shaping_error(world, sparse + terms.masked_fill(~mask, 0), gamma=0.8) < 1e-12
    assert shaping_error(world, sparse + terms.masked_fill(~mask, 0), gamma=1.0) > 0.01
    assert shaping_error(world, Uniform()(world.rollout({})), gamma=1.0) > 0.1


TABLES = ("table", "claims", "estimator_bias", "estimator_noise")


@pytest.mark.slow
def test_every_registered_method_keeps_what_it_declares(tmp_path):
    text = io.StringIO()
    assert run(REDISTRIBUTORS, SMALL, tmp_path, Console(file=text, width=200)), text.getvalue()
    assert "FAIL" not in text.getvalue()
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{name}.{kind}" for name in TABLES for kind in ("md", "csv")),
        *("theory.png", "theory.pdf"),
    }
    table = (tmp_path / "table.csv").read_text()
    assert all(f"\n{name}," in table for name in REDISTRIBUTORS)
    assert sum(Image.open(tmp_path / "theory.png").convert("L").histogram()[:128]) > 1000


@dataclass(frozen=True, kw_only=True)
class Liar:
    """Uniform or sparse credit that says of itself what it is told to."""

    method: object = Uniform()
    share: float = 1.0
    causal: bool = False
    conserving: bool = False
    shaping: bool = False
    needs: frozenset = frozenset()

    def __call__(self, rollout):
        return self.share * self.method(rollout)


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({"share": 0.999, "conserving": True}, "FAIL: conserving"),
        ({"causal": True}, "FAIL: causal"),
        ({"shaping": True}, "FAIL: shaping, gradient, length"),
        ({"method": Sparse(), "share": 0.999, "conserving": True, "causal": True}, "FAIL: conserving"),
        ({"share": 0.5}, "pass"),
    ],
)
def test_a_declaration_that_does_not_hold_fails_and_what_is_not_declared_may(lies, said):
    assert checked("liar", lambda: Liar(**lies), SMALL).verdict == said


@pytest.mark.parametrize(
    ("method", "shaping"),
    [
        *((Sparse(), True), (Uniform(), False), (RewardAttention(), False), (PrefixDifference(gamma=0.9), True)),
        *((MonteCarlo(span=1), True), (MonteCarlo(span=2, positions=1), True)),
        *((LogRatio(), False), (LogRatio(mode="shape"), True), (PotentialProjection(), True)),
        *((Segment(inner=PrefixDifference(), place="end"), True), (Segment(inner=PrefixDifference()), False)),
        (Segment(inner=LogRatio(), place="end"), False),
    ],
)
def test_who_says_nothing_of_shaping_claims_none_and_what_is_claimed_holds(method, shaping):
    assert says_shaping(method) == shaping
    assert checked("method", lambda: method, SMALL).verdict == "pass"


def test_evidence_that_a_table_cannot_give_is_said_and_fails_nothing():
    @dataclass(frozen=True, kw_only=True)
    class Dreams(EvidenceRequest):
        source: str = "policy"

    dreamer = replace(Liar(), needs=frozenset({Dreams()}))
    with pytest.raises(Unanswerable, match="Dreams"):
        evidence_for(world_of(), dreamer)
    found = checked("dreamer", lambda: dreamer, SMALL)
    assert (found.verdict, found.broken) == ("not checked", [])
    table = method_table([found, checked("sparse", Sparse, SMALL)])
    assert table.rows[0][:2] == ("dreamer", "not checked")
    assert "dreamer was not checked: a table has no answer to Dreams." in table.notes


def test_a_method_that_learns_has_seen_earlier_rollouts_only():
    @dataclass
    class Learner:
        causal, conserving, needs = True, True, frozenset()

        def __post_init__(self):
            self.seen, self.asked = [], []

        def observe(self, rollout):
            assert not self.asked
            self.seen.append(rollout.sequences.responses())

        def state(self):
            return {}

        def load_state(self, state):
            pass

        def __call__(self, rollout):
            self.asked.append(len(self.seen))
            return Sparse()(rollout)

    from benchmarks.worlds.declared_properties import token_scores

    learner, world = Learner(), world_of()
    token_scores(world, learner)
    assert learner.asked == [EARLIER]
    assert all(tuple(row) in world.responses for rows in learner.seen for row in rows)
    assert learner.seen[0] != learner.seen[1]


def test_reward_to_go_is_discounted_where_a_method_is():
    world = world_of(words=1, longest=2)
    credit = torch.tensor([[1.0, 0], [1, 2], [1, 4]], dtype=torch.float64)
    assert reward_to_go(world, credit, 0.5)[:, 0].tolist() == [1, 2, 3]


def test_the_command_ends_with_status_one_where_something_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.runs.arms.REDISTRIBUTORS", {"liar": Liar, "sparse": Sparse})
    monkeypatch.setattr("benchmarks.reporting.figures.save", lambda *_: [])  # seconds, and looked at elsewhere
    words = ["--worlds", "1", "--longest", "3", "--out", str(tmp_path), "--methods"]
    with pytest.raises(SystemExit) as ended:
        theory.main([*words, "sparse,liar(causal=true)"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "liar-causalTrue declares what does not hold (causal)" in printed
    assert "sparse declares" not in printed
    with pytest.raises(SystemExit):
        theory.main([*words, "sparse"])
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ""}, "at least one redistributor"),
        ({"worlds": 0}, "worlds must be 1 or more"),
        ({"longest": 13}, "make more than 4096 responses"),
    ],
)
def test_impossible_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Settings(**changes)


def test_a_method_that_nobody_knows_ends_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        theory.main(["--methods", "magic", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "no redistributor 'magic'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
