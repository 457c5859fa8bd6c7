"""Curves, areas, oracle and signs against tables made by hand, and the script on tiny models."""

import itertools
import json
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from enumerable import ODD, Eighths, expected
from fakes import ragged_sequences, rollout_of, sequences_of
from PIL import Image
from prepared import prepared
from table_task import PPO, table_loaded

from benchmarks import credit_faithfulness
from benchmarks.credit import faithfulness_report as report
from benchmarks.credit import value_oracle
from benchmarks.credit.faithfulness import (
    Curves,
    aopc,
    counts,
    curves,
    effective_tokens,
    opposed_share,
    ranked,
    spearman_brown,
    tie_breaks,
)
from benchmarks.credit.faithfulness_study import methods_of, study
from benchmarks.credit.frozen_credit import cost_of, evidence_apart, warm
from benchmarks.credit.settings import FaithfulnessSettings
from benchmarks.credit.value_oracle import value_differences
from benchmarks.runs.ppo_settings import PAPER_SETTINGS, with_settings
from models import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.retokenised import RetokenisedReward
from models.texts.retokenising import Telling
from models.tiny import save_tiny, tiny_gpt2_classifier, tiny_tokenizer
from redistributors import LeaveOneOut, LogRatio, MonteCarlo, PrefixDifference, RewardAttention
from redistributors.leave_one_out import Occlusion
from rlhf_core import TokenReward
from rlhf_core.config import PPOConfig
from rlhf_core.probe import Experiment, Variants, generators
from rlhf_core.rewards import ScoreMoments
from rlhf_core.scorers.callables import as_reward_model
from rlhf_core.types import Limits, Sequences

HERE = __name__
ADDED = TokenReward(lambda _, responses: [float(sum(row)) for row in responses])
ENDS = TokenReward(lambda _, responses: [10.0 * row[0] + row[-1] if row else 0.0 for row in responses])
ROWS = sequences_of([[1], [1, 2]], [[5, 1, 3], [2, 4]])
NO_TIES = torch.zeros(1, 2, 3)


def both(reward, credit, ties=NO_TIES, points=3, sequences=ROWS):
    return curves(reward.probe(sequences), torch.tensor(credit), ties, points=points, absent="delete")


def test_tokens_rank_by_credit_then_by_tie_break_and_padding_comes_last():
    credit = torch.tensor([[0.0, -2.0, 0.0, 9.0], [1.0, 3.0, 7.0, 7.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    ties = torch.tensor([[0.9, 0.5, 0.1, 0.3], [0.5, 0.6, 0.2, 0.1]])
    assert ranked(credit, mask, ties).tolist() == [[2, 3, 1, 0], [1, 0, 3, 2]]


def test_a_share_of_the_tokens_is_rounded_to_the_nearest():
    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])
    assert counts(mask, 4).tolist() == [[0, 1, 3, 4, 5], [0, 1, 1, 2, 2], [0, 0, 1, 1, 1]]


def test_curves_of_an_additive_score_by_hand():
    found = both(ADDED, [[5.0, 1.0, 3.0], [2.0, 4.0, 99.0]])
    assert found.deletion.tolist() == [[9, 4, 1, 0], [6, 2, 2, 0]]
    assert found.insertion.tolist() == [[0, 5, 8, 9], [0, 4, 4, 6]]
    assert [area.tolist() for area in aopc(found)] == [[5.5, 3.5], [5.5, 3.5]]
    wrong = both(ADDED, [[-5.0, -1.0, -3.0], [-2.0, -4.0, 99.0]])
    assert wrong.deletion.tolist() == [[9, 8, 5, 0], [6, 4, 4, 0]]
    assert [area.tolist() for area in aopc(wrong)] == [[3.5, 2.5], [3.5, 2.5]]


def test_areas_start_from_the_whole_and_from_nothing():
    fall, rise = aopc(Curves(deletion=torch.tensor([[4.0, 1.0, 2.0]]), insertion=torch.tensor([[2.0, 1.0, 4.0]])))
    assert (fall.item(), rise.item()) == (pytest.approx(5 / 3), pytest.approx(1 / 3))


def test_a_score_that_is_no_sum_by_hand():
    found = both(ENDS, [[1.0, 3.0, 2.0], [0.0, 1.0, 0.0]])
    assert found.deletion[0].tolist() == [53, 53, 55, 0]
    assert found.insertion[0].tolist() == [0, 11, 13, 53]
    one_out = Occlusion(absent="delete").measure(ENDS.probe(ROWS))
    assert one_out.tolist() == [[53 - 13, 0, 53 - 51], [24 - 44, 24 - 22, 0]]


def test_equal_credit_is_the_mean_over_all_orders():
    orders = torch.tensor(list(itertools.permutations([0.1, 0.5, 0.9])))[:, None].expand(-1, 2, -1)
    found = both(ADDED, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], ties=orders)
    assert found.deletion[0].tolist() == pytest.approx([9, 6, 3, 0])
    assert found.insertion[0].tolist() == pytest.approx([0, 3, 6, 9])


