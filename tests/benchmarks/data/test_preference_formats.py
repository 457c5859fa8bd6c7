"""Every form preference data come in, every fault a row can have, and prompts as models read them."""

import json

import pytest
from tokenizers.processors import TemplateProcessing

from benchmarks.data.preference_formats import Example, Turn, comparison, demonstration, key
from benchmarks.data.preference_tokens import (
    Tokenisation,
    read_comparisons,
    read_demonstrations,
    split_prompts,
)
from benchmarks.data.records import HUB, RowFault, fingerprints, read_rows
from benchmarks.data.rendering import fitted, render, response_ids
from benchmarks.data.templates import CHAT, TEMPLATES, check_template
from benchmarks.tasks.starting_models import byte_level_tokenizer

QUESTION = (Turn(role="user", content="Why?"),)
COMPARED = Example(prompt=QUESTION, responses=("Because.", "No."))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"prompt": "Why?", "completion": " Because."}, Example(prompt=QUESTION, responses=(" Because.",))),
        (
            {
                "prompt": [{"role": "user", "content": "Why?"}],
                "completion": [{"role": "assistant", "content": "Because."}],
            },
            Example(prompt=QUESTION, responses=("Because.",)),
        ),
        ({"prompt": "A post\n\nTL;DR:", "summary": " Short."}, Example(
            prompt=(Turn(role="user", content="A post"),), responses=(" Short.",))),
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, Example(
            prompt=QUESTION, responses=("Because.",))),
    ],
)  # fmt: skip
def test_demonstrations(row, wanted):
    assert demonstration(row) == wanted


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {
            "prompt": [{"role": "user", "content": "Why?"}],
            "chosen": [{"role": "assistant", "content": "Because."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
        {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        {"prompt": "Why?\n\nTL;DR:", "summaries": ["No.", "Because."], "choice": 1},
        {"info": {"post": "Why?"}, "summaries": [{"text": "No."}, {"text": "Because."}], "choice": 1},
    ],
)
def test_comparisons(row):
    assert comparison(row) == COMPARED


def test_a_conversation_keeps_its_turns_and_its_confidence():
    transcript = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: {}"
    found = comparison({"chosen": transcript.format("Because."), "rejected": transcript.format("No.")})
    assert [turn.role for turn in found.prompt] == ["user", "assistant", "user"]
    assert key(found.prompt) == "user: Hi\nassistant: Hello\nuser: Why?"
    rated = {"prompt": "p", "summaries": ["a", "b"], "choice": 0, "confidence": 4}
    assert comparison({**rated, "confidence": None, "extra": {"confidence": 2}}).confidence == 3
    assert comparison({**rated, "confidence": None}).confidence is None


@pytest.mark.parametrize(
    ("mark", "choice", "sure"), [(1, 0, 4), (9, 1, 4), (2, 0, 3), (8, 1, 3), (4, 0, 1), (6, 1, 1), (5, 0, 0), (5, 1, 0)]
)
def test_the_ends_of_the_two_sided_scale_are_equally_sure(mark, choice, sure):
    rated = {"prompt": "p", "summaries": ["a", "b"], "choice": choice, "confidence": mark}
    assert comparison(rated).confidence == sure


def test_a_score_may_stand_beside_a_comparison_but_not_against_it():
    scored = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1.5}
    for row in (scored, {**scored, "score_chosen": 1.5}, {**scored, "score_chosen": None}):
        assert comparison(row).responses[0] == "a"
    with pytest.raises(RowFault, match="'score_chosen' is below 'score_rejected'"):
        comparison({**scored, "score_chosen": -2})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["a"], "not a JSON object"),
        ({"chosen": "a", "rejected": "b"}, "'chosen' is not a transcript"),
        ({"prompt": "p", "chosen": "a"}, "no column 'rejected'"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "'chosen' is not a string"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "'prompt' is empty"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "'prompt' is empty"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "holds a turn that is not"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"}, "end with the user's"),
        ({"prompt": "p", "chosen": [{"role": "user", "content": "x"}], "rejected": "b"}, "not one turn of the assist"),
        ({"prompt": "p", "chosen": "a ", "rejected": "a"}, "both responses are the same"),
        ({"prompt": "p", "summaries": ["a"], "choice": 0}, "'summaries' are not two"),
        ({"prompt": "p", "summaries": ["a", "b"], "choice": True}, "'choice' is neither"),
        ({"prompt": "p", "summaries": ["a", 4], "choice": 0}, "'summaries' is not a string"),
        ({"prompt": "p", "summaries": ["a", "b"], "choice": 0, "confidence": "high"}, "not a whole number from 1"),
        *(
            ({"prompt": "p", "summaries": ["a", "b"], "choice": 0, "confidence": mark}, "not a whole number from 1")
            for mark in (0, 10, -4, 1.0, True)
        ),
        ({"prompt": "p", "summaries": ["a", "b"], "choice": 0, "confidence": 6}, "for one summary and 'choice' for"),
        ({"prompt": "p", "summaries": ["a", "b"], "choice": 1, "confidence": 1}, "for one summary and 'choice' for"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, "different prompts"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "\n\nHuman: a\n\nAssistant: d"}, "empty turn"),
    ],
)
def test_faulty_rows_are_named(row, said):
    with pytest.raises(RowFault, match=said):
        comparison(row)


