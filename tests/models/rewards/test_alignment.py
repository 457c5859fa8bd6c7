"""Which bytes a token stands for, and what two cuts of one text have in common."""

import pytest
import torch
from generated import tries
from hypothesis import given
from hypothesis import strategies as st
from texts import TEXTS, byte_fallback, byte_level
from transformers import AutoTokenizer, GPT2TokenizerFast

from models.texts.alignment import Crossing, Segments, boundaries, overlap, spell
from models.tiny import tiny_tokenizer
from rlhf_core.scorers.spans import as_spans, byte_offsets, ends_of_prefixes

TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def spelt(tokenizer, ids):
    return spell(tokenizer, ids, skip_special_tokens=True)


def require_spans_of(tokenizer, text):
    """The tokenizers library says which characters a token belongs to: its bytes must be bytes of these."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spelling = spelt(tokenizer, encoding["input_ids"])
    assert spelling.text == text
    assert spelling.ends[-1] == len(text.encode())
    offsets = byte_offsets(text)
    for (first, last), (start, end) in zip(encoding["offset_mapping"], as_spans(spelling.ends).tolist(), strict=True):
        assert offsets[first] <= start <= end <= offsets[last]


@each_tokenizer
@tries(60)
@given(text=TEXTS)
def test_the_bytes_of_tokens_follow_each_other_and_lie_in_the_characters_they_belong_to(tokenizer, text):
    require_spans_of(tokenizer, text)


def test_so_they_do_under_real_tokenizers(data_folder):
    gpt2 = data_folder / "gpt2_tokenizer"
    texts = ["Once upon 😀 a né", "日本語 \u0301e 👩\u200d👩\u200d👧", " lead\n\n  trail ", "𝔘nicode"]
    for tokenizer in (
        AutoTokenizer.from_pretrained(str(data_folder / "stories260K")),
        GPT2TokenizerFast(str(gpt2 / "vocab.json"), str(gpt2 / "merges.txt")),
    ):
        for text in texts:
            require_spans_of(tokenizer, text)


@each_tokenizer
@tries(60)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 12))
def test_sampled_ids_end_where_what_they_decode_to_ends(tokenizer, seed, length):
    """Ids as a policy draws them: not the tokenizer's own cut, and often no UTF-8."""
    ids = torch.randint(len(tokenizer), (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    spelling = spelt(tokenizer, ids)
    assert spelling.text == decoded(tokenizer, ids)
    assert list(spelling.ends) == sorted(spelling.ends)
    assert spelling.ends[-1] == len(spelling.text.encode())
    for k, end in enumerate(spelling.ends):
        beginning = decoded(tokenizer, ids[: k + 1])
        if "\ufffd" not in spelling.text and "\ufffd" not in beginning:
            assert spelling.text.encode()[:end].decode() == beginning


def test_a_cut_character_gives_every_token_its_own_bytes():
    tokenizer = TOKENIZERS["byte-fallback"]
    ids = tokenizer("the😀", add_special_tokens=False)["input_ids"]
    assert spelt(tokenizer, ids[-4:]).ends == (1, 2, 3, 4)
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer("é😀", add_special_tokens=False)["input_ids"]
    assert spelt(tokenizer, ids).ends == (2, 3, 4, 5, 6)


def test_special_tokens_stand_for_no_byte_where_they_are_left_out():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer("a<eos>b", add_special_tokens=False)["input_ids"]
    assert spelt(tokenizer, ids).ends == (1, 1, 2)
    assert spell(tokenizer, ids, skip_special_tokens=False).ends == (1, 6, 7)


def test_words_own_the_space_before_them():
    assert spelt(tiny_tokenizer(), [2, 13, 1, 4]).ends == (2, 6, 6, 9)


def test_an_id_beyond_the_tokenizer_stands_for_nothing():
    tokenizer = TOKENIZERS["byte-level"]
    a, b = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert spelt(tokenizer, [a, len(tokenizer) + 3, b]).ends == (1, 1, 2)


@pytest.mark.parametrize(
    ("prefixes", "text", "ends"),
    [
        (["a", "a b", "a b"], "a b", [1, 3, 3]),
        (["a", "a\ufffd", "a\ufffd", "a😀", "a😀b"], "a😀b", [1, 2, 3, 5, 6]),  # four bytes, three tokens
        (["a\ufffd", "a€"], "a€", [2, 4]),  # a token that ends inside the character after it
        (["\ufffd", "\ufffd\ufffd"], "\ufffd\ufffd", [3, 6]),  # bytes that are no text
        ([], "", []),
    ],
)
def test_ends_told_by_what_the_first_tokens_decode_to(prefixes, text, ends):
    assert ends_of_prefixes(prefixes, text) == ends


@each_tokenizer
@tries(30)
@given(text=TEXTS)
def test_decoding_one_token_more_at_a_time_finds_the_same_ends_between_characters(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    exact = spelt(tokenizer, ids).ends
    told = ends_of_prefixes([decoded(tokenizer, ids[: k + 1]) for k in range(len(ids))], text)
    assert told == sorted(told)
    characters = set(byte_offsets(text))
    for ours, theirs, k in zip(exact, told, range(len(ids))):
        if ours in characters and "\ufffd" not in text:
            assert ours == theirs, (k, text)


def segments(*lengths, eos=False, start=0):
    return Segments(spans=as_spans(torch.tensor(lengths).cumsum(0).tolist()) + start, eos=eos)


def test_overlap_by_hand():
    """abcdef as ab|cde|f by the policy, as abc|d|ef by the reward model."""
    policy, reward = (2, 3, 1), (3, 1, 2)
    rows = [[2 / 3, 1 / 3, 0], [0, 1, 0], [0, 1 / 2, 1 / 2]]
    torch.testing.assert_close(overlap(segments(*reward), segments(*policy)), torch.tensor(rows))
    with_slot = torch.tensor([[*row, 0.0] for row in rows])
    eos = torch.tensor([[0.0, 0, 0, 1]])
    torch.testing.assert_close(overlap(segments(*reward), segments(*policy, eos=True)), with_slot)
    both = overlap(segments(*reward, eos=True), segments(*policy, eos=True))
    torch.testing.assert_close(both, torch.cat([with_slot, eos]))
    lonely = overlap(segments(*reward, eos=True), segments(*policy))
    torch.testing.assert_close(lonely, torch.cat([torch.tensor(rows), eos[:, 1:]]))


def test_a_token_that_reaches_beyond_the_response_is_shared_by_what_lies_in_it():
    reward = Segments(spans=torch.tensor([[-3, 1], [1, 4], [4, 9], [9, 12]]), eos=False)
    shares = overlap(reward, segments(2, 3, eos=True))
    torch.testing.assert_close(shares, torch.tensor([[1, 0, 0], [1 / 3, 2 / 3, 0], [0, 1, 0], [0, 0, 1]]))


def test_eos_alone():
    empty = segments(eos=True)
    assert overlap(empty, empty).tolist() == [[1]]
    assert boundaries(empty, empty).tolist() == [0]


CUTS = st.lists(st.integers(0, 4), min_size=1, max_size=8)


@tries(100)
@given(ours=CUTS, theirs=CUTS, eos=st.booleans(), their_eos=st.booleans(), start=st.integers(-3, 3))
def test_what_reward_tokens_earned_is_handed_on_whole(ours, theirs, eos, their_eos, start):
    reward, policy = segments(*theirs, eos=their_eos, start=start), segments(*ours, eos=eos)
    shares = overlap(reward, policy)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(len(reward)))
    earned = torch.randn(2, len(reward) + 2, generator=torch.Generator().manual_seed(0)).double()
    earned[:, len(reward) :] = 0
    shape = (2, len(policy) + 3)
    carried = Crossing(reward=(reward, reward), policy=(policy, policy), shape=shape).carry(earned)
    torch.testing.assert_close(carried.sum(1), earned.sum(1), atol=1e-6, rtol=1e-6)
    assert not carried[:, len(policy) :].any()


@each_tokenizer
@tries(30)
@given(text=TEXTS, eos=st.booleans())
def test_the_same_tokenizer_on_both_sides_changes_nothing(tokenizer, text, eos):
    spans = as_spans(spelt(tokenizer, tokenizer("a" + text, add_special_tokens=False)["input_ids"]).ends)
    same = Segments(spans=spans, eos=eos)
    if bool((spans[:, 1] > spans[:, 0]).all()):
        assert torch.equal(overlap(same, same), torch.eye(len(same)))
        assert boundaries(same, same).tolist() == list(range(len(same)))


def test_boundaries_by_hand():
    """abcdef: before ab nothing was read, before cde nothing whole (abc is open), before f abc and d, at EOS all."""
    policy, reward = segments(2, 3, 1, eos=True), segments(3, 1, 2)
    assert boundaries(reward, policy).tolist() == [0, 0, 2, 3]
    assert boundaries(segments(3, 1, 2, eos=True), policy).tolist() == [0, 0, 2, 3]
    crossing = Crossing(reward=(reward,), policy=(policy,), shape=(1, 5))
    states, end = torch.tensor([[10.0, 11, 12]]), torch.tensor([13.0])
    assert crossing.before(states, end).tolist() == [[10, 10, 12, 13, 0]]
    assert crossing.reads_ends
    open_end = Segments(spans=torch.tensor([[0, 3], [3, 4], [4, 7]]), eos=False)  # runs on into a template
    assert boundaries(open_end, policy).tolist() == [0, 0, 2, 2]