def test_insertion_keeps_what_deletion_from_the_other_end_leaves():
    sequences = ragged_sequences((6, 3, 6), (2, 1, 1))
    credit = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    ties = torch.zeros(1, 3, 6)
    forth, back = (both(ENDS, (sign * credit).tolist(), ties, sequences=sequences) for sign in (1, -1))
    assert torch.equal(forth.insertion, back.deletion.flip(1))
    assert not torch.equal(forth.insertion, forth.deletion)


def test_orders_that_do_not_differ_cost_nothing():
    credit = torch.tensor([[5.0, 1.0, 3.0], [2.0, 4.0, 0.0]])
    spent = []
    for draws in (1, 8):
        probe = ADDED.probe(ROWS)
        curves(probe, credit, torch.rand(draws, 2, 3), points=3, absent="delete")
        spent.append(probe.cost.forwards)
    assert spent == [6 + 4, 6 + 4]  # whole, nothing, and two a side of three tokens; whole, nothing, each of two


def test_tie_breaks_of_a_row_do_not_depend_on_its_padding():
    short = ragged_sequences((3,), (2,))
    wide = Sequences.concatenate([short, ragged_sequences((6,), (2,))])
    for_short, for_wide = (tie_breaks(generators("t", some), some.response_mask, 4) for some in (short, wide))
    assert torch.equal(for_short[:, 0], for_wide[:, 0, :3])
    assert len(for_short.unique()) == 12


