"""Prompts as their caller meant them: on their way into ids, and to a reward that is a function on texts."""

import inspect
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import small_run, unheard
from tokenizers import processors
from transformers import BatchEncoding

from benchmarks.data.preference_formats import Turn
from benchmarks.data.rendering import render
from models.policy.loading import load_policy
from models.texts.prompt_encoding import Frame, encode, padding_problems
from models.texts.retokenising import Said, Telling
from models.texts.retokenising import encode as told
from models.tiny import save_tiny, tiny_llama, tiny_tokenizer
from redistributors import REDISTRIBUTORS, LeaveOneOut, OwnRewards, Sparse
from rlhf_core import PerTokenReward, PPOTrainer, SpanReward, TokenReward
from rlhf_core.checks import check_needs
from rlhf_core.prompts import encoded
from rlhf_core.scorers.callables import METHODS, UNDEMANDING, TextReward, callable_why_not
from rlhf_core.types import Sequences

GIVEN = ["w2  w3", "w4 ?", "w5\nw6", "w7"]
BOS, EOS = 30, 1


def framed(before="<s>", after=""):
    """A word-level tokenizer that puts special tokens around every text."""
    tokenizer = tiny_tokenizer(vocab_size=30)
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<think>"]})
    named = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys([before, after]) if token]
    frame = processors.TemplateProcessing(single=f"{before} $A {after}".strip(), special_tokens=named)
    tokenizer.backend_tokenizer.post_processor = frame
    return tokenizer


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("plain"), "llama")


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bos")
    tiny_llama().save_pretrained(folder)
    framed().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("before", "after", "text", "ids"),
    [
        ("<s>", "", "w2 w3", [BOS, 2, 3]),
        ("<s>", "", "<s> w2 w3", [BOS, 2, 3]),
        ("<s>", "", "<s> <s> w2", [BOS, BOS, 2]),
        ("<s>", "", "w2 <s>", [BOS, 2, BOS]),
        ("<s>", "", "", [BOS]),
        ("<s>", "<eos>", "<s> w2 <eos>", [BOS, 2, EOS]),
        ("<s>", "<eos>", "w2 <eos>", [BOS, 2, EOS]),
        ("<s>", "<eos>", "<s> w2", [BOS, 2, EOS]),
        ("<eos>", "<eos>", "", [EOS, EOS]),
        ("", "<eos>", "w2", [2, EOS]),
    ],
)
def test_no_special_token_is_put_around_a_text_that_brings_it(before, after, text, ids):
    tokenizer = framed(before, after)
    assert encode(tokenizer, [text, text]) == [ids, ids]
    said = Said(prompt=text, pieces=(b"",), eos=False, finished=False)
    shown = told(tokenizer, Telling(add_special_tokens=True, eos="never"), said)
    unasked = after and not text.endswith(after)  # EOS is put by Telling.eos alone
    assert shown.ids == (ids[:-1] if unasked else ids)
    finished = Said(prompt=text, pieces=(b"",), eos=False, finished=True)
    assert told(tokenizer, Telling(add_special_tokens=True), finished).ids == (ids if after else [*ids, EOS])
    assert len(shown.silent) == len(shown.ids)


def test_a_template_that_writes_bos_itself_is_read_as_the_chat_template_reads_it(with_bos):
    policy = load_policy(with_bos)
    policy.tokenizer.chat_template = "{{ bos_token }} {% for m in messages %}{{ m.content }} {% endfor %}w9"
    talk = [{"role": "user", "content": "w2 w3"}]
    text = policy.tokenizer.apply_chat_template(talk, tokenize=False)
    ids = policy.tokenizer.apply_chat_template(talk, return_dict=False)
    assert ids == [BOS, 2, 3, 9] == policy.encode([text])[0]
    turns = (Turn(role="user", content="w2 w3"),)
    assert render("chat", turns, policy.tokenizer) == render("<s> {prompt} w9", turns, policy.tokenizer) == ids
    assert Frame.of(policy.tokenizer) == Frame(before=[BOS], after=[])