@pytest.mark.slow
def test_real_rows_are_understood(data_folder):
    summaries = read_comparisons([str(data_folder / "tldr_comparisons.jsonl.gz")])
    assert len(summaries.kept) == 763
    assert sorted(map(len, summaries.rejected.values())) == [40, 110]  # seen before, and contradicted: 18 pairs
    assert len(read_demonstrations([str(data_folder / "reddit_tldr_posts.jsonl.gz")]).kept) > 1000
    helpful = read_comparisons([str(data_folder / "hh_helpful.jsonl.gz")])
    assert len(helpful.kept) > 4000
    assert sum(len(row.prompt) == 1 for row in helpful.kept) > 1300


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(["Why? Because. A post about cats and dogs, and why they fight."] * 3, 300)


def test_templates_put_the_message_where_it_belongs(tokenizer):
    text = tokenizer.decode(render("instruction", QUESTION, tokenizer))
    assert text.endswith("### Instruction:\nWhy?\n\n### Response:")
    assert tokenizer.decode(render("human_assistant", QUESTION, tokenizer)) == "###Human: Why? ###Assistant: "
    assert tokenizer.decode(render("Q: {prompt}\nA:", QUESTION, tokenizer)) == "Q: Why?\nA:"
    with pytest.raises(RowFault, match="several turns"):
        render("plain", (*QUESTION, *QUESTION), tokenizer)


def test_the_chat_template_is_the_tokenizers_own(tokenizer):
    with pytest.raises(ValueError, match="has no chat template"):
        render(CHAT, QUESTION, tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    try:
        conversation = (*QUESTION, Turn(role="assistant", content="Because."), Turn(role="user", content="Oh."))
        assert tokenizer.decode(render(CHAT, conversation, tokenizer)) == (
            "<user>Why?<assistant>Because.<user>Oh.<assistant>"
        )
    finally:
        tokenizer.chat_template = None


def test_a_response_is_separated_from_its_prompt_exactly_once(tokenizer):
    for template in TEMPLATES:
        prompt = tokenizer.decode(render(template, QUESTION, tokenizer))
        response = tokenizer.decode(response_ids(template, " Because.", tokenizer)[:-1])
        assert (prompt + response).endswith(" Because.")
        assert not (prompt + response).endswith("  Because.")


def test_an_over_long_prompt_loses_the_end_of_its_message_and_keeps_the_template(tokenizer):
    long = (Turn(role="user", content="A post about cats and dogs. " * 20),)
    short = fitted("reddit", long, tokenizer, 40)
    ids = render("reddit", short, tokenizer)
    assert 30 <= len(ids) <= 40
    assert tokenizer.decode(ids).endswith("TL;DR:")
    assert long[0].content.startswith(short[0].content)
    with pytest.raises(RowFault, match="no room within 3 tokens"):
        fitted("reddit", long, tokenizer, 3)


def test_unknown_templates_are_refused():
    for template in ("instructions", "{prompt} and {prompt}"):
        with pytest.raises(ValueError, match="is none of plain, reddit"):
            check_template(template)


def tokens(tokenizer, **changes):
    settings = {"max_prompt_tokens": 40, "max_response_tokens": 12, "faults": "drop"}
    return Tokenisation(tokenizer=tokenizer, **{"template": "plain", "reads": "human_assistant", **settings, **changes})


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_long_rows_are_dropped_or_cut_and_counted(tokenizer, tmp_path):
    rows = [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": "Why? " * 60, "chosen": "Because.", "rejected": "No."},
        {"prompt": "And?", "chosen": "Because. " * 30, "rejected": "No."},
        {"prompt": "And?", "chosen": "x " * 30 + "a", "rejected": "x " * 30 + "b"},
    ]
    source = write(tmp_path / "rows.jsonl", rows)
    dropped = tokens(tokenizer).examples(read_comparisons([source]), "comparisons")
    assert len(dropped.kept) == 1
    assert {reason: len(some) for reason, some in dropped.rejected.items()} == {
        "seen before": 1,
        "prompt longer than 40 tokens": 1,
        "response longer than 12 tokens": 2,
    }
    with pytest.raises(ValueError, match=r"faults='error':\nleft out, seen before: 1"):
        dropped.require_none_left_out()
    cut = tokens(tokenizer, faults="truncate").examples(read_comparisons([source]), "comparisons")
    uncut = len(dropped.kept[0].responses[0])
    assert [len(row.responses[0]) for row in cut.kept] == [uncut, uncut, 12]
    assert cut.kept[2].responses[0][-1] != tokenizer.eos_token_id  # cut, not ended
    assert cut.kept[0].responses[0][-1] == tokenizer.eos_token_id
    assert all(len(row.prompt) <= 40 and len(row.reward_prompt) <= 40 for row in cut.kept)
    assert cut.rejected["both responses are the same once cut"][0].startswith("comparisons:4: ")
    assert "cut to fit: 4" in cut.summary("comparisons")


def test_the_reward_model_reads_its_own_prompt_and_the_same_response(tokenizer, tmp_path):
    source = write(tmp_path / "rows.jsonl", [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}])
    (row,) = tokens(tokenizer).examples(read_comparisons([source]), "comparisons").kept
    assert tokenizer.decode(row.reward_inputs[0][:-1]) == "###Human: Why? ###Assistant:  Because."
    assert row.best[len(row.prompt) :] == list(row.responses[0])
    splits = split_prompts([row, row])
    assert sum(map(len, splits.values())) == 1
    (prompt,) = splits["train"] or splits["held_out"]
    assert prompt["ids"] == list(row.prompt)
    assert prompt["reward_ids"] == list(row.reward_prompt)


