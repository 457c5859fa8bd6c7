"""Heat maps of a rollout: texts for ids, padding left out, split characters joined, and templates apart."""

from dataclasses import replace

import pytest
import torch
from fakes import rollout_of, sequences_of
from texts import byte_level

from rlhf_core.pages.credit_maps import credit_maps, own_words, prompt_parts

TOKENIZER = byte_level()


def decode(rows):
    return TOKENIZER.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def rollout(*texts):
    """Responses of those texts, to prompts of their own."""
    rows = [TOKENIZER(text)["input_ids"] for text in texts]
    sequences = sequences_of([[1]] * len(rows), rows)
    return rollout_of(sequences, [float(row) for row in range(len(rows))])


def test_every_response_has_its_own_tokens_and_numbers():
    both = rollout("the cat sat", "the")
    numbers = torch.arange(1.0, both.kl.shape[1] + 1) * both.sequences.response_mask
    lengths = both.sequences.response_lengths.tolist()
    truth = [[-1.0] * length for length in lengths]
    first, second = credit_maps(both, {"mine": numbers}, decode, reference_rows={"truth": truth})
    assert "".join(first.tokens) == "the cat sat"
    assert "".join(second.tokens) == "the"
    assert first.rows["mine"] == tuple(range(1, lengths[0] + 1))
    assert second.reference_rows["truth"] == (-1.0,) * lengths[1]
    assert (first.score, second.score) == (0.0, 1.0)


def test_the_credit_of_a_split_character_is_the_sum_over_its_tokens():
    (shown,) = credit_maps(one := rollout("a😀"), {"mine": torch.arange(1.0, 6.0)[None]}, decode)
    assert one.sequences.response_lengths.tolist() == [5]
    assert shown.tokens == ("a", "😀")
    assert shown.counts == (1, 4)
    assert shown.rows["mine"] == (1.0, 14.0)


def test_the_callers_own_prompt_is_shown_where_the_model_read_another():
    both = rollout("the cat", "the")
    written = replace(both.sequences, given=({"prompt": "a river"}, {"prompt": decode([[1]])[0]}))
    first, second = credit_maps(replace(both, sequences=written), {}, decode)
    assert (first.prompt, first.read) == ("a river", decode([[1]])[0])
    assert (second.prompt, second.read) == (decode([[1]])[0], None)


CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("text", "given", "parts"),
    [
        ("<user>Why?<assistant>", {"prompt": "Why?"}, ("<user>", "Why?", "<assistant>")),
        ("Why? is it: Why?", {"prompt": "Why?"}, ("Why? is it: ", "Why?", "")),
        ("Be kind. <user>Why?</user>", {"prompt": CHAT}, ("Be kind. <user>", "Why?", "</user>")),
        ("<s>Why?", {"prompt": " Why? "}, ("<s>", "Why?", "")),
        ("<unk>?", {"prompt": "Why?"}, ("", "Why?", "")),
        ("Why?", {"answer": "why?"}, ("", "Why?", "")),
        ("Why?", {"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, ("", "Why?", "")),
    ],
)
def test_a_template_stands_apart_from_the_callers_own_words(text, given, parts):
    assert prompt_parts(text, own_words(given)) == parts
