"""Texts of tokens: characters cut into several tokens are joined, special tokens have names, spaces are kept."""

from itertools import accumulate

import pytest
from hypothesis import given
from texts import TEXTS, byte_fallback, byte_level

from rlhf_core.pages.token_texts import BROKEN, TokenText, token_texts

BYTES, PIECES = byte_level(), byte_fallback()
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])


def decoder(tokenizer, special=False):
    return lambda rows: tokenizer.batch_decode(
        rows, skip_special_tokens=not special, clean_up_tokenization_spaces=False
    )


def encoded(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@TOKENIZERS
def test_a_cut_character_is_one_text(tokenizer):
    ids = encoded(tokenizer, "the 😀 cat")
    said = token_texts(decoder(tokenizer), ids, before=encoded(tokenizer, "a"), finished=False)
    assert "".join(one.text for one in said).strip() == "the 😀 cat"
    assert [one.tokens for one in said if "😀" in one.text] == [4]
    assert sum(one.tokens for one in said) == len(ids) > len(said)


@TOKENIZERS
@given(text=TEXTS)
def test_any_text_is_said_whole_by_all_of_its_tokens(tokenizer, text):
    ids = encoded(tokenizer, text)
    said = token_texts(decoder(tokenizer), ids, before=encoded(tokenizer, "a"), finished=False)
    assert sum(one.tokens for one in said) == len(ids)
    whole, start = decoder(tokenizer)([[*encoded(tokenizer, "a"), *ids], encoded(tokenizer, "a")])
    assert BROKEN in text or start + "".join(one.text for one in said) == whole


def test_words_keep_their_space_where_a_tokenizer_decodes_them_without():
    ids = encoded(PIECES, "once upon")
    texts = [one.text for one in token_texts(decoder(PIECES), ids, before=encoded(PIECES, "a"), finished=False)]
    assert "".join(texts) == " once upon"
    assert "".join(one.text for one in token_texts(decoder(PIECES), ids, finished=False)) == f"⟨{ids[0]}⟩once upon"


def test_bytes_that_make_no_text_stay_what_they_are():
    ids = encoded(BYTES, "😀")
    ends = list(accumulate(1 for _ in ids))
    said = token_texts(decoder(BYTES), [*ids[:-1], *encoded(BYTES, "the")], finished=False)
    assert all(BROKEN in one.text for one in said[: ends[-2]])
    assert sum(one.tokens for one in said) == len(ids) - 1 + len(encoded(BYTES, "the"))
    assert said[-1].text.endswith("e")


def test_special_tokens_have_names():
    eos = BYTES.eos_token_id
    ids = [*encoded(BYTES, "the"), eos]
    assert token_texts(decoder(BYTES), ids, finished=True)[-1] == TokenText(text="⟨eos⟩")
    assert token_texts(decoder(BYTES), ids, finished=False)[-1].text == f"⟨{eos}⟩"
    assert token_texts(decoder(BYTES), [eos, *ids], finished=True)[0].text == f"⟨{eos}⟩"
    assert token_texts(decoder(BYTES, special=True), [eos, *ids], finished=True)[0].text == "<eos>"
    assert token_texts(decoder(BYTES), [], finished=False) == []
