"""Bad input of every kind that comes from outside: it is refused by name, or it is used as it stands; it never crashes
in the depths and never becomes a wrong number in silence."""

import gzip
import json
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from fakes import ragged_sequences
from generated import outcome, refused, tries
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.data.preference_formats import comparison, demonstration
from benchmarks.data.preference_tokens import read_comparisons, read_demonstrations
from benchmarks.data.records import unwritable
from benchmarks.data.reviews import read_reviews
from benchmarks.tasks.prepared_folder import made_small, read_prompts
from models import load_policy
from models.tiny import save_tiny
from rlhf_core import KLConfig, PPOConfig, ScoreConfig, Sequences, TokenReward
from rlhf_core.config import LARGEST_FLOAT32
from rlhf_core.prompts import encoded
from rlhf_core.types import TENSORS

texts = st.one_of(
    st.text(max_size=12), st.sampled_from(["", " ", "\x00", "\ud800", "w2 w3", "w2\udfffw3", "e\u0301", "𝟙"])
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    texts,
    st.binary(max_size=3),
    st.sampled_from(
        [10**400, -(10**400), 1e300, object(), int, np.float32(2), np.int64(3), Fraction(1, 3), Decimal("NaN")]
    ),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=5,
)


# -- prompts


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load_policy(save_tiny(tmp_path_factory.mktemp("good"), "llama"))


SHORT = PPOConfig(max_length=(8, 15))  # what the tiny policy has room for
ids = st.lists(st.integers(-1, 40), max_size=4)


@tries(100)
@given(
    prompts=st.one_of(
        anything, st.lists(texts, max_size=3), st.lists(ids, max_size=3), st.lists(st.one_of(ids, anything), max_size=3)
    )
)
def test_prompts_are_refused_or_read_as_they_stand(policy, prompts):
    call = lambda: encoded(policy, TokenReward(lambda *_: []), prompts, SHORT)  # noqa: E731
    found, refusal = outcome(call, "prompt")
    if not refusal:
        assert len(found) == len(prompts)
        assert all(type(token) is int and 0 <= token < 32 for row in found for token in row)
        assert all(found)
        given_ids = [list(prompt) for prompt in prompts if not isinstance(prompt, str)]
        assert given_ids in ([], found)


@pytest.mark.parametrize(
    "prompts",
    [
        *(None, 3, iter(["w2"]), {"w2": 1}, {"w2"}, ["w2\ud800"]),
        *([[True, False]], [b"ab"], [{1: 2}], [{1, 2}], [torch.tensor([[1], [2]])], [torch.tensor([True])]),
    ],
    ids=lambda prompts: type(prompts).__name__,
)
def test_what_only_looks_like_prompts_is_refused(policy, prompts):
    refused(lambda: encoded(policy, TokenReward(lambda *_: []), prompts, SHORT), "prompt")


# -- settings

SETTINGS = [
    *((PPOConfig, "", field.name) for field in fields(PPOConfig) if field.name not in ("kl", "score")),
    *((KLConfig, "kl", field.name) for field in fields(KLConfig)),
    *((ScoreConfig, "score", field.name) for field in fields(ScoreConfig)),
]


@pytest.mark.parametrize("value", [1e39, float("inf")])
def test_a_setting_that_float32_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match="clip_range must be"):
        PPOConfig(clip_range=value)


@tries(100)
@given(st.sampled_from(SETTINGS), anything)
@example((PPOConfig, "", "learning_rate"), 10**400)
@example((PPOConfig, "", "max_length"), (10**30, 10**30))
@example((KLConfig, "kl", "init_coef"), 1e300)
@example((KLConfig, "kl", "horizon"), 1.0)
def test_a_setting_is_refused_by_name_or_kept_as_it_was_given(setting, value):
    kind, part, name = setting
    make = (lambda: PPOConfig(**{part: kind(**{name: value})})) if part else (lambda: PPOConfig(**{name: value}))
    config, refusal = outcome(make, f"{part}.{name}" if part else name)
    if refusal:
        assert refusal.startswith("refused: PPOConfig: ")
        return
    kept = getattr(getattr(config, part) if part else config, name)
    plain = value.item() if hasattr(value, "item") else value  # a number of numpy or torch is kept as Python's
    assert kept is value or (kept == plain and type(kept) is type(plain))
    assert not isinstance(kept, float) or abs(kept) <= LARGEST_FLOAT32
    default = getattr(kind(), name)
    assert isinstance(kept, bool) == isinstance(default, bool)


# -- sequences


