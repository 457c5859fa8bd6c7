"""Prompts that are more than strings: chats, rows with further columns, and tables of rows."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from fakes import TablePolicy, small_run, unheard
from texts import byte_level
from tokenizers.processors import TemplateProcessing

from benchmarks.runs.constant_score import ConstantScore
from models.policy.loading import load_policy
from models.rewards.ensemble import RewardEnsemble
from models.tiny import tiny_llama
from redistributors import LeaveOneOut, Sparse
from rlhf_core import PPOTrainer, TextReward, TokenReward
from rlhf_core.prompts import encoded, own_row, shuffled_batch
from rlhf_core.run.identity import prompt_settings
from rlhf_core.scorers.aggregation import Mean

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + TEMPLATE


def asked(question):
    return [{"role": "system", "content": "the cat"}, {"role": "user", "content": question}]


QUESTIONS = ["once upon", "the  cat?", "a time\n", "café"]
CHATS = [asked(question) for question in QUESTIONS]
ROWS = [{"prompt": chat, "answer": len(question)} for chat, question in zip(CHATS, QUESTIONS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama with byte-level BPE, whose tokenizer puts BOS before every text and has a chat template."""
    folder = tmp_path_factory.mktemp("chatty")
    tokenizer = byte_level(bos_token="<s>")
    frame = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = frame
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    tiny_llama(vocab_size=len(tokenizer), context=128, eos_ids=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def policy(folder):
    return load_policy(folder)


def read(policy, prompts):
    """``encoded`` as users meet it, without the type checker of these tests in front."""
    return inspect.unwrap(encoded)(policy, TokenReward(unheard), prompts, small_run())


@pytest.mark.parametrize("begin", ["{{ bos_token }}", ""], ids=["template writes BOS", "template writes none"])
def test_a_chat_is_what_the_tokenizers_template_writes_with_one_bos(policy, begin):
    tokenizer = policy.tokenizer
    tokenizer.chat_template = begin + TEMPLATE
    written = tokenizer.apply_chat_template(CHATS, add_generation_prompt=True, tokenize=False)
    ids = read(policy, CHATS)
    assert [tokenizer.decode(row) for row in ids] == [
        f"<s><|system|>the cat\n<|user|>{question}\n<|assistant|>" for question in QUESTIONS
    ]
    assert ids == read(policy, written)  # a chat and the text that the template makes of it are one prompt
    if begin:
        assert ids == tokenizer.apply_chat_template(CHATS, add_generation_prompt=True, return_dict=False)
    for row in ids:
        assert [place for place, token in enumerate(row) if token == tokenizer.bos_token_id] == [0]
        assert tokenizer.eos_token_id not in row


@pytest.mark.parametrize("template", [None, STRICT], ids=["none", "strict"])
def test_chats_that_cannot_be_written_are_refused_with_the_way_out(policy, template):
    policy.tokenizer.chat_template = template
    words = {
        None: "has no chat template: set policy.tokenizer.chat_template .*, or write the chats as texts",
        STRICT: "refuses prompt 0: .*begin with the user; prompt 2: .*begin with the user$",
    }
    with pytest.raises(ValueError, match=words[template]):
        read(policy, [CHATS[0], CHATS[1][1:], CHATS[2]])
    with pytest.raises(ValueError, match="prompts are chats, and TablePolicy reads texts and token ids only"):
        read(TablePolicy(), CHATS)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[{"role": "user"}]], "prompt 0 has a message that is not {'role': a text, 'content': ...}: {'role': 'user'}"),
        ([CHATS[0], [*CHATS[1], "Because"]], "prompt 1 has a message that is not .*: 'Because'"),
        ([[{"role": "user", "content": "\ud800"}]], "prompt 0 is not valid Unicode"),
        (
            [[*CHATS[0], {"role": "assistant", "content": "Because"}]],
            "prompt 0 ends with a message of the assistant, .*: leave it out, or, .* continue_final_message=True",
        ),
        (CHATS[0], "prompt 0 is a row without 'prompt'; .*one message of a chat\\? A chat is a list of them"),
        (ROWS[0], r"got a mapping of \['prompt', 'answer'\]; for a single row give \[row\], for columns datasets"),
        (DatasetDict({"train": Dataset.from_list(ROWS)}), r"\['train'\]; .* for a data set of several splits one"),
        (Dataset.from_list(ROWS).to_pandas(), "a pandas object; give frame.to_dict"),
        (iter(ROWS), "has no length; of an iterator give list"),
        ([{"question": "w2"}], r"prompt 0 is a row without 'prompt'; it has \['question'\]"),
        ([{"prompt": "w2", 3: 1}], r"prompt 0 is a row with columns that are not named by texts: \[3\]"),
        ([{"prompt": {"prompt": "w2"}}], "prompt 0 must be a text, .*, got {'prompt': 'w2'}"),
        ([{"prompt": None}, {"prompt": [1.5]}], r"prompt 0 must be .*, got None; prompt 1 must be .*, got \[1.5\]"),
        (
            [*ROWS[:2], "w2", {"prompt": CHATS[2]}],
            r"prompt 2 has no 'answer', which others have \(and 1 more likewise, the last prompt 3\)",
        ),
        ([*CHATS, "w2"], "prompts must be of one kind, got 4 chats and 1 texts"),
        ([{"prompt": None}] * 10, r"got None \(and 9 more likewise, the last prompt 9\)$"),
        ([{"prompt": float(n)} for n in range(10)], "prompt 7 .*; and 2 more"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused_with_every_fault(policy, prompts, words):
    with pytest.raises(ValueError, match=words):
        read(policy, prompts)


def test_rows_hold_prompts_of_any_kind(policy):
    ids = policy.encode(QUESTIONS)
    for prompts in (QUESTIONS, ids, [np.array(row) for row in ids]):
        assert read(policy, [{"prompt": prompt, "answer": 1} for prompt in prompts]) == ids
    assert own_row({"prompt": ids[0], "answer": 1}) == {"answer": 1}
    assert own_row({"prompt": "w2", "answer": 1}) == {"prompt": "w2", "answer": 1}
    assert own_row(ids[0]) == {}


class Library:
    """Rows by number and nothing else, read one at a time."""

    column_names = ("prompt", "answer")

    def __init__(self, rows):
        self.rows, self.held = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        assert type(place) is int
        if place >= len(self.rows):
            raise IndexError(place)
        self.held.append(place)
        return dict(self.rows[place])

    def __iter__(self):
        return (self[place] for place in range(len(self)))


def test_of_a_table_a_step_reads_its_own_rows():
    library, config = Library(ROWS), small_run(responses_per_prompt=2)
    first = [shuffled_batch(library, config, step) for step in range(2)]
    assert len(library.held) == 4
    assert sorted(row["answer"] for batch in first for row in batch) == sorted(row["answer"] for row in ROWS)


class Judge:
    """Notes what it is given; how near a response's length is to the answer."""

    def __init__(self):
        self.heard = []

    def __call__(self, prompts, responses, answer):
        self.heard += zip(prompts, answer, strict=True)
        return [-abs(len(response) - wanted) / 10 for response, wanted in zip(responses, answer, strict=True)]


@pytest.mark.parametrize("table", [list, Dataset.from_list, Library], ids=["list", "dataset", "library"])
def test_rows_of_chats_with_an_answer_train_and_go_on(folder, table, tmp_path):
    """Chats and answers in a table, a function that names the column, a run, and the same run again."""
    judge, config = Judge(), small_run(responses_per_prompt=2)
    wanted = [(row["prompt"], row["answer"]) for row in ROWS]
    for steps in (1, 3):
        trainer = PPOTrainer(load_policy(folder), judge, LeaveOneOut(), config)
        trainer.fit(table(ROWS[:3]), steps, out=tmp_path, eval_prompts=table(ROWS[3:]), eval_every=1, resume=True)
    assert all(pair in wanted for pair in judge.heard)
    assert all(pair in judge.heard for pair in wanted)
    lines = [json.loads(line) for line in Path(tmp_path, "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    samples = [json.loads(line) for line in Path(tmp_path, "samples.jsonl").read_text().splitlines()]
    assert {sample["prompt"] for sample in samples} == {"<|system|>the cat\n<|user|>café\n<|assistant|>"}
    other = [*ROWS[:2], ROWS[2] | {"answer": 0}]
    with pytest.raises(ValueError, match="prompts was '3 prompts, sha256 .* and is '3 prompts"):
        trainer.fit(table(other), 3, out=tmp_path, eval_prompts=table(ROWS[3:]), eval_every=1, resume=True)


def test_the_same_prompts_in_a_list_and_in_a_table_are_the_same_run(policy):
    ids = read(policy, CHATS)
    known = prompt_settings(ids, [], ROWS, ())
    assert known == prompt_settings(ids, [], Dataset.from_list(ROWS), ())
    assert known == prompt_settings(ids, [], [dict(reversed(row.items())) for row in ROWS], ())
    others = ([*ROWS[1:], ROWS[0]], CHATS, [row | {"answer": str(row["answer"])} for row in ROWS])
    assert len({prompt_settings(ids, [], other, ())["prompts"] for other in (ROWS, *others)}) == 4


def test_a_function_inside_an_ensemble_gets_the_columns(policy):
    judge = Judge()
    both = RewardEnsemble([TextReward(judge, policy.decode), TokenReward(lambda p, r: [0.0] * len(r))], Mean())
    constant = ConstantScore(reward=TextReward(judge, policy.decode), value=1.0)
    for reward in (both, constant):
        learner = PPOTrainer(policy, reward, Sparse(), small_run())
        assert len(learner.collect(ROWS).scores) == 4
        with pytest.raises(ValueError, match="asks for the column 'answer'"):
            learner.collect(CHATS)
    assert judge.heard == [(row["prompt"], row["answer"]) for row in ROWS]
    assert not hasattr(RewardEnsemble([Constant()], Mean()), "validate_columns")


class Constant:
    """A reward model that is not a function."""

    def provides(self, request):
        return False

    def score(self, sequences, needs):
        raise AssertionError("nobody asked for a score")


def test_a_small_model_learns_from_rows_of_chats(data_folder, tmp_path):
    """stories260K, given a template: rows and chats on a pretrained model and its own tokenizer."""
    if not (data_folder / "stories260K").is_dir():
        pytest.skip(f"no stories260K in {data_folder}")
    policy = load_policy(str(data_folder / "stories260K"))
    policy.tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}"
    names = ["Lily", "Tom", "Anna", "Max"]
    rows = [{"prompt": [{"role": "user", "content": f"One day, {name}"}], "name": name} for name in names]
    heard = []

    def tells_of(prompts, responses, name):
        heard.extend(prompt[0]["content"] == f"One day, {own}" for prompt, own in zip(prompts, name))
        return [float(response.count(own)) for response, own in zip(responses, name)]

    trainer = PPOTrainer(policy, tells_of, Sparse(), small_run())
    rollout = trainer.collect(Dataset.from_list(rows))
    assert [row.count(policy.tokenizer.bos_token_id) for row in rollout.sequences.prompts()] == [1] * 4
    assert policy.decode(rollout.sequences.prompts()) == [f"One day, {name} " for name in names]
    trainer.fit(rows, 2, out=tmp_path / "run")
    assert heard
    assert all(heard)
