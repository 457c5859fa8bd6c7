"""How a reward function is called: its signature, the columns it names, and what is said where they do not fit."""

import json
from functools import partial
from itertools import chain

import pytest
import torch
from fakes import TablePolicy, sequences_of, small_run

from redistributors import LeaveOneOut, OwnRewards, Sparse, Uniform
from rlhf_core import PerTokenReward, PPOTrainer, SpanReward, TextReward, TokenReward
from rlhf_core.scorers.signatures import lists_of, scores_of
from rlhf_core.types import ReadsRows

ROWS = [{"prompt": text, "answer": int(text[-1]), "level": f"L{text}"} for text in ("1 2", "3", "4 5", "5 4")]
KINDS = [TokenReward, PerTokenReward, partial(TextReward, decode=TablePolicy().decode)]
KINDS += [partial(SpanReward, decode=TablePolicy().decode)]


def called(fn, rows=ROWS[:2]):
    """What ``fn`` is given for two responses."""
    return scores_of(fn, ["p", "q"], ["r", "s"], rows).tolist()


def noting(notes):
    def note(*given, **columns):
        notes.append((given, columns))
        return [0.0, 0.0]

    return note


class Judge:
    """A callable object, whose signature is that of its ``__call__``."""

    def __call__(self, prompts, responses, answer):
        return answer


def by_keyword(prompts, responses, *, answer, level="none", weight=1.0):
    return [len(name) * weight + number for name, number in zip(level, answer)]


@pytest.mark.parametrize(
    ("fn", "scores"),
    [
        (lambda prompts, responses, answer: answer, [2, 3]),
        (lambda p, r, answer=None: answer or [0, 0], [2, 3]),
        (lambda p, r, other=None: other or [7, 7], [7, 7]),
        (lambda p, r, **columns: [len(columns)] * 2, [2, 2]),
        (lambda *lists, answer: answer, [2, 3]),
        (lambda prompts, responses: [len(prompts), len(responses)], [2, 2]),
        (by_keyword, [6, 5]),
        (partial(by_keyword, weight=2.0), [10, 7]),
        (Judge(), [2, 3]),
        (Judge().__call__, [2, 3]),
    ],
)
def test_a_function_gets_the_columns_that_it_names(fn, scores):
    assert called(fn) == scores


def test_all_columns_are_those_of_the_rows_and_never_the_lists_themselves():
    notes = []
    called(noting(notes), [{"prompt": "w", "responses": 1, "completions": 2, "a": place} for place in range(2)])
    called(noting(notes), [])
    assert notes == [((["p", "q"], ["r", "s"]), {"a": [0, 1]}), ((["p", "q"], ["r", "s"]), {})]


@pytest.mark.parametrize("wrap", KINDS)
@pytest.mark.parametrize(
    ("fn", "shown"),
    [
        (lambda: [], r"reward is reward\(\)"),
        (lambda texts: [], r"reward is reward\(texts\)"),
        (lambda completions, **columns: [], r"reward is reward\(completions, \*\*columns\)"),
        (lambda completions, answer: [], r"reward\(completions, answer\)"),
        (lambda responses, prompts: [], r"reward\(responses, prompts\)"),
        (lambda answer, prompts, responses: [], r"reward\(answer, prompts, responses\)"),
        (lambda *, prompts, responses: [], r"reward\(\*, prompts, responses\)"),
        (lambda prompts, responses, answer, /: [], r"reward\(prompts, responses, answer, /\)"),
        (len, r"len is len\(obj, /\)"),
    ],
)
def test_a_wrong_signature_is_refused_with_the_right_one(wrap, fn, shown):
    right = r"Write def (reward|len)\(prompts, responses\): .*, or, .* def (reward|len)\(prompts, responses, answer\)"
    with pytest.raises(TypeError, match=rf"by name the columns.*{shown}\. {right}"):
        wrap(fn)
    with pytest.raises(TypeError, match=right):
        PPOTrainer(TablePolicy(), fn, Sparse(), small_run())


def test_what_does_not_say_what_it_takes_is_given_the_two_lists():
    silent = type("Silent", (), {"__call__": lambda *given: [1.0, 2.0], "__signature__": "none"})()
    assert called(TextReward(silent, TablePolicy().decode).fn) == [1, 2]


class Watched(TablePolicy):
    def sample(self, prompts, limits, uniforms):
        raise AssertionError("something was generated")