def test_replaced_tokens_are_scored_where_they_stood():
    model, tokenizer = tiny_gpt2_classifier(vocab_size=33).double(), tiny_tokenizer(vocab_size=33, padding="own")
    reward = ClassifierReward(model, tokenizer, score="single_logit")
    credit = torch.tensor([[1.0, 3.0, 2.0], [1.0, 0.0, 0.0]])
    found = curves(reward.probe(ROWS), credit, NO_TIES, points=3, absent="replace")
    keep = torch.tensor([[[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]], [[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]])
    wanted = reward.probe(ROWS).scores(Variants(keep=keep.bool(), absent="replace"))
    torch.testing.assert_close(found.deletion, wanted, rtol=0, atol=1e-9)


def test_concentration_and_signs_by_hand():
    credit = torch.tensor([[2.0, -1.0, 1.0, 0.0], [3.0, 3.0, -3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert effective_tokens(credit).tolist() == pytest.approx([16 / 6, 3, float("nan")], nan_ok=True)
    signs = torch.tensor([[0.5, 1.0, -2.0, 1.0], [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert opposed_share(credit, signs).tolist() == pytest.approx([2 / 4, 1 / 3, float("nan")], nan_ok=True)
    assert spearman_brown(0.5) == pytest.approx(2 / 3)


LIMITS = Limits(min_lengths=torch.tensor([2, 0]), max_lengths=torch.tensor([3, 2]))
DRAWN = sequences_of([[1, 2], [1]], [[2, 1, 0], [1, 2]], LIMITS)


def oracle(sequences, continuations, tokens=4096):
    rollout = rollout_of(sequences, ODD.score(sequences, frozenset()).scores)
    config = PPOConfig(temperature=1.0, sampling_tokens=tokens)
    return value_differences(Eighths(), ODD, rollout, config, continuations=continuations)


def test_value_differences_are_those_of_all_continuations(monkeypatch):
    """Every combination of eight equally spaced numbers at three positions draws every continuation as often as the
    policy would."""
    grid = [[(i + 0.5) / 8 for i in some] for some in itertools.product(range(8), repeat=3)]
    every = torch.tensor(grid, dtype=torch.float64).expand(2, -1, -1)
    monkeypatch.setattr(value_oracle, "_uniforms", lambda sequences, draws: every)
    found = oracle(DRAWN, len(grid), tokens=10**6)
    for row, (prompt, response) in enumerate(zip(DRAWN.prompts(), DRAWN.responses())):
        low, high = int(LIMITS.min_lengths[row]), int(LIMITS.max_lengths[row])
        values = [expected(Eighths(), prompt, response[:t], low, high) for t in range(len(response))]
        values.append(float(ODD.fn([prompt], [response])[0]))
        wanted = [after - before for before, after in itertools.pairwise(values)]
        assert found.credit[row, : len(response)].tolist() == pytest.approx(wanted, abs=1e-5)
        assert not found.credit[row, len(response) :].any()


def test_the_oracle_does_not_depend_on_batch_or_memory_and_its_halves_share_nothing():
    found = oracle(DRAWN, 8)
    assert torch.equal(found.credit, oracle(DRAWN, 8, tokens=12).credit)
    alone = oracle(DRAWN.select(torch.tensor([1])), 8)
    assert torch.equal(found.credit[1, :2], alone.credit[0])
    assert torch.equal(found.halves.mean(0), found.credit)
    assert not torch.equal(found.halves[0], found.halves[1])
    assert found.tokens >= 5 * 8
    with pytest.raises(ValueError, match="even"):
        oracle(DRAWN, 3)


@dataclass(frozen=True, kw_only=True)
class True3:
    """Knows that the score is the share of tokens that are 3."""

    flip: int = 1
    needs: ClassVar = frozenset()
    causal: ClassVar = False
    conserving: ClassVar = False

    def __call__(self, rollout):
        sequences = rollout.sequences
        return self.flip * ((sequences.response_ids == 3) & sequences.response_mask).float()


@dataclass(frozen=True, kw_only=True)
class LastGone(Experiment):
    """What each response loses with its last token; a number a response."""

    source: str = "reward"
    uses: ClassVar = frozenset({"delete"})

    def shape(self, batch, response):
        return (batch,)

    def measure(self, probe):
        mask = probe.sequences.response_mask
        fewer = torch.nn.functional.pad(mask[:, 1:], (0, 1))
        scores = probe.scores(Variants(keep=torch.stack([mask, fewer], dim=1), absent="delete"))
        return scores[:, 0] - scores[:, 1]


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Counts what it has observed."""

    seen: list = field(default_factory=list)
    needs: ClassVar = frozenset({LastGone()})
    causal: ClassVar = False
    conserving: ClassVar = False

    def __call__(self, rollout):
        return rollout.evidence[LastGone()][:, None] * rollout.sequences.response_mask * len(self.seen)

    def observe(self, rollout):
        self.seen.append(set(rollout.evidence) == self.needs)

    def state(self):
        return {}

    def load_state(self, state):
        pass


@dataclass(frozen=True, kw_only=True)
class Watcher(Learner):
    """Notes the prompts it has seen."""

    prompts: list = field(default_factory=list)
    needs: ClassVar = frozenset()

    def observe(self, rollout):
        self.prompts.append(rollout.sequences.prompts())


SMALL = {"responses": 3, "points": 4, "absent": ("delete",), "continuations": 4, "warm": 2, "orders": 4}


def threes():
    """The table's task, scored by the share of tokens that are 3, which no tokens have none of."""
    return replace(
        table_loaded(), reward=lambda _, texts: [text.split().count("3") / max(len(text.split()), 1) for text in texts]
    )


def small_study(methods, **changes):
    config = with_settings(PAPER_SETTINGS, PPO)
    return study(threes(), config, FaithfulnessSettings(redistributors=methods, **{**SMALL, **changes}))


def test_a_study_of_methods_whose_faithfulness_is_known():
    found = small_study(f"sparse,abc,{HERE}.True3,{HERE}.True3(flip=-1),{HERE}.Learner")
    assert set(found.refused) == {"abc"}
    table = report.table(found)
    rows = {row[0]: dict(zip(table.columns, row)) for row in table.rows}
    right, wrong = rows[f"{HERE}.True3"], rows[f"{HERE}.True3-flip-1"]
    assert any("Refused: abc: needs AttentionRow" in note and "cannot give" in note for note in table.notes)
    assert right["ρ with true contributions"].mean == pytest.approx(1)
    assert wrong["ρ with true contributions"].mean == pytest.approx(-1)
    assert (right["flipped signs"].mean, wrong["flipped signs"].mean) == (0, 1)
    area = "deletion AOPC, delete"
    assert right[area].mean >= rows["random order"][area].mean >= wrong[area].mean
    assert right[area].mean > wrong[area].mean
    assert right[area] == rows["true contributions"][area]
    # the whole is scored once, and what is left without its last token; the one-token response is then empty
    assert rows[f"{HERE}.Learner"]["forwards"] == 2
    assert rows["sparse"]["forwards"] == 0
    assert rows["sparse"]["credited tokens"].mean == 1
    assert rows["random order"]["credited tokens"] is None
    assert rows["true contributions"]["ρ with true contributions"] is None


def test_methods_that_learn_observe_first_what_they_asked_for():
    credit = small_study(f"{HERE}.Learner,{HERE}.True3", continuations=0).credits[f"{HERE}.Learner"].token_scores
    once = small_study(f"{HERE}.Learner,{HERE}.True3", continuations=0, warm=1).credits[f"{HERE}.Learner"].token_scores
    assert torch.equal(credit, 2 * once)
    assert once.any()


def test_methods_that_learn_observe_as_many_responses_to_a_prompt_as_a_run_draws():
    grouped = replace(with_settings(PAPER_SETTINGS, PPO), responses_per_prompt=2, advantages="rloo")
    loaded, learner = table_loaded(), Watcher()
    reward = as_reward_model(loaded.reward, loaded.policy)
    warm([learner], loaded, reward, grouped, rollouts=2, moments=ScoreMoments())
    for seen in learner.prompts:
        assert len(seen) == grouped.rollout_batch_size
        assert seen[::2] == seen[1::2]


def test_continuations_cost_the_passes_that_score_them_and_the_tokens_drawn():
    method, policy = MonteCarlo(span=1, continuations=3), Eighths()
    rollout, costs = evidence_apart(policy, ODD, DRAWN, method.needs, PPOConfig(temperature=1.0))
    cost = cost_of(method, costs)
    assert cost.forwards == 3 * (2 + 1)  # before all but the first tokens of the two responses
    assert cost.tokens == int(rollout.evidence[method.request][..., 1].sum()) >= cost.forwards
    assert cost.seconds > 0


def test_what_takes_passes_that_nobody_counts_has_no_cost(tmp_path):
    folder = save_tiny(str(tmp_path / "policy"))
    policy = load_policy(folder, auxiliaries={"dpo": folder})
    reward = ClassifierReward(tiny_gpt2_classifier(), policy.tokenizer, score="single_logit")
    telling = Telling(add_special_tokens=False)
    told = {way: RetokenisedReward.of(reward, policy, telling, prefixes=way) for way in ("retold", "boundary")}
    methods = {"log-ratio": LogRatio(), "prefixes": PrefixDifference(), "row": RewardAttention(), "cuts": LeaveOneOut()}
    needs = frozenset(request for method in methods.values() for request in method.needs)
    sequences = policy.sample(
        [[2, 3], [4]], Limits(min_lengths=torch.tensor([2, 2]), max_lengths=torch.tensor([3, 2])), torch.rand(2, 3)
    )

    def forwards(reward, name):
        _, costs = evidence_apart(policy, reward, sequences, needs, PPOConfig())
        cost = cost_of(methods[name], costs)
        return None if cost is None else cost.forwards

    assert forwards(reward, "log-ratio") is None
    assert forwards(reward, "prefixes") == forwards(told["boundary"], "prefixes") == 0
    assert forwards(told["retold"], "prefixes") is None
    assert forwards(reward, "row") == forwards(told["retold"], "row") == 0
    assert forwards(reward, "cuts") > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"absent": ("delete", "replace")}, "TextReward cannot replace tokens; --absent may name delete"),
        ({"responses": 9}, "responses 9 exceed the task's 3 held-out prompts"),
        ({"redistributors": "abc"}, "the models cannot serve any of the methods"),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        small_study(changes.pop("redistributors", "sparse"), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"responses": 0}, "responses must be 1 or more, got 0"),
        ({"continuations": 3}, "continuations must be even"),
        ({"absent": ()}, "absent must name"),
        ({"redistributors": "sparse@lam=1"}, "PPO settings do nothing here"),
        ({"redistributors": ""}, "at least one method"),
        ({"redistributors": "magic"}, "no redistributor 'magic'"),
    ],
)
def test_impossible_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        methods_of(replace(FaithfulnessSettings(), **changes))


@pytest.mark.slow
def test_the_script_writes_its_tables_and_a_figure_one_can_look_at(tmp_path, capsys):
    models, out = prepared(tmp_path / "models"), tmp_path / "out"
    argv = ["--task", "positive_generation", "--models", str(models), "--out", str(out), "--responses", "4"]
    argv += ["--points", "3", "--continuations", "2", "--orders", "2", "--warm", "1"]
    argv += ["--redistributors", f"sparse,uniform,abc,prefix-difference,{HERE}.Learner"]
    credit_faithfulness.main(argv)
    assert "Value differences" in capsys.readouterr().out
    names = ("table", "over_random", "curves")
    made = {"run.json", "curves.png", "curves.pdf", *(f"{name}.{kind}" for name in names for kind in ("md", "csv"))}
    assert {path.name for path in out.iterdir()} == made
    assert sum(Image.open(out / "curves.png").convert("L").histogram()[:128]) > 1000
    assert len(json.loads((out / "run.json").read_text())["datasets"]["prompts and models"]) == 64
    curve_rows = (out / "curves.csv").read_text().splitlines()
    assert len(curve_rows) == 1 + 8 * 4 * 4  # five methods, two references and the random order; kinds; points
    with pytest.raises(SystemExit):
        credit_faithfulness.main(argv)
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        credit_faithfulness.main(["--task", "positive_generation", "--models", str(tmp_path / "absent")])
    assert ended.value.code == 2
    assert "is missing" in capsys.readouterr().err
