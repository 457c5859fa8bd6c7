"""The values that travel between the stages: frozen, complete when built, one mask.

Every ``(batch, response)`` tensor is 0 where ``response_mask`` is False.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest
from rlhf_core.token_counts import TokenCounts, checked_counts, require_tensors

Message = Mapping[str, Any]
"""One turn of a chat: ``role``, ``content``, and what else the tokenizer's template reads."""
Row = Mapping[str, Any]
"""What a caller wrote of one prompt: ``prompt``, and further columns."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sequences:
    """Prompts and the responses generated for them, as token ids.

    ``prompt_ids`` are left-padded and ``prompt_mask`` is True on their tokens; ``response_ids`` are right-padded. Ids
    on padding have no meaning. ``response_mask`` is True on every generated token, EOS included, and is the only mask
    of the engine. ``min_lengths`` and ``max_lengths`` are in tokens, EOS counted: EOS was banned on the first
    ``min_lengths`` tokens, and generation was cut after ``max_lengths``. ``finished`` is False where it was cut.
    ``given`` holds, for each row, what its caller wrote and ids do not tell: ``prompt`` (a text or a chat; left out
    where ids were given) and the further columns. It is empty if nobody wrote any such thing.

    Raises:
        ValueError: no rows, tensors of other shapes or kinds than annotated, a mask with holes, padding on the wrong
            side, an empty prompt or response, or impossible lengths.
    """

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    response_ids: Int[Tensor, "batch response"]
    response_mask: Bool[Tensor, "batch response"]
    min_lengths: Int[Tensor, " batch"]
    max_lengths: Int[Tensor, " batch"]
    finished: Bool[Tensor, " batch"]
    given: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        tensors = {name: getattr(self, name) for name in TENSORS}
        require_tensors(tensors)
        if self.given and len(self.given) != len(self):
            raise ValueError(f"Sequences: given holds {len(self.given)} rows for {len(self)} responses")
        vars(self)["counts"] = checked_counts(tensors)

    @staticmethod
    def known(counts: TokenCounts, given: tuple[Row, ...] = (), **tensors: Tensor) -> "Sequences":
        """Sequences made of ``tensors`` whose masks are known to be in order, with ``counts`` tokens in their rows.

        Nothing is checked, so the host does not wait for a device. Use it where the masks were made or checked before.
        """
        made = object.__new__(Sequences)
        vars(made).update(tensors, counts=counts, given=given)
        return made

    @cached_property
    def counts(self) -> TokenCounts:
        """Tokens of each row, on the CPU; read once, when the sequences are checked."""
        return TokenCounts(prompt=self.prompt_lengths.cpu(), response=self.response_lengths.cpu())

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    @property
    def prompt_lengths(self) -> Int[Tensor, " batch"]:
        """Prompt tokens of each row."""
        return self.prompt_mask.sum(1)

    @property
    def response_lengths(self) -> Int[Tensor, " batch"]:
        """Response tokens of each row, EOS included."""
        return self.response_mask.sum(1)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens of each row, prompt and response."""
        return self.prompt_lengths + self.response_lengths

    def select(self, rows: Int[Tensor, " row"]) -> "Sequences":
        """The given ``rows`` (numbers, in any order), without the columns that are padding in all of them.

        Raises:
            ValueError: no rows.
        """
        if not len(rows):
            raise ValueError("Sequences.select: rows are empty; there is nothing to select")
        rows = rows.cpu()
        counts, there = self.counts.of(rows), rows.to(self.prompt_ids.device, non_blocking=True)
        chosen = {name: getattr(self, name)[there] for name in TENSORS}
        left, right = self.prompt_ids.shape[1] - int(counts.prompt.max()), int(counts.response.max())
        for name in ("prompt_ids", "prompt_mask"):
            chosen[name] = chosen[name][:, left:]
        for name in ("response_ids", "response_mask"):
            chosen[name] = chosen[name][:, :right]
        given = tuple(self.given[row] for row in rows.tolist()) if self.given else ()
        return Sequences.known(counts, given, **chosen)

    def to(self, device: torch.device) -> "Sequences":
        """The same sequences on ``device``."""
        if self.prompt_ids.device == device:
            return self
        ahead = device.type != "cpu"  # the host must not read what has not arrived
        moved = {name: getattr(self, name).to(device, non_blocking=ahead) for name in TENSORS}
        return Sequences.known(self.counts, self.given, **moved)

    def prompts(self) -> list[list[int]]:
        """Prompt token ids, without padding."""
        ids, width = self.prompt_ids.tolist(), self.prompt_ids.shape[1]
        return [row[width - count :] for row, count in zip(ids, self.counts.prompt.tolist(), strict=True)]

    def responses(self) -> list[list[int]]:
        """Response token ids, without padding."""
        ids = self.response_ids.tolist()
        return [row[:count] for row, count in zip(ids, self.counts.response.tolist(), strict=True)]

    @staticmethod
    def concatenate(parts: "Sequence[Sequences]") -> "Sequences":
        """Stack the batches ``parts``, padding each to the widest."""
        prompt = max(part.prompt_ids.shape[1] for part in parts)
        response = max(part.response_ids.shape[1] for part in parts)
        padded: dict[str, list[Tensor]] = {name: [] for name in TENSORS}
        for part in parts:
            for name, values in padded.items():
                tensor: Tensor = getattr(part, name)
                if name.startswith("prompt"):
                    tensor = torch.nn.functional.pad(tensor, (prompt - tensor.shape[1], 0))
                elif name.startswith("response"):
                    tensor = torch.nn.functional.pad(tensor, (0, response - tensor.shape[1]))
                values.append(tensor)
        given = tuple(row for part in parts for row in part.given)
        counts = TokenCounts(
            prompt=torch.cat([part.counts.prompt for part in parts]),
            response=torch.cat([part.counts.response for part in parts]),
        )
        return Sequences.known(counts, given, **{name: torch.cat(values) for name, values in padded.items()})


