import json
import random

import pytest

from benchmarks.data.own_prompts import read_own_prompts, split


def written(folder, *rows, name="prompts.jsonl"):
    file = folder / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def test_texts_chats_and_further_columns_are_read_and_blank_lines_skipped(tmp_path):
    chat = [{"role": "user", "content": "one"}]
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b ", "answer": None}]
    assert read_own_prompts(written(tmp_path, rows[0], "", rows[1], " ")) == rows
    assert read_own_prompts(written(tmp_path, {"prompt": chat})) == [{"prompt": chat}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "c"', 'prompts.jsonl:3 is not JSON: \'{"prompt": "c"\''),
        ("[1]", "prompts.jsonl:3 is not a JSON object: [1]"),
        ({"text": "c"}, "prompts.jsonl:3 has no column 'prompt'; it has 'text'"),
        ({"prompt": "  ", "answer": 1}, "prompts.jsonl:3 has an empty prompt"),
        ({"prompt": [], "answer": 1}, "prompts.jsonl:3 has an empty prompt"),
        ({"prompt": 3, "answer": 1}, "prompts.jsonl:3 must be a text, a list of token ids"),
        ({"prompt": [{"role": "assistant", "content": "c"}], "answer": 1}, "prompts.jsonl:3 ends with a message"),
        ({"prompt": "c"}, "prompts.jsonl:3 has no 'answer', which prompts.jsonl:1 has"),
        ({"prompt": "c", "answer": 1, "x": 1}, "prompts.jsonl:3 has 'x', which prompts.jsonl:1 has not"),
        ({"prompt": "a", "answer": 2}, "prompts.jsonl:3 has the prompt of prompts.jsonl:1 again; remove one"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(tmp_path, row, said):
    file = written(tmp_path, {"prompt": "a", "answer": 1}, "", row, {"prompt": "d", "answer": 1})
    with pytest.raises(ValueError) as raised:
        read_own_prompts(file)
    assert str(raised.value).startswith(said)
    assert ";" not in str(raised.value).removeprefix(said)[:2]


def test_every_row_that_cannot_be_used_is_listed(tmp_path):
    with pytest.raises(ValueError, match=r"prompts.jsonl:2 .*; prompts.jsonl:3 .*"):
        read_own_prompts(written(tmp_path, {"prompt": "a"}, "x", "y"))
    with pytest.raises(ValueError) as raised:
        read_own_prompts(written(tmp_path, *({"text": str(n)} for n in range(8)), {"prompt": " "}))
    alike = "prompts.jsonl:1 has no column 'prompt'; it has 'text' (and 7 more likewise, the last prompts.jsonl:8)"
    assert str(raised.value) == f"{alike}; prompts.jsonl:9 has an empty prompt"
    with pytest.raises(ValueError, match="holds no prompts"):
        read_own_prompts(written(tmp_path, ""))
    with pytest.raises(FileNotFoundError, match="no file nowhere.jsonl"):
        read_own_prompts("nowhere.jsonl")


def test_what_is_held_out_follows_from_the_prompts_and_not_from_their_order():
    rows = [{"prompt": f"prompt {i}"} for i in range(200)]
    train, held_out = split(rows, "x.jsonl", 5)
    assert 10 < len(held_out) < 35  # about a tenth
    assert [row for row in rows if row in train] == train
    shuffled = random.Random(0).sample(rows, len(rows))
    assert {row["prompt"] for row in split(shuffled, "x.jsonl", 5)[1]} == {row["prompt"] for row in held_out}
    more = split(rows, "x.jsonl", 60)[1]
    assert len(more) == 60
    assert all(row in more for row in held_out)
    assert not [row for row in more if row in split(rows, "x.jsonl", 60)[0]]


def test_too_few_prompts_to_hold_some_out():
    rows = [{"prompt": f"prompt {i}"} for i in range(5)]
    assert [len(part) for part in split(rows, "x.jsonl", 2)] == [3, 2]
    with pytest.raises(
        ValueError,
        match="x.jsonl holds 5 prompts, too few to hold out 64 and learn from as many: pass --eval_prompts 2",
    ):
        split(rows, "x.jsonl", 64)
    with pytest.raises(ValueError, match="give at least two"):
        split(rows[:1], "x.jsonl", 1)