@pytest.mark.parametrize("wrap", KINDS)
@pytest.mark.parametrize(
    ("fn", "prompts", "words"),
    [
        (
            lambda p, r, anwser: r,
            ROWS,
            r"'anwser', which .*: they have 'answer', 'level'; did you mean 'answer'",
        ),
        (lambda p, r, *, answer: r, [[1], [2]], r"for the column 'answer', .*: they have none\. .*'answer': \.\.\.\}"),
        (
            lambda prompts, answer: answer,
            ROWS,
            r"'answer', among its first two .* reward\(prompts, responses, answer",
        ),
    ],
)
def test_a_column_that_is_asked_for_in_vain_is_refused_before_anything_is_generated(wrap, fn, prompts, words, tmp_path):
    learner = PPOTrainer(Watched(), wrap(fn), Uniform(), small_run())
    roads = [learner.collect, learner.step, learner.evaluate]
    roads += [lambda prompts: learner.fit(prompts, 1, out=tmp_path / "run")]
    roads += [lambda prompts: learner.fit(ROWS, 1, out=tmp_path / "run", eval_prompts=prompts)]
    for road in roads:
        with pytest.raises(ValueError, match=words):
            road(prompts)
    assert not (tmp_path / "run").exists()


def test_a_column_missing_later_is_refused_too():
    """Where sequences did not come from a trainer, and nobody wrote any rows."""
    reward = TokenReward(lambda prompts, responses, answer: answer)
    with pytest.raises(ValueError, match="asks for the column 'answer'"):
        reward.score(sequences_of([[1]], [[2]]), frozenset())
    with pytest.raises(ValueError, match="asks for the column 'answer'"):
        lists_of(reward.fn, [[1]], [[2]], [{"level": 1}])


class Ledger:
    """A function that notes prompts with the columns that came with them, of every call."""

    def __init__(self, worth):
        self.worth, self.calls = worth, []

    def __call__(self, prompts, responses, answer, level):
        assert len(prompts) == len(responses) == len(answer) == len(level)
        self.calls.append([*zip(prompts, answer, level)])
        return [self.worth(response) for response in responses]


@pytest.mark.parametrize(
    ("wrap", "worth", "method"),
    [
        (lambda fn: fn, lambda text: float(len(text)), LeaveOneOut()),
        (TokenReward, lambda ids: float(len(ids)), LeaveOneOut()),
        (PerTokenReward, lambda ids: [1.0] * len(ids), OwnRewards()),
        (KINDS[3], lambda text: [(0, 1, 1.0)], OwnRewards()),
    ],
    ids=["texts", "ids", "per-token", "spans"],
)
def test_columns_travel_with_their_prompts_on_every_road(wrap, worth, method, tmp_path):
    """Whole and shortened responses, parts of a batch, responses that share a prompt, evaluation, a resumed run."""
    ledger = Ledger(worth)

    def trainer():
        config = small_run(responses_per_prompt=2, sampling_tokens=11)
        return PPOTrainer(TablePolicy(), wrap(ledger), method, config)

    rows = [(row["prompt"], row["answer"], row["level"]) for row in ROWS]
    if wrap in (TokenReward, PerTokenReward):
        rows = [([int(word) for word in text.split()], *columns) for text, *columns in rows]
    sequences = trainer().collect(ROWS[:2]).sequences
    assert ledger.calls[0] == [rows[0], rows[0], rows[1], rows[1]]
    assert [row["level"] for row in sequences.select(torch.tensor([3, 0])).given] == [rows[1][2], rows[0][2]]
    for steps in (1, 2):
        trainer().fit(ROWS[:2], steps, out=tmp_path / "run", eval_prompts=ROWS[2:], eval_every=1, resume=True)
    assert rows[2:] in ledger.calls[-3:]
    assert all(row in rows[2:] for row in ledger.calls[-1])  # for the credit on the run's page
    assert {*map(str, chain(*ledger.calls))} == {*map(str, rows)}
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {sample["prompt"] for sample in samples} == {"4 5", "5 4"}


@pytest.mark.parametrize(
    ("wrap", "answers"),
    [*zip(KINDS, [lambda row: 0.0, lambda row: [0.0] * len(row), lambda row: 0.0, lambda row: []])],
)
def test_no_function_is_called_on_made_up_prompts(wrap, answers, tmp_path):
    """A run measures its models on prompts without rows before it begins, and functions are left out of that."""

    def score(prompts, responses, **columns):
        assert {*columns} == {"answer", "level"}
        return [answers(response) for response in responses]

    reward = wrap(score)
    assert isinstance(reward, ReadsRows)
    trainer = PPOTrainer(TablePolicy(), reward, Sparse(), small_run())
    trainer.fit(ROWS, 1, out=tmp_path / "run")
    assert {*trainer.run["models"]["said"]} == {"reference"}
