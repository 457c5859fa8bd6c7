"""One text under two tokenizers: the bytes of each token, and how to map credit from one tokenization to the other.

A token is known by its bytes, whatever a tokenizer's offsets say: those of a character cut in several tokens all name
the whole character. EOS stands for no byte and is a slot of its own.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rlhf_core.scorers.spans import ends_of_prefixes, row_shares, shared_bytes

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
SPACE = "▁"


@dataclass(frozen=True, eq=False, kw_only=True)
class Segments:
    """The tokens of one response: ``spans`` are start and end byte of those with text, counted from where the response
    starts (a token may begin before it or end after it), and ``eos`` is whether EOS follows them."""

    spans: Int[Tensor, "token 2"]
    eos: bool

    def __len__(self) -> int:
        return len(self.spans) + self.eos


def overlap(reward: Segments, policy: Segments) -> Float[Tensor, "reward policy"]:
    """Share of each reward token that each policy token has: by the bytes they have in common; EOS of the one is EOS
    of the other.

    Every row sums to 1, so that the credit of reward tokens is passed on in full. A reward token without a byte in the
    response (of a template; EOS where the policy wrote none) is wholly the last policy token's; where the reward model
    has no EOS, nothing comes to that of the policy but this. The identity where both tokenizers agree.
    """
    shared = torch.zeros(len(reward), len(policy))
    shared[: len(reward.spans), : len(policy.spans)] = shared_bytes(reward.spans, policy.spans)
    return row_shares(shared)  # EOS, without a byte, goes to the last column: the policy's EOS where it wrote one


def boundaries(reward: Segments, policy: Segments) -> Int[Tensor, " policy"]:
    """For each policy token, the number of reward tokens that end at or before the byte where it starts (EOS: where the
    text ends). 0 to the number of reward tokens with text."""
    starts = policy.spans[:, 0]
    if policy.eos:
        starts = torch.cat([starts, policy.spans[-1:, 1] if len(policy.spans) else starts.new_zeros(1)])
    return (reward.spans[None, :, 1] <= starts[:, None]).sum(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Spelling:
    """What token ids decode to, and the byte of that text at which each of them ends."""

    text: str
    ends: tuple[int, ...]


def spell(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special_tokens: bool) -> Spelling:
    """Decode ``ids`` once; ``skip_special_tokens`` as in transformers: such a token then stands for no byte.

    A token's bytes are those that byte-level BPE (GPT-2), or SentencePiece with byte fallback (Llama), spells it with,
    wherever these make up the text; else (words joined by spaces) they are told by decoding one token more at a time.
    Bytes that are not UTF-8, which a policy may well sample, share the mark that a decoder puts in their place.
    """
    silent = set(tokenizer.all_special_ids) if skip_special_tokens else set()
    spoken = [token for token in ids if token not in silent]
    text = _decoded(tokenizer, spoken)
    tokens = tokenizer.convert_ids_to_tokens(spoken)
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    for read in (_byte_level, _byte_fallback):
        ends = _ends(_pieces(read, tokens, added), text)
        if ends is not None:
            break
    else:
        ends = ends_of_prefixes([_decoded(tokenizer, spoken[: k + 1]) for k in range(len(spoken))], text)
    found, end = iter(ends), 0
    return Spelling(text=text, ends=tuple(end := end if token in silent else next(found) for token in ids))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def _byte_level(token: str) -> bytes:
    return bytes(BYTE_OF[character] for character in token)


def _byte_fallback(token: str) -> bytes:
    byte = BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


def _pieces(read: Callable[[str], bytes], tokens: Sequence[str | None], added: set[str]) -> list[bytes] | None:
    """The bytes of each token; None if one is not of this kind, or has no name (beyond the tokenizer)."""
    if any(token is None for token in tokens):
        return None
    try:
        return [token.encode() if token in added else read(token) for token in map(str, tokens)]
    except KeyError:
        return None


def _ends(pieces: list[bytes] | None, text: str) -> list[int] | None:
    """Byte of ``text`` at which each piece ends; None if the pieces do not make it up. SentencePiece writes a space
    before the first word that decoding takes away."""
    if pieces is None:
        return None
    raw = b"".join(pieces)
    for dropped in (0, 1) if raw.startswith(b" ") else (0,):
        shown, positions = _shown(raw[dropped:])
        if shown == text:
            ends = torch.tensor([0, *map(len, pieces)]).cumsum(0)[1:] - dropped
            return [positions[end] for end in ends.clamp(min=0).tolist()]
    return None


def _shown(raw: bytes) -> tuple[str, list[int]]:
    """``raw`` decoded, bytes that are not UTF-8 as U+FFFD, and where in the result each byte of it starts (or, for the
    number of bytes, where it ends)."""
    text, positions, done = "", [0], 0
    while done < len(raw):
        try:
            good, bad = raw[done:], b""
            part = good.decode()
        except UnicodeDecodeError as error:
            good, bad = raw[done : done + error.start], raw[done + error.start : done + error.end]
            part = good.decode() + "\ufffd"
        text += part
        positions += [positions[-1] + byte for byte in range(1, len(good) + 1)]
        positions += [positions[-1] + 3 * byte // len(bad) for byte in range(1, len(bad) + 1)]
        done += len(good) + len(bad)
    return text, positions


@dataclass(frozen=True, eq=False, kw_only=True)
class Crossing:
    """The way back from a reward model's response tokens to a policy's, row by row; ``shape`` is (batch, response) of
    the policy's. Answers are 0 on padding."""

    reward: tuple[Segments, ...]
    policy: tuple[Segments, ...]
    shape: tuple[int, int]

    @property
    def reads_ends(self) -> bool:
        """Whether a policy token starts where the last reward token has ended."""
        rows = zip(self.reward, self.policy, strict=True)
        return any(bool((boundaries(reward, policy) == len(reward)).any()) for reward, policy in rows)

    def carry(self, evidence: Float[Tensor, "batch reward ..."]) -> Float[Tensor, "batch response ..."]:
        """Map the credit of reward tokens to the policy's tokens by :func:`overlap`; the sum of each row is kept."""
        carried = evidence.new_zeros((*self.shape, *evidence.shape[2:]))
        for row, (reward, policy) in enumerate(zip(self.reward, self.policy, strict=True)):
            shares = overlap(reward, policy).to(evidence)
            carried[row, : len(policy)] = torch.einsum("r...,rp->p...", evidence[row, : len(reward)], shares)
        return carried

    def before(
        self, states: Float[Tensor, "batch reward"], ends: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch response"]:
        """What is known before each reward token (and, after the last, ``ends``), read before each of the policy's: at
        the last reward token that ends at or before its first byte."""
        read = states.new_zeros(self.shape)
        for row, (reward, policy) in enumerate(zip(self.reward, self.policy, strict=True)):
            known = torch.cat([states[row, : len(reward)], ends[row : row + 1].to(states)])
            read[row, : len(policy)] = known[boundaries(reward, policy).to(known.device)]
        return read
