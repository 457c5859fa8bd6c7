"""One rollout through many methods: credit as a trainer has it, by label, as a table."""

from dataclasses import dataclass, replace

import pytest
import torch
from fakes import TablePolicy, evidence_for, ragged_sequences, rollout_of

from redistributors import REDISTRIBUTORS, RewardAttention, Shapley, Sparse, Uniform, compare_on
from redistributors.credit_table import COLUMNS, DRAWN
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.checks import HealthError

CONFIG = PPOConfig(rollout_batch_size=8, minibatch_size=4, min_length=1, max_length=(3, 6), lam=0.9)
SCORES = [2.0, -1.0, 0.5, 3.0]
METHODS = {"sparse": Sparse(), "uniform": Uniform(), "zero": Uniform(beta=0.0)}


def drawn(responses_per_prompt=1, **changes):
    config = replace(CONFIG, responses_per_prompt=responses_per_prompt, **changes)
    policy = TablePolicy()
    with torch.no_grad():
        policy.value += torch.linspace(-1, 1, 6)
    reward = TokenReward(lambda prompts, responses: [float(row.count(3)) - 0.1 * len(row) for row in responses])
    trainer = PPOTrainer(policy, reward, Sparse(), config)
    return trainer, trainer.collect([[1 + i % 5] for i in range(8 // responses_per_prompt)])


def words(rows):
    return [" ".join(f"word{token}" for token in row) for row in rows]


def made_up(*methods):
    sequences = ragged_sequences()
    evidence = {}
    for method in methods:
        evidence |= evidence_for(method, sequences.response_mask)
    return rollout_of(sequences, SCORES, evidence)


@pytest.mark.parametrize("name", METHODS)
def test_credit_is_what_the_trainer_would_have_learned_from(name):
    trainer, rollout = drawn()
    trainer.redistributor = METHODS[name]
    trainer.kl_controller.coef = 0.7
    rollout = replace(rollout, kl=torch.where(rollout.sequences.response_mask, rollout.values.abs(), 0))
    scores = trainer.redistribute(rollout)
    experience = trainer.estimate_returns(rollout, scores)
    credit = compare_on(rollout, METHODS, config=trainer.config, kl_coef=0.7)[name]
    assert credit.token_scores.equal(scores)
    torch.testing.assert_close(credit.rewards, scores - 0.7 * rollout.kl)
    assert credit.returns.equal(experience.returns)
    assert credit.advantages.equal(experience.advantages)
    assert credit.figures.items() <= trainer.figures(rollout, scores, experience).items()
    assert {"explained_variance", "explained_variance_over_position"} <= credit.figures.keys()


def test_the_config_and_its_first_penalty_are_the_defaults():
    rollout = made_up()
    found, default = compare_on(rollout, ["uniform"])["uniform"], PPOConfig()
    given = compare_on(rollout, ["uniform"], config=default, kl_coef=default.kl.init_coef)["uniform"]
    assert found.rewards.equal(given.rewards)
    assert found.advantages.equal(given.advantages)
    assert not found.rewards.equal(found.token_scores)


@dataclass(frozen=True)
class Wordy:
    reads: str = "a setting that is written out at length, as a function that decodes would be"
    needs, causal, conserving = frozenset(), True, True

    def __call__(self, rollout):
        return Sparse()(rollout)


def test_methods_are_names_instances_what_makes_them_or_by_labels_of_ones_own():
    rollout = made_up(RewardAttention())
    found = compare_on(rollout, ["sparse", Uniform(beta=0.5), "abc"])
    assert list(found) == ["sparse", "uniform(beta=0.5)", "abc"]
    assert len(found) == 3
    assert found["uniform(beta=0.5)"].token_scores.equal(Uniform(beta=0.5)(rollout))
    mine = compare_on(rollout, {"half": Uniform(beta=0.5), "all": "abc", "end": Sparse})
    assert {label: credit.figures for label, credit in mine.items()} == {
        "half": found["uniform(beta=0.5)"].figures, "all": found["abc"].figures, "end": found["sparse"].figures
    }  # fmt: skip
    assert list(compare_on(rollout, "sparse")) == ["sparse"]
    assert list(compare_on(rollout, [Wordy()])) == ["Wordy"]
    with pytest.raises(KeyError, match="no method 'sprase'; did you mean 'sparse'.*there are sparse, uniform"):
        found["sprase"]
    every = made_up(*(make() for make in REDISTRIBUTORS.values()))
    assert list(compare_on(every, REDISTRIBUTORS)) == list(compare_on(every, [*REDISTRIBUTORS])) == [*REDISTRIBUTORS]


def test_it_is_written_as_a_table():
    rollout = made_up()
    one_row = replace(rollout, values=torch.zeros_like(rollout.values))
    head, *rows = repr(compare_on(one_row, ["sparse", "uniform"], kl_coef=0.0)).splitlines()
    assert head.split() == [
        *("method", "credited", "tokens", "sum", "error", "explained", "variance", "…", "over", "position"),
        *("return", "variance", "advantage", "variance"),
    ]
    start = head.index("credited tokens")
    assert [(row[:start].strip(), row[start:].split()[0]) for row in rows] == [("sparse", "1"), ("uniform", "3.5")]
    assert rows[0][head.index("explained") :].split()[0] == "0"


def test_a_notebook_draws_the_table_and_the_first_responses():
    html = compare_on(made_up(), {"sparse": "sparse", "<b>mine</b>": Uniform()}, decode=words)._repr_html_()
    assert html.count("<th>") == 1 + len(COLUMNS)
    assert html.count('<section class="credit">') == min(len(SCORES), DRAWN)
    assert "&lt;b&gt;mine&lt;/b&gt;" in html
    assert "<b>mine" not in html
    assert "≠ score" not in html
    assert ".maps() has all" not in html
    _, rollout = drawn()
    assert "4 of 8 responses; .maps() has all" in compare_on(rollout, ["sparse"])._repr_html_()


def test_a_heat_map_for_each_response_holds_its_tokens_and_their_credit():
    rollout = made_up()
    table = compare_on(rollout, ["uniform"], decode=words)
    for row, (shown, ids) in enumerate(zip(table.maps(), rollout.sequences.responses(), strict=True)):
        assert len(shown.tokens) == len(ids)
        assert shown.score == SCORES[row]
        assert shown.rows["uniform"] == tuple(table["uniform"].token_scores[row, : len(ids)].tolist())
    assert "".join(shown.tokens).split() == words([ids])[0].split()
    unnamed = compare_on(rollout, ["uniform"]).maps()[-1]
    assert unnamed.tokens == tuple(f"⟨{token}⟩" for token in ids)


def test_what_is_undefined_is_a_dash():
    trainer, rollout = drawn(responses_per_prompt=4, advantages="rloo")
    found = compare_on(rollout, METHODS, config=trainer.config, kl_coef=0.2)
    assert "explained_variance" not in found["sparse"].figures
    assert found["sparse"].returns.equal(rollout.values)
    assert repr(found).splitlines()[1].split()[3:6] == ["–"] * 3
    torch.testing.assert_close(found["sparse"].advantages, found["uniform"].advantages)


def test_uniform_without_a_share_is_sparse():
    _, rollout = drawn()
    found = compare_on(rollout, METHODS, config=CONFIG, kl_coef=0.2)
    for name in ("token_scores", "rewards", "returns", "advantages"):
        assert getattr(found["zero"], name).equal(getattr(found["sparse"], name)), name
    assert found["zero"].figures == found["sparse"].figures
    assert found["sparse"].figures["credit_concentration"] == pytest.approx(1)


def test_methods_whose_evidence_is_not_there_are_named_together_before_any_is_called():
    with pytest.raises(
        ValueError, match="does not hold all evidence: abc needs AttentionRow.*; mine needs Shap"
    ) as said:
        compare_on(made_up(), {"broken": OnPadding(), "abc": "abc", "mine": Shapley(), "sparse": Sparse()})
    assert "trainer.collect(prompts, methods=[...])" in str(said.value)
    assert "sparse" not in str(said.value)


@pytest.mark.parametrize(
    ("methods", "error", "said"),
    [
        (["abcc"], KeyError, "no redistributor 'abcc'; did you mean 'abc'"),
        ([], ValueError, "no methods; name some"),
        (["sparse", "uniform", "sparse"], ValueError, "sparse is named twice; give labels"),
        ([Uniform(), Uniform()], ValueError, "uniform is named twice"),
        ([lambda rollout: rollout.values], TypeError, "is not a redistributor: that has needs"),
    ],
)
def test_what_is_no_list_of_methods_is_refused(methods, error, said):
    with pytest.raises(error, match=said):
        compare_on(made_up(), methods)


def test_what_cannot_be_compared_is_refused():
    _, rollout = drawn()

    def compared(method, **changes):
        return compare_on(rollout, {"it": method}, config=replace(CONFIG, **changes))

    with pytest.raises(ValueError, match="with gamma 0.9 that changes which response is best"):
        compared(Uniform(), gamma=0.9)
    with pytest.raises(ValueError, match="expected 4 responses to each prompt"):
        compared(Sparse(), responses_per_prompt=4, advantages="rloo")
    with pytest.raises(HealthError, match="on padding"):
        compared(OnPadding())


def test_a_method_sees_no_evidence_that_another_asked_for():
    with pytest.raises(ValueError, match="needs .* which this rollout does not hold"):
        compare_on(made_up(RewardAttention()), [RewardAttention(), Undeclared()])


class Undeclared(RewardAttention):
    """Reads what it does not ask for."""

    needs = frozenset()


@dataclass(frozen=True, kw_only=True)
class OnPadding:
    needs = frozenset()
    causal = True
    conserving = False

    def __call__(self, rollout):
        return torch.ones_like(rollout.logprobs)