TENSORS = tuple(field.name for field in fields(Sequences) if field.name != "given")


@dataclass(frozen=True, eq=False, kw_only=True)
class Rollout:
    """Everything that was measured on a batch of responses before any update.

    Of the responses in ``sequences``, per token: ``logprobs`` under the policy and ``ref_logprobs`` under the reference
    (nats), ``values`` before each token (score units), ``kl`` by the configured estimator (nats). Per response:
    ``raw_scores`` of the reward model, and ``scores``, the same after centring, scaling and clipping; ``score_scale``
    turns a difference of raw scores into one of ``scores``, so that attributions in raw units can be converted.
    ``evidence`` holds what the redistributor asked for and nothing else.
    """

    sequences: Sequences
    logprobs: Float[Tensor, "batch response"]
    ref_logprobs: Float[Tensor, "batch response"]
    values: Float[Tensor, "batch response"]
    kl: Float[Tensor, "batch response"]
    raw_scores: Float[Tensor, " batch"]
    scores: Float[Tensor, " batch"]
    score_scale: float
    evidence: Mapping[EvidenceRequest, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Experience:
    """What the update learns from: ``sequences``, and per token the rollout's ``logprobs`` and ``ref_logprobs`` (nats)
    and ``values``, its ``advantages`` and its ``returns`` (score units). Advantages are not whitened: the buffer does
    that once, over all it holds."""

    sequences: Sequences
    logprobs: Float[Tensor, "batch response"]
    ref_logprobs: Float[Tensor, "batch response"]
    values: Float[Tensor, "batch response"]
    advantages: Float[Tensor, "batch response"]
    returns: Float[Tensor, "batch response"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """A policy's teacher-forced pass over responses: 0 on padding, with gradient where enabled.

    ``logprobs`` are in nats; ``values`` those of the state *before* each token; ``entropy`` that of the distribution
    the token was drawn from (nats; tempered, EOS banned below the minimum length); ``evidence`` as asked for.
    """

    logprobs: Float[Tensor, "batch response"]
    values: Float[Tensor, "batch response"]
    entropy: Float[Tensor, "batch response"]
    evidence: Mapping[EvidenceRequest, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """A reward model's scores, one per response, and the evidence asked for, from the same forward pass."""

    scores: Float[Tensor, " batch"]
    evidence: Mapping[EvidenceRequest, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Limits:
    """Response lengths in tokens, EOS counted: EOS is banned on the first ``min_lengths`` tokens of a row, and a
    response is cut after ``max_lengths``."""

    min_lengths: Int[Tensor, " batch"]
    max_lengths: Int[Tensor, " batch"]


@runtime_checkable
class Redistributor(Protocol):
    """Spreads one score per response over its tokens: a pure function of a rollout that holds no model.

    Calling it returns ``token_scores`` (batch, response): finite, 0 outside ``response_mask``, without gradient.
    A row must not depend on the other rows, nor on how much padding it carries.

    ``needs``: the evidence it reads from ``rollout.evidence``. ``conserving``: each row sums to ``rollout.scores``.
    ``causal``: a token's score never changes when only later tokens do.

    Optional: ``ReportsMetrics``; ``Learns``; a ``gamma`` member, for a method that is exact at one discount, which
    must equal the config's; a member ``shaping``, true where token scores are differences of a potential of the state
    added to the score on the last token (Ng, Harada and Russell 1999).
    """

    @property
    def needs(self) -> frozenset[EvidenceRequest]: ...
    @property
    def causal(self) -> bool: ...
    @property
    def conserving(self) -> bool: ...
    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]: ...


@runtime_checkable
class ReportsMetrics(Protocol):
    """A redistributor with figures of its own: ``metrics`` gives finite numbers of a ``rollout`` by name, to log."""

    def metrics(self, rollout: Rollout) -> dict[str, float]: ...


@runtime_checkable
class Learns(Protocol):
    """A redistributor that learns from rollouts. ``observe`` gets a ``rollout`` only after the update that used it.
    What ``state`` gives is saved in every checkpoint; ``load_state`` gets that ``state`` back when a run is resumed."""

    def observe(self, rollout: Rollout) -> None: ...
    def state(self) -> Mapping[str, Tensor]: ...
    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class HasVocabulary(Protocol):
    """A policy or reward model that knows which token each id stands for; the two are compared."""

    @property
    def vocabulary(self) -> Mapping[str, int]: ...


@runtime_checkable
class HasIdRange(Protocol):
    """A policy that draws, or a reward model that reads, token ids from 0 to ``vocab_size`` − 1."""

    @property
    def vocab_size(self) -> int: ...


@runtime_checkable
class SaysWhyNot(Protocol):
    """A policy or reward model that says why it cannot give a piece of evidence."""

    def why_not(self, request: EvidenceRequest) -> str:
        """The reason why it cannot answer ``request``, in words; empty if ``provides`` is true."""
        ...


@runtime_checkable
class ValidatesPrompts(Protocol):
    """A reward model that knows before anything is generated which prompts it could not score."""

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """Raise ValueError, listing the rows, for ``prompts`` (token ids) that it could not read with ``max_length``
        response tokens after them."""
        ...


@runtime_checkable
class ValidatesIds(Protocol):
    """A policy that knows which prompts its tokenizer would not have made."""

    def validate_ids(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise ValueError, listing the rows, for padding among ``prompts`` that a caller gave as ids; warn where they
        lack what the tokenizer puts before every text (BOS)."""
        ...


@runtime_checkable
class EncodesChats(Protocol):
    """A policy whose tokenizer may have a chat template."""

    def encode_chats(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids of ``chats`` up to where the response begins; raise ValueError, listing the rows, for those that
        the template refuses, or if there is no template."""
        ...


@runtime_checkable
class ReadsRows(Protocol):
    """A reward that is a function on what a caller wrote, and not on token ids alone."""

    def validate_columns(self, names: Collection[str]) -> None:
        """Raise ValueError for a column that it asks for and the prompts' rows, with the ``names``, do not have."""
        ...


@runtime_checkable
class Policy(Protocol):
    """A language model with a value head and a frozen reference.

    One distribution serves everything: logits divided by ``temperature``, EOS banned on a row's first ``min_lengths``
    tokens, and ids without a token not in it. ``sample``, ``evaluate`` and ``reference_logprobs`` all use it. The
    temperature comes with every call, so that trainers may share a policy. ``encode`` gives the token ids of ``texts``,
    ``decode`` the texts of ``ids`` without special tokens; ``provides`` says whether ``evaluate`` can answer an
    evidence ``request``; ``reference_logprobs`` are those of ``sequences`` under the reference, in nats. Optional:
    ``SaysWhyNot``, ``ValidatesIds``, ``HasVocabulary``, ``HasIdRange``, ``EncodesChats``, ``critic.HasCritic``.
    """

    @property
    def compute_dtype(self) -> torch.dtype:
        """The precision activations are computed in; decides how large rounding noise may be."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]: ...
    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """Raise ValueError, listing the rows, for ``prompts`` (token ids) that are empty, hold ids outside the
        vocabulary, or do not leave room for ``max_length`` response tokens."""
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        uniforms: Float[Tensor, "batch position"],
        *,
        temperature: float,
    ) -> Sequences:
        """Draw a response per row of ``prompts`` (token ids) within its ``limits``, by inverse CDF: ``uniforms[i, t]``
        (float64) decides token t of row i. ``temperature`` divides the logits; at 0 the likeliest token is taken."""
        ...

    def evaluate(self, sequences: Sequences, needs: frozenset[EvidenceRequest], *, temperature: float) -> Evaluation:
        """Teacher-forced pass over ``sequences`` with the evidence that ``needs`` names; the same function at rollout
        time and in the update. ``temperature`` divides the logits."""
        ...

    def reference_logprobs(self, sequences: Sequences, *, temperature: float) -> Float[Tensor, "batch response"]: ...
    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """The trainable ones."""
        ...

    def provides(self, request: EvidenceRequest) -> bool: ...
    def save(self, folder: str) -> None:
        """Write model (or adapter), value head and tokenizer into an existing empty folder, as safetensors and JSON."""
        ...

    def restore(self, folder: str) -> None:
        """Read back what ``save`` wrote into ``folder``, to the bit; the reference stays as it is."""
        ...


@runtime_checkable
class RewardModel(Protocol):
    """Scores whole responses (any unit, higher is better) and measures evidence in the same forward pass.

    ``score`` gives the scores of ``sequences`` and the evidence in ``needs``; ``provides``, whether it has a
    ``request``.

    Optional: ``SaysWhyNot``, ``ValidatesPrompts``, ``ReadsRows``, ``HasVocabulary``, ``HasIdRange``.
    """

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored: ...
    def provides(self, request: EvidenceRequest) -> bool: ...
