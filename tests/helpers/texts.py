"""Tokenizers trained in milliseconds, and texts that are hard on them."""

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as cores
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "once upon a time there was a cat",
    "the cat sat on the mat and sang",
    "日本語のテスト 日本",
    "naïve café déjà vu",
] * 5
WORDS = ["once", "upon", "a", "time", "there", "was", "the", "cat", "sat", "on", "mat", "and", "sang"]
PIECES = [
    *("a", "b", "z", "Q", "the", " ", "  ", "\n", "cat", "once upon", "1", ".", "é", "e\u0301", "a\u0323\u0302"),
    *("日本", "語", "ーのテ", "😀", "👩\u200d👩\u200d👧", "🇯🇵", "𝔘", "ع", "\u202e", "\ufffd", "\u2028"),
]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)
"""ASCII, combining marks, CJK, emoji (joined ones and flags too), right to left, and the mark of a broken character."""


def byte_level(vocab_size=320, **special):
    """Byte-level BPE, as GPT-2's: every token is some bytes."""
    tokenizer = Tokenizer(cores.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, specials = pre_tokenizers.ByteLevel.alphabet(), ["<eos>", *special.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", **special)


def byte_fallback(*, eos=True, bos=False):
    """A unigram model with byte fallback, as SentencePiece's: words bring their space, unknown characters are bytes."""
    trained = Tokenizer(cores.Unigram())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS[:2], trainers.UnigramTrainer(vocab_size=60, show_progress=False))
    pieces = [(piece, -float(rank)) for rank, piece in enumerate(sorted(trained.get_vocab(), key=len, reverse=True))]
    specials = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    unigram = cores.Unigram([*specials, *((f"<0x{b:02X}>", -99.0) for b in range(256)), *pieces], 0, True)
    tokenizer = Tokenizer(unigram)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"unk_token": "<unk>", "bos_token": "<s>"} | ({"eos_token": "</s>"} if eos else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
