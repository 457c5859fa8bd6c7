"""Move texts between two tokenizers: decode the policy's tokens, and encode them again for the reward model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.texts.alignment import SPACE, Segments, spell
from models.texts.prompt_encoding import Frame
from rlhf_core.names import nearest
from rlhf_core.scorers.spans import agreement, as_spans, byte_offsets

Eos = Literal["finished", "always", "never"]
PROBE = "The café\n fi\ufb01"
"""Capitals, an accent, a line's end and a ligature: what normalisers change."""
BEYOND = torch.iinfo(torch.long).max
SHOWN = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class Telling:
    """How a policy's prompt and response are prepared for a reward model, as one text.

    ``prompt`` renders the policy's prompt the way the reward model was trained to see it, up to where the response
    starts; ``after`` follows the response. ``add_special_tokens`` as in transformers: whether the reward tokenizer puts
    its own BOS, or [CLS] ... [SEP], around the whole. ``eos`` says after which responses its EOS is put, where it has
    one: those that the policy ended, all, or none.

    Raises:
        ValueError: another ``eos``.
    """

    add_special_tokens: bool
    eos: Eos = "finished"
    prompt: Callable[[str], str] = str
    after: str = ""

    def __post_init__(self) -> None:
        known = get_args(Eos)
        if self.eos not in list(known):
            raise ValueError(
                f"Telling: eos must be one of {', '.join(known)}, got {self.eos!r}{nearest(self.eos, known)}"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Said:
    """A policy's row as text: the prompt, and the bytes of each response token but EOS (of none, where the tokenizer
    calls the token special)."""

    prompt: str
    pieces: tuple[bytes, ...]
    eos: bool
    finished: bool

    @property
    def response(self) -> str:
        """The whole response."""
        return b"".join(self.pieces).decode()

    @property
    def segments(self) -> Segments:
        """Where the policy's tokens stand in it."""
        ends = torch.tensor([len(piece) for piece in self.pieces], dtype=torch.long).cumsum(0)
        return Segments(spans=as_spans(ends.tolist()), eos=self.eos)

    def altered(self, keep: Sequence[bool], absent: bytes) -> "Said":
        """With ``absent`` in the place of every token that is not kept, EOS counted. A character that lost a part of
        itself shows as U+FFFD, and a response that lost its EOS is not finished."""
        pieces = tuple(piece if kept else absent for piece, kept in zip(self.pieces, keep, strict=False))
        ended = not self.eos or keep[-1]
        if not ended:
            pieces += (absent,)
        text = b"".join(pieces).decode(errors="replace").encode()
        return Said(prompt=self.prompt, pieces=(text,), eos=self.eos and ended, finished=self.finished and ended)


def say(
    tokenizer: PreTrainedTokenizerBase,
    eos_ids: Sequence[int],
    prompt: Sequence[int],
    response: Sequence[int],
    *,
    finished: bool,
) -> Said:
    """Decode a row of the policy once, as a whole. Text that a tokenizer writes only between tokens (a leading space)
    belongs to the token after it. A character that prompt and response share is the first response token's."""
    eos = bool(response) and response[-1] in eos_ids
    ids = [*prompt, *response[: len(response) - eos]]
    spelling = spell(tokenizer, ids, skip_special_tokens=True)
    raw, ends = spelling.text.encode(), spelling.ends
    start = ends[len(prompt) - 1]
    while start < len(raw) and raw[start] & 0b11000000 == 0b10000000:
        start -= 1
    cuts = [start, *ends[len(prompt) :]]
    pieces = tuple(raw[a:b] for a, b in pairwise(cuts))
    return Said(prompt=raw[:start].decode(), pieces=pieces, eos=eos, finished=finished)


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoded:
    """A row in the reward model's tokens; ``silent`` are those its tokenizer put around the text, and ``eos`` is
    whether EOS was put after it by ``Telling.eos``, which is then the last."""

    ids: list[int]
    silent: list[bool]
    eos: bool
    spans: Int[Tensor, "spoken 2"] | None
    """Bytes of the text that each token which is not silent was made of, as its tokenizer says; several may be made of
    one character. None if it does not say."""


def encode(tokenizer: PreTrainedTokenizerBase, how: Telling, said: Said) -> Encoded:
    """The row as ``how`` says."""
    text = how.prompt(said.prompt) + said.response + how.after
    encoding = tokenizer(
        text,
        add_special_tokens=how.add_special_tokens,
        return_special_tokens_mask=True,
        return_offsets_mapping=tokenizer.is_fast,
    )
    ids, silent = list(encoding["input_ids"]), [bool(flag) for flag in encoding["special_tokens_mask"]]
    spans = None
    if tokenizer.is_fast:
        spoken = zip(encoding["offset_mapping"], silent, strict=True)
        spans = _byte_spans(text, [offsets for offsets, mute in spoken if not mute])
    if how.add_special_tokens:
        once = Frame.of(tokenizer).once(ids)
        ids, silent = ids[once], silent[once]
    eos = tokenizer.eos_token_id
    if ids and silent[-1] and ids[-1] == eos:  # whether it belongs there is not for the tokenizer to say
        ids, silent = ids[:-1], silent[:-1]
    wanted = eos is not None and {"finished": said.finished, "always": True, "never": False}[how.eos]
    brought = ids[-1:] == [eos] and not silent[-1]
    if not wanted or brought:
        return Encoded(ids=ids, silent=silent, eos=False, spans=spans)
    return Encoded(ids=[*ids, eos], silent=[*silent, True], eos=True, spans=spans)


def _byte_spans(text: str, offsets: Sequence[tuple[int, int]]) -> Int[Tensor, "spoken 2"]:
    """Offsets in characters as bytes; a token made of nothing stands with the character it precedes."""
    place, last = byte_offsets(text), len(text)
    spans = [(place[start], place[max(end, min(start + 1, last))]) for start, end in offsets]
    return torch.tensor(spans, dtype=torch.long).reshape(-1, 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class Told:
    """A row in the reward model's tokens: its prompt, its response, and where in the text of the response the latter's
    tokens stand. ``why_not_exact`` is what the tokenizer made of the text, in words; empty if it gives it back."""

    prompt: list[int]
    response: list[int]
    segments: Segments
    why_not_exact: str

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def tell(tokenizer: PreTrainedTokenizerBase, how: Telling, said: Said) -> Told:
    """A row for the reward model. Its response begins with the first token that has a byte of the response or comes
    after it; where there is none, and no EOS, it is the last token of all. Where the text does not come back, its
    tokens stand where the tokenizer's own offsets say."""
    rendered = how.prompt(said.prompt)
    encoded = encode(tokenizer, how, said)
    ids, silent = encoded.ids, encoded.silent[: len(encoded.ids) - encoded.eos]
    spoken = [token for token, mute in zip(ids, silent, strict=False) if not mute]
    spelling = spell(tokenizer, spoken, skip_special_tokens=False)
    why_not_exact = _difference(rendered + said.response + how.after, spelling.text)
    stand = encoded.spans if why_not_exact and encoded.spans is not None else as_spans(spelling.ends)
    spans = _placed(stand - len(rendered.encode()), silent)
    first = int((spans[:, 1] <= 0).sum())
    if first == len(ids) > 0:
        first, spans = first - 1, torch.full_like(spans, BEYOND)
    return Told(
        prompt=ids[:first],
        response=ids[first:],
        segments=Segments(spans=spans[first:], eos=encoded.eos),
        why_not_exact=why_not_exact,
    )


def _placed(spoken: Int[Tensor, "spoken 2"], silent: Sequence[bool]) -> Int[Tensor, "token 2"]:
    """Spans of all tokens, given those with text: the others stand before the response, or beyond its end."""
    spans = torch.full((len(silent), 2), BEYOND)
    spans[[place for place, mute in enumerate(silent) if not mute]] = spoken
    spans[: silent.index(False) if False in silent else len(silent)] = 0
    return spans


def normalised(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a tokenizer that is known to rewrite texts makes of one before it cuts it into tokens, in words; empty if
    it leaves it as it is (but for SentencePiece's mark of a space)."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    made = PROBE if normalizer is None else normalizer.normalize_str(PROBE).replace(SPACE, " ").removeprefix(" ")
    return "" if made == PROBE else f"{PROBE!r} becomes {made!r}"


def _difference(text: str, back: str) -> str:
    """Where a text and its decoded encoding begin to differ, in words; empty if they are equal."""
    if text == back:
        return ""
    common = agreement(text, back)
    here = slice(max(common - SHOWN, 0), common + SHOWN)
    return f"its text {text[here]!r} comes back as {back[here]!r} (they part at character {common})"
