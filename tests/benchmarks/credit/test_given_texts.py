"""Texts from a file: JSON lines and plain text, and what is refused before any model is read."""

import json

import pytest

from benchmarks.credit.given_texts import checked_rows, read_texts


def written(folder, text, name="texts.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_json_lines_keep_chats_and_further_columns(tmp_path):
    rows = [
        {"prompt": "Why?", "response": "So.\n"},
        {"prompt": [{"role": "user", "content": "Why?"}], "response": "", "answer": 3},
    ]
    text = "\n\n".join(map(json.dumps, rows)) + "\n"
    assert read_texts(written(tmp_path, text, "texts.jsonl")) == rows


@pytest.mark.parametrize(
    ("text", "prompt", "rows"),
    [
        (" good\n", "It was", [("It was", " good")]),
        ("It was\n---\n good\n", None, [("It was", " good")]),
        ("It was\n---\n good\n", "other", [("It was", " good")]),
        ("a\n\nb\n---\nc\n\n\n===\nd\n---\ne", None, [("a\n\nb", "c\n\n"), ("d", "e")]),
        ("c\n===\n---x\n===\n", "p", [("p", "c"), ("p", "---x")]),
    ],
)
def test_plain_text_is_a_response_or_prompts_and_responses_between_marks(tmp_path, text, prompt, rows):
    assert read_texts(written(tmp_path, text), prompt) == [{"prompt": a, "response": b} for a, b in rows]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "good", "a.txt: text 1 has no prompt: give one with --prompt"),
        ("a.txt", "a\n---\nb\n---\nc", "a.txt: text 1 has 2 lines of ---"),
        ("a.txt", " \n", "a.txt holds no text"),
        ("a.jsonl", "", "a.jsonl holds no text"),
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt"', "a.jsonl:2 is not JSON"),
        ("a.jsonl", '{"prompt": "a", "answer": "b"}', "text 1 has no 'response'; it has prompt, answer"),
        ("a.jsonl", '["a", "b"]', r"text 1 is \['a', 'b'\]; give a mapping"),
        ("a.jsonl", '{"prompt": "a", "response": 3}', "text 1: response must be a text, got 3"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, said):
    with pytest.raises(ValueError, match=said):
        read_texts(written(tmp_path, text, name))


def test_files_that_are_no_text_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_texts(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bytes\.txt is not UTF-8 text"):
        read_texts(tmp_path / "bytes.txt", "p")


def test_rows_are_counted_from_one():
    with pytest.raises(ValueError, match="text 2 has no 'prompt' and no 'response'"):
        checked_rows([{"prompt": "a", "response": "b"}, {"text": "c"}])
