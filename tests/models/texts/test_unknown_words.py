"""Words that a policy's tokenizer has no token for are said once."""

import warnings

import pytest

from models import load_policy
from models.texts import unknown_words as said_of
from models.texts.unknown_words import unknown_words
from models.tiny import save_tiny, tiny_tokenizer
from redistributors import Sparse
from rlhf_core import PPOConfig, PPOTrainer

CONFIG = PPOConfig(rollout_batch_size=2, minibatch_size=1, max_length=(4, 4))


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(said_of, "SAID", set())


def test_texts_with_unknown_words_are_counted_and_the_first_is_shown():
    tokenizer, texts = tiny_tokenizer(), ["w2 w3", "what is w4", "w5 that"]
    said = unknown_words(tokenizer, texts, tokenizer(texts)["input_ids"])
    assert said.startswith("2 of 3 texts hold words that the policy's tokenizer does not know and reads as '<unk>'")
    assert "The first is 'what is w4': 2 of its 3 tokens ('what', 'is')." in said
    assert unknown_words(tokenizer, texts[:1], [[2, 3]]) == ""


@pytest.mark.parametrize("meaning", ["eos_token", "bos_token", "pad_token"])
def test_an_unknown_token_with_another_meaning_is_not_asked(meaning):
    tokenizer = tiny_tokenizer()
    setattr(tokenizer, meaning, "<unk>")
    assert unknown_words(tokenizer, ["what"], [[0]]) == ""


def test_a_tokenizer_without_an_unknown_token_is_not_asked():
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = None
    assert unknown_words(tokenizer, ["what"], [[0]]) == ""


def test_one_warning_for_all_texts_and_steps(tmp_path):
    folder = save_tiny(tmp_path, "llama", hidden_size=16, n_layers=1)
    policy = load_policy(folder)
    assert policy.encode(["w2"]) == [[2]]
    with pytest.warns(UserWarning, match="1 of 2 texts"):
        assert policy.encode(["w2", "what"]) == [[2], [0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.encode(["who"])
        policy.encode_responses(["who"])
        load_policy(folder).encode(["who"])


def test_the_warning_names_the_line_of_the_caller(tmp_path):
    """However deep in the project the texts become ids."""
    policy = load_policy(save_tiny(tmp_path, "llama", hidden_size=16, n_layers=1))
    trainer = PPOTrainer(policy, lambda prompts, responses: [0.0] * len(responses), Sparse(), CONFIG)
    with pytest.warns(UserWarning, match="does not know") as said:
        trainer.collect(["what is w4"])
    assert [one.filename for one in said] == [__file__]


@pytest.mark.parametrize("way", ["encode_responses", "encode_chats"])
def test_responses_and_chats_are_looked_at_too(tmp_path, way):
    policy = load_policy(save_tiny(tmp_path, "llama", hidden_size=16, n_layers=1))
    policy.tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    given = {"encode_responses": ["who"], "encode_chats": [[{"role": "user", "content": "who"}]]}
    with pytest.warns(UserWarning, match=r"1 of 1 text holds .* The first is .*who.*: 1 of its \d token"):
        getattr(policy, way)(given[way])