@tries(100)
@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3),
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(-1, 5),
    st.integers(0, 5),
)
def test_sequences_hold_left_and_right_padded_rows_or_are_refused(prompts, responses, low, high):
    rows = min(len(prompts), len(responses))
    parts = {"prompt": torch.tensor(prompts[:rows]), "response": torch.tensor(responses[:rows])}
    tensors = {f"{name}_ids": mask.long() for name, mask in parts.items()}
    tensors |= {f"{name}_mask": mask for name, mask in parts.items()}
    limits = {"min_lengths": torch.full((rows,), low), "max_lengths": torch.full((rows,), high)}
    found, refusal = outcome(lambda: Sequences(**tensors, **limits, finished=torch.ones(rows).bool()), "Sequences: row")
    padded = {
        "prompt": [sorted(row) for row in prompts[:rows]],
        "response": [sorted(row)[::-1] for row in responses[:rows]],
    }
    whole = all(any(row) for some in padded.values() for row in some)
    holes = any(padded[name] != mask.tolist() for name, mask in parts.items())
    fits = 0 <= low <= high and int(parts["response"].sum(1).max()) <= high
    assert bool(refusal) == (holes or not whole or not fits)
    if not refusal:
        assert [len(row) for row in found.responses()] == [sum(row) for row in responses[:rows]]


@tries(100)
@given(st.sampled_from(TENSORS), st.data())
def test_tensors_of_other_kinds_or_shapes_are_refused_by_name(name, data):
    good = ragged_sequences()
    parts = {field.name: getattr(good, field.name) for field in fields(good)}
    x = parts[name]
    kinds = (torch.int64, torch.float32, torch.complex64) if x.dtype == torch.bool else (torch.bool, torch.float32)
    changes = [lambda: x[:-1], lambda: x[None], lambda: x[:0], lambda: x[..., 0], x.tolist, lambda: None]
    changes += [lambda kind=kind: x.to(kind) for kind in kinds]
    parts[name] = data.draw(st.sampled_from(changes))()
    message = refused(lambda: Sequences(**parts), "Sequences: ")
    assert name in message or name in ("prompt_ids", "response_ids")  # the others are measured by these


def test_no_rows_are_no_sequences():
    empty = {field.name: getattr(ragged_sequences(), field.name)[:0] for field in fields(Sequences)}
    refused(lambda: Sequences(**empty), "prompt_ids")
    refused(lambda: ragged_sequences().select(torch.tensor([], dtype=torch.long)), "rows")


# -- rewards


@tries(100)
@given(
    st.one_of(
        anything, st.lists(scalars, min_size=4, max_size=4), st.lists(st.floats(width=32), min_size=4, max_size=4)
    )
)
@example(torch.tensor([1j] * 4))
@example(np.array([1j] * 4))
@example([10**400] * 4)
@example(torch.ones(4).to_sparse())
@example(torch.ones(4, 1))
@example(torch.ones(4, device="meta"))
@example(np.array(["a"] * 4))
@example({0: 1, 1: 2, 2: 3, 3: 4})
@example(iter([1, 2, 3, 4]))
def test_what_a_reward_callable_returns_is_refused_by_its_name_or_kept(returned):
    def judge(prompts, responses):
        return returned

    def score():
        return TokenReward(judge).score(ragged_sequences(), frozenset()).scores.tolist()

    scores, refusal = outcome(score, "judge")
    if not refusal:
        kept = [float(torch.tensor(float(x), dtype=torch.float32)) for x in returned]
        assert np.array_equal(scores, kept, equal_nan=True)  # NaN and infinity are refused with their texts later


# -- rows of data sets

ROWS = [
    {"text": "A fine film", "label": 1},
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]},
    {"prompt": "Post", "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0, "extra": {"confidence": 3}},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
]


@st.composite
def damaged_rows(draw):
    """A row with one value, at any depth, replaced or removed."""
    row = json.loads(json.dumps(draw(st.sampled_from(ROWS))))
    place = row
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or draw(st.booleans()):
            break
        place = place[key]
    if draw(st.booleans()):
        place[key] = draw(json_values)
    else:
        del place[key]
    return row


@tries(100)
@given(st.one_of(damaged_rows(), json_values))
@example({"prompt": "x", "summaries": [{}, {}], "choice": 0})
@example({"prompt": "x", "summaries": ["a", "b"], "choice": 1.0})
@example({"prompt": "x", "summaries": "ab", "choice": 0})
@example({"prompt": "x\ud800", "completion": "y"})
@example({"prompt": "x", "summaries": ["a", "b"], "choice": 0, "confidence": True})
def test_a_damaged_row_is_understood_whole_or_has_a_fault_with_a_name(row):
    for read in (comparison, demonstration):
        found, refusal = outcome(lambda read=read: read(row), "'", "responses", "JSON")
        if refusal:
            continue
        replies = found.responses
        for text in (*replies, *(turn.content for turn in found.prompt)):
            assert text.strip()
            assert not unwritable(text)
        assert type(getattr(found, "confidence", None)) in (int, type(None))