def test_ids_without_the_bos_of_the_tokenizer_are_taken_as_they_are_and_it_is_said(with_bos):
    policy = load_policy(with_bos)
    learner = PPOTrainer(policy, lambda prompts, responses: [0.0] * len(responses), Sparse(), small_run())
    with pytest.warns(UserWarning, match=r"begin without '<s>' \(\[30\]\), the BOS .* taken as they are"):
        rollout = learner.collect([[2, 3], [BOS, 4], [5], [6]])
    assert rollout.sequences.prompts() == [[2, 3], [BOS, 4], [5], [6]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.validate_ids([[BOS, 2], [BOS]])
        learner.collect(["w2", "<s> w3", "w4", "w5"])


@pytest.mark.parametrize(
    ("prompts", "pad", "padded"),
    [
        ([[9, 9, 2], [2, 3, 4]], 9, ["row 0 begins with 2"]),
        ([[2, 9], [3]], 9, ["row 0 ends with 1"]),
        ([[2, 9, 3]], 9, []),
        ([[2, 3]], None, []),
        ([[2, 3, 1], [4, 1]], 1, []),  # EOS may end a prompt
        ([[2, 3, 1], [4, 5, 1]], 1, []),
        ([[1, 2], [1, 3, 4]], 1, []),  # and begin one, as GPT-2's does
        ([[1, 2, 3], [4, 5, 6]], 1, ["row 0 begins with 1"]),
        ([[2, 3, 1], [4, 5, 6]], 1, ["row 0 ends with 1"]),
        ([[1, 2, 1], [4, 5, 1]], 1, ["row 0 begins with 1"]),
        ([[2, 1, 1], [3]], 1, ["row 0 ends with 2"]),
    ],
)
def test_padding_is_told_from_an_eos_that_is_meant(prompts, pad, padded):
    found = list(padding_problems(prompts, pad, {0, 1}))
    assert [problem.split(" of the")[0] for problem in found] == padded


def unchecked_ids(policy, prompts):
    """``encoded`` as users meet it, without the type checker of these tests in front."""
    return inspect.unwrap(encoded)(policy, TokenReward(lambda *_: []), prompts, small_run())


@pytest.mark.parametrize("padding", ["own", "eos", "none"])
def test_a_padded_batch_is_refused_in_every_form(tmp_path, padding):
    policy = load_policy(save_tiny(tmp_path, "llama", padding=padding))
    pad = {"own": policy.tokenizer.pad_token_id}.get(padding, EOS)
    rows = [[pad, pad, 5], [2, 3, 4]]
    forms = (rows, [row[::-1] for row in rows], torch.tensor(rows), np.array(rows), list(torch.tensor(rows)))
    for form in (*forms, [[pad, 2, 3], [2, 3, 4]]):
        with pytest.raises(ValueError, match=r"row 0 (begins|ends) with [12] of the padding id .* without it"):
            unchecked_ids(policy, form)
    batch = BatchEncoding({"input_ids": torch.tensor(rows), "attention_mask": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="a tokenizer's padded batch; .* Give the texts themselves"):
        unchecked_ids(policy, batch)
    assert unchecked_ids(policy, torch.tensor([[2, 3], [4, 5]])) == [[2, 3], [4, 5]]


@pytest.mark.parametrize("wrong", [torch.tensor(3), np.array(3), torch.tensor([[1.5, 2.0]]), torch.tensor([2, 3])])
def test_tensors_that_are_no_prompts_are_refused(plain, wrong):
    policy = load_policy(plain)
    with pytest.raises(ValueError, match="prompt"):
        unchecked_ids(policy, wrong)
    with pytest.raises(ValueError, match=r"ids \[-100\] outside the vocabulary"):
        unchecked_ids(policy, [[2, -100]])


def own(sequences):
    return [row["prompt"] for row in sequences.given]


class Heard:
    """A callable that notes the prompts it is given."""

    def __init__(self):
        self.prompts, self.responses = [], []

    def __call__(self, prompts, responses):
        self.prompts.extend(prompts)
        self.responses.extend(responses)
        return [float(len(response) % 3) for response in responses]


def test_a_callable_gets_its_callers_own_prompts_on_every_road(plain, tmp_path):
    heard = Heard()
    config = small_run(responses_per_prompt=2)
    learner = PPOTrainer(load_policy(plain), heard, LeaveOneOut(), config)
    rollout = learner.collect(GIVEN[:2])
    assert heard.prompts[:4] == own(rollout.sequences) == [GIVEN[0], GIVEN[0], GIVEN[1], GIVEN[1]]
    assert set(heard.prompts[4:]) == set(GIVEN[:2])  # shortened responses
    heard.prompts.clear()
    learner.evaluate(GIVEN)
    assert heard.prompts == GIVEN
    for steps in (2, 4):
        heard.prompts.clear()
        learner = PPOTrainer(load_policy(plain), heard, LeaveOneOut(), config)
        learner.fit(GIVEN[:2], steps, out=tmp_path / "run", eval_prompts=GIVEN[2:], eval_every=1, resume=True)
        assert set(heard.prompts) == set(GIVEN)
    samples = [json.loads(line) for line in Path(tmp_path, "run", "samples.jsonl").read_text().splitlines()]
    assert {sample["prompt"] for sample in samples} == set(GIVEN[2:])


def test_own_prompts_stay_with_their_rows(plain):
    """In any order, and where rows are drawn in parts; a function on spans gets them too, and one on ids' text."""
    policy, heard = load_policy(plain), Heard()
    learner = PPOTrainer(policy, heard, Sparse(), small_run(sampling_tokens=11))
    sequences = learner.collect(GIVEN).sequences
    assert own(sequences) == GIVEN
    assert sequences.prompts() == policy.encode(GIVEN)
    back = torch.tensor([3, 1])
    assert own(sequences.select(back)) == ["w7", "w4 ?"]
    both = Sequences.concatenate([sequences.select(back), sequences.select(torch.tensor([0]))])
    assert own(both) == ["w7", "w4 ?", "w2  w3"]
    spans = SpanReward(lambda prompts, responses: heard(prompts, responses) and [[] for _ in prompts], policy.decode)
    heard.prompts.clear()
    spans.score(both, frozenset())
    assert heard.prompts == own(both)
    heard.prompts.clear()
    assert learner.collect(policy.encode(GIVEN)).sequences.given == ()
    assert heard.prompts == ["w2 w3", "w4", "w5 w6", "w7"]  # what ids can tell
    with pytest.raises(ValueError, match="given holds 1 rows for 3 responses"):
        replace(both, given=({"prompt": "w7"},))


def test_a_callable_may_ask_for_special_tokens(with_bos):
    policy, heard = load_policy(with_bos), Heard()
    reward, config = TextReward(heard, policy.decode_with_special), small_run()
    rollout = PPOTrainer(policy, reward, Sparse(), config).collect(["w2 <think>"] * 4)
    names = policy.tokenizer.convert_ids_to_tokens
    assert heard.responses == [" " + " ".join(names(ids)) for ids in rollout.sequences.responses()]
    assert [text.endswith("<eos>") for text in heard.responses] == rollout.sequences.finished.tolist()
    assert policy.decode([[BOS, 2, 31, EOS]]) == ["w2"]
    assert policy.decode_with_special([[BOS, 2, 31, EOS]]) == ["<s> w2 <think> <eos>"]


def test_a_method_that_a_callable_cannot_serve_is_refused_with_those_it_can(plain):
    policy = load_policy(plain)

    def unmet(name, served):
        return [r for r in REDISTRIBUTORS[name]().needs if r.source == "reward" and not served(r)]

    undemanding = {name for name in REDISTRIBUTORS if not unmet(name, lambda request: False)}
    served = {name for name in REDISTRIBUTORS if not unmet(name, lambda request: not callable_why_not(request))}
    assert set(UNDEMANDING.split(", ")) == undemanding
    assert set(METHODS.split(", ")) == served
    for name in REDISTRIBUTORS.keys() - served:
        with pytest.raises(ValueError, match=f"these methods work with one: {METHODS}"):
            PPOTrainer(policy, lambda prompts, responses: [], REDISTRIBUTORS[name](), small_run())
    for reward in (PerTokenReward(unheard), SpanReward(unheard, policy.decode)):
        check_needs(OwnRewards(), policy, reward)
        with pytest.raises(ValueError, match=f"these methods work with one: OwnRewards, {UNDEMANDING}"):
            check_needs(REDISTRIBUTORS["abc"](), policy, reward)
    with pytest.raises(ValueError, match="these methods work with one"):
        check_needs(REDISTRIBUTORS["gradient"](), policy, TokenReward(unheard))