@pytest.mark.parametrize("template", [*TEMPLATES, CHAT])
def test_every_text_begins_once(template, tmp_path):
    """With a tokenizer that puts a token in front of every text, and a chat template that writes it too."""
    tokenizer = byte_level_tokenizer(["Why? Because."] * 3, 300)
    begin = str(tokenizer.eos_token)  # any special token will do
    first = tokenizer.convert_tokens_to_ids(begin)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, first)])
    tokenizer.chat_template = begin + "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    source = write(tmp_path / "rows.jsonl", [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}])
    whole_rows = tokens(tokenizer, max_prompt_tokens=200, max_response_tokens=40, template=template, reads=template)
    (row,) = whole_rows.examples(read_comparisons([source]), "comparisons").kept
    for whole in (row.best, row.reward_inputs[1]):
        assert whole[0] == first
        assert first not in whole[1:-1]


def test_pairs_that_rows_disagree_about_are_left_out_and_pairs_they_agree_about_kept_once(tmp_path):
    def row(first, second, choice, confidence):
        return {"prompt": "A post", "summaries": [first, second], "choice": choice, "confidence": confidence}

    rows = [
        row("a", "b", 0, 4),
        row("b", " a", 0, 3),  # the same two, the other one preferred
        row("a", "b", 0, 1),
        row("a", "c", 0, 2),
        row("c", "a", 1, 9),  # the same two the other way round, the same one preferred
        {**row("a", "b", 0, 4), "prompt": "Another post"},
        {**row("a", "d", 1, 4), "prompt": "A post"},  # a fault, which contradicts nothing
        row("a", "d", 0, 3),
    ]
    two = [write(tmp_path / name, some) for name, some in (("one.jsonl", rows[:1]), ("two.jsonl", rows[1:]))]
    with pytest.raises(ValueError, match="one.jsonl: not one usable row of 1"):
        read_comparisons(two)  # the row that contradicts it may stand in another file
    found = read_comparisons([write(tmp_path / "all.jsonl", rows)])
    assert [(example.prompt[0].content, example.responses, example.confidence) for example in found.kept] == [
        ("A post", ("a", "c"), 3),
        ("Another post", ("a", "b"), 1),
        ("A post", ("a", "d"), 2),
    ]
    assert {reason: len(some) for reason, some in found.rejected.items()} == {
        "another row prefers the other of the same two responses": 3,
        "seen before": 1,
        "'confidence' is for one summary and 'choice' for the other": 1,
    }


def test_sources(tmp_path):
    assert HUB.fullmatch("hub:openai/summarize_from_feedback@comparisons:train").groupdict() == {
        "name": "openai/summarize_from_feedback", "config": "comparisons", "folder": None, "split": "train"
    }  # fmt: skip
    assert HUB.fullmatch("hub:Anthropic/hh-rlhf#helpful-base")["folder"] == "helpful-base"
    rows = [{"text": "é"}, {"text": "b"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_rows(tmp_path / "a.json") == read_rows(tmp_path / "b.jsonl") == rows
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a JSON list"):
        read_rows(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match=r"hub:NAME\[@CONFIG\]"):
        read_rows("openai/summarize_from_feedback")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.json").write_text("[]")
    assert len(fingerprints([tmp_path / "a.json", tmp_path / "d" / "a.json"])) == 2


def test_the_hub_is_asked_for_the_right_rows(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, *, data_dir, split):
        asked.append((name, config, data_dir, split))
        return [{"prompt": "Why?", "completion": "Because."}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_demonstrations(["hub:a/b@c#d:test"]).kept) == 1
    assert read_rows("hub:imdb") == [{"prompt": "Why?", "completion": "Because."}]
    assert asked == [("a/b", "c", "d", "test"), ("imdb", None, None, "train")]
    assert len(fingerprints(["hub:imdb"])["hub:imdb"]) == 64