def written(rows):
    """Lines of a file, each a row as JSON or bytes as they are."""
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in rows)


# bytes that hold no line break, and end in one
noise = st.binary(max_size=20).map(lambda junk: junk.translate(None, b"\r\n") + b"\n")
cut_rows = st.builds(lambda row, at: json.dumps(row).encode()[:at] + b"\n", damaged_rows(), st.integers(0, 60))


@pytest.mark.parametrize("read", [lambda file: read_reviews([file]), lambda file: read_comparisons([file])])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@tries(25)
@given(rows=st.lists(st.one_of(st.sampled_from(ROWS), damaged_rows(), noise, cut_rows), max_size=5))
@example(rows=[ROWS[0], ROWS[1], b'{"text": "\xff", "label": 1}\n', b"[" * 50_000 + b"\n"])
@example(rows=[ROWS[0], ROWS[1], b'{"text": "a", "label": ' + b"1" * 5000 + b"}\n"])
def test_every_row_of_a_file_is_kept_or_counted_under_a_reason(read, ending, rows, tmp_path):
    file = tmp_path / f"case{ending}"
    content = written(rows)
    file.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    found, refusal = outcome(lambda: read(str(file)), "case.jsonl")
    assert not refusal or ROWS[0] not in rows or ROWS[1] not in rows  # one of which either reader can use
    if not refusal:
        labelled = hasattr(found, "labelled")
        kept = [*found.labelled, *found.unlabelled] if labelled else found.kept
        summary = found.summary() if labelled else found.summary("comparisons")
        assert len(kept) + sum(map(len, found.rejected.values())) == content.count(b"\n")
        summary.encode()  # can be printed


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"])
@tries(8)
@given(
    start=st.sampled_from([b"", b"{", b"[", b'["', b"text,label\n", b"PAR1", b"\x1f\x8b\x08"]),
    junk=st.binary(max_size=30),
)
@example(start=b"", junk=b"")
@example(start=b"\xff\xfe", junk=b"")
def test_a_file_of_junk_is_refused_by_name(ending, start, junk, tmp_path):
    file = tmp_path / f"case{ending}"
    file.write_bytes(start + junk)
    refused(lambda: read_reviews([file]), "case.")
    refused(lambda: read_demonstrations([str(file)]), "case.")


def test_a_truncated_archive_is_refused_by_name(tmp_path):
    file = tmp_path / "case.jsonl.gz"
    whole = gzip.compress(written(ROWS * 20))
    for size in (1, 12, len(whole) // 2, len(whole) - 4):
        file.write_bytes(whole[:size])
        refused(lambda: read_reviews([file]), "case.jsonl.gz")


@tries(100)
@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries({"split": st.sampled_from(["train", "held_out"]), "ids": json_values}),
            json_values,
            noise,
        ),
        max_size=3,
    )
)
@example([b"\xff\n"])
@example([b"[" * 50_000])
@example([{"split": "train", "ids": "12"}, {"split": "held_out", "ids": [1]}])
@example([{"split": "train", "ids": [True]}, {"split": "held_out", "ids": [1.7]}])
@example([{"split": "train", "ids": []}, {"split": "held_out", "ids": [1]}])
def test_prepared_prompts_are_ids_or_refused_by_line(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("prepared", numbered=True)
    good = [{"split": split, "ids": [1]} for split in ("train", "held_out")]
    (folder / "prompts.jsonl").write_bytes(written([*good, *rows]))
    found, refusal = outcome(lambda: read_prompts(str(folder)), "prompts.jsonl:")
    if not refusal:
        every = [row["ids"] for some in found.values() for row in some]
        assert all(row and all(type(token) is int and token >= 0 for token in row) for row in every)
        assert sum(map(len, found.values())) == 2 + len(rows)


def test_prompts_without_the_reward_models_ids_are_refused_by_line(tmp_path):
    (tmp_path / "prompts.jsonl").write_bytes(written([{"split": split, "ids": [1]} for split in ("train", "held_out")]))
    assert "reward_ids" in refused(lambda: read_prompts(str(tmp_path), ("ids", "reward_ids")), "prompts.jsonl:1")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'{"settings": 3}', b"\xff", b"[" * 50_000])
def test_a_damaged_record_is_named(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    refused(lambda: made_small(str(tmp_path)), "run.json")
