"""Sampling by inverse CDF: every token is decided by a uniform number fixed in advance, so that rows may leave the
batch, be reordered or be drawn again without changing a token. No generation setting of a model folder is read."""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from models.passes.cache import cache_name, make_room
from models.passes.context_length import context_length
from models.passes.distribution import Gap, token_distribution
from models.passes.forward import language_model_pass
from models.passes.padding_known import padding_known
from models.passes.repeated_prompts import first_copies
from models.passes.rotary import grows_to, table_numbers
from rlhf_core.token_counts import TokenCounts
from rlhf_core.types import Limits, Sequences

# Tokens after which the host asks which rows have ended. On a card it waits for the answer, which costs more than to
# decode some tokens too many; on a CPU every token costs.
READ_EVERY = {"cpu": 1, "cuda": 8}


@runtime_checkable
class Decoder(Protocol):
    """Next-token logits of a batch that grows by one token at a time and loses rows.

    Prompts and row numbers come on the CPU, tokens on the device of the logits.
    """

    def start(self, ids: Int[Tensor, "row prompt"], mask: Bool[Tensor, "row prompt"]) -> Float[Tensor, "row vocab"]:
        """Logits after left-padded prompts, which may repeat."""
        ...

    def advance(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Logits after one more token a row."""
        ...

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop every other row."""
        ...


class CachedDecoder:
    """A transformers language model with its key-value cache, left padding, explicit mask and positions.

    It reads a prompt once, however often the prompt stands in the batch, and then gives every copy a row of the cache.
    A product with fewer rows may round otherwise, so logits equal those of copies that are all read up to rounding.

    ``room``: how many tokens each row may grow by. Others may go on longer; what a row then gets has no meaning.

    Raises:
        ValueError: the model hands back no cache whose rows can be selected.
    """

    def __init__(self, lm: PreTrainedModel, room: Int[Tensor, " row"]) -> None:
        self._lm = lm
        self._room = room
        context = context_length(lm)
        self._last_position = None if context is None else context - 1
        self._takes_positions = "position_ids" in inspect.signature(lm.forward).parameters
        self._cache_name = cache_name(lm)
        self._recurrent = getattr(lm, "_is_stateful", False) and not self._takes_positions

    def start(self, ids: Int[Tensor, "row prompt"], mask: Bool[Tensor, "row prompt"]) -> Float[Tensor, "row vocab"]:
        """Prefill each prompt once, then give every copy of it a row of the cache."""
        longest, device = mask.sum(1) + self._room, self._lm.device
        first, copies = first_copies(torch.cat([table_numbers(self._lm, longest), mask, ids], dim=1))
        self._hidden = (~mask[first]).sum(1)
        self._mask, self._longest = _sent(mask[first].long(), device), _sent(longest[first], device)
        self._cache: Any = None
        logits = self._forward(_sent(ids[first], device), (self._mask.cumsum(1) - 1).clamp(min=0))
        if len(first) < len(copies):
            self.keep(copies)
            self._longest = _sent(longest, device)  # each copy has its own
            logits = logits[_sent(copies, device)]
        make_room(self._cache, int(self._room.max()))  # after that, as a layer with room takes no further rows
        return logits

    def advance(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """One cached step."""
        positions = self._mask.sum(1, keepdim=True)
        if self._last_position is not None:
            positions = positions.clamp(max=self._last_position)  # of a row that has ended, and waits to leave
        self._mask = torch.cat([self._mask, torch.ones_like(positions)], dim=1)
        return self._forward(tokens[:, None], positions)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Select rows of mask, lengths and cache; before the cache has room, rows may repeat."""
        self._hidden, rows = self._hidden[rows], _sent(rows, self._lm.device)
        self._mask, self._longest = self._mask[rows], self._longest[rows]
        self._cache.reorder_cache(rows)

    @property
    def filled(self) -> tuple[Any, Int[Tensor, "row column"]]:
        """Its cache, and 1 on those of the cache's columns that hold a token."""
        return self._cache, self._mask

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        if self._cache is None or not self._recurrent:  # a recurrent model would read column 0 as the new token's
            inputs["attention_mask"] = self._mask
        if self._cache is not None:
            inputs[self._cache_name] = self._cache
        if self._takes_positions:
            inputs["position_ids"] = positions
        with grows_to(self._longest), padding_known(bool(self._hidden.any())):
            output = language_model_pass(self._lm, inputs, lambda hidden: hidden[:, -1:])
        self._cache = getattr(output.raw, self._cache_name, None)
        if not hasattr(self._cache, "reorder_cache"):
            raise ValueError(
                f"{type(self._lm).__name__} returns no cache whose rows can be selected ({self._cache_name} is "
                f"{type(self._cache).__name__}), so it cannot be sampled from; use an architecture with a DynamicCache"
            )
        return output.logits[:, -1]


def inverse_cdf(logprobs: Float[Tensor, "row vocab"], uniforms: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The first token whose cumulative probability exceeds u, in float64.

    A token of probability zero is never drawn, at u = 0 and just below 1 neither.
    """
    cumulative = _cumulative(logprobs.exp())
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, uniforms.double()[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(drawn, last)[:, 0].clamp(max=logprobs.shape[1] - 1)  # beyond it are rows of NaN


def _cumulative(probabilities: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
    """Sums from the first token on. A card has no deterministic ones, so under
    ``torch.use_deterministic_algorithms`` the CPU adds up, and the host waits at every token."""
    if probabilities.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return probabilities.cumsum(-1, dtype=torch.float64)
    return probabilities.cpu().cumsum(-1, dtype=torch.float64).to(probabilities.device)


@torch.no_grad()
def sample_responses(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    uniforms: Float[Tensor, "batch position"],
    *,
    eos_ids: Sequence[int],
    temperature: float,
    device: torch.device,
    unnamed: Sequence[Gap] = (),
) -> Sequences:
    """Draw a response per prompt; token t of row i is decided by ``uniforms[i, t]`` alone, in the distribution of
    :func:`models.passes.distribution.token_distribution`; at ``temperature`` 0 it is the most likely token.

    A row ends with an EOS id, which is its last token, or is cut after ``max_lengths`` tokens and flagged unfinished.
    Rows that have ended leave the batch; on a card some tokens later (``READ_EVERY``), which are cut.

    Raises:
        ValueError: ``uniforms`` or ``limits`` that do not fit the prompts.
        FloatingPointError: logits that are not a distribution, naming the rows.
    """
    _check_shapes(prompts, limits, uniforms)
    prompt_ids, prompt_mask = left_padded(prompts, torch.device("cpu"))
    drawn, uniforms = _Drawn(limits, eos_ids, device), _sent(uniforms, device)
    batch = torch.arange(len(prompts))
    rows = _sent(batch, device)
    logits = decoder.start(prompt_ids, prompt_mask)
    for step in range(drawn.longest):
        logprobs = token_distribution(
            logits, eos_ids, torch.full_like(rows, step), drawn.low[rows], temperature or 1.0, unnamed=unnamed
        )
        tokens = inverse_cdf(logprobs, uniforms[rows, step]) if temperature else logprobs.argmax(-1)
        drawn.add(rows, step, tokens, unusable=logprobs[:, 0].isnan())  # such a row is NaN throughout
        if drawn.to_be_read(step):
            kept = drawn.read()[batch].nonzero()[:, 0]
            if len(kept) == 0:
                break
            if len(kept) < len(batch):
                decoder.keep(kept)
                batch, tokens = batch[kept], tokens[_sent(kept, device)]
                rows = _sent(batch, device)
        logits = decoder.advance(tokens)
    return drawn.sequences(prompt_ids, prompt_mask)


class _Drawn:
    """The responses of a batch as they grow. All that is known of them lies on the device; ``read`` is where the host
    waits for it, and learns which rows have ended."""

    def __init__(self, limits: Limits, eos_ids: Sequence[int], device: torch.device) -> None:
        self.longest = int(limits.max_lengths.max())
        self.low, self._high = _sent(limits.min_lengths, device), _sent(limits.max_lengths, device)
        self._eos = _sent(torch.tensor(sorted(eos_ids), dtype=torch.long), device)
        self._every = READ_EVERY.get(device.type, READ_EVERY["cuda"])
        self._ids = torch.zeros(len(self.low), self.longest, dtype=torch.long, device=device)
        self._lengths, self._unusable = (torch.full_like(self.low, x, dtype=torch.long) for x in (0, self.longest))
        self._finished, self._going = (torch.full_like(self.low, x, dtype=torch.bool) for x in (False, True))

    def add(
        self, rows: Int[Tensor, " row"], step: int, tokens: Int[Tensor, " row"], *, unusable: Bool[Tensor, " row"]
    ) -> None:
        """Append a token to each of the rows that go on; the first ``unusable`` step of each is kept."""
        going = self._going[rows]
        ended = going & (tokens[:, None] == self._eos).any(1)
        self._ids[rows, step] = torch.where(going, tokens, 0)
        self._lengths[rows] += going
        self._finished[rows] |= ended
        self._unusable[rows] = torch.where(going & unusable, self._unusable[rows].clamp(max=step), self._unusable[rows])
        self._going[rows] = going & ~ended & (step + 1 < self._high[rows])

    def to_be_read(self, step: int) -> bool:
        """Whether it is time to look after this step."""
        return (step + 1) % self._every == 0 or step + 1 == self.longest

    def read(self) -> Bool[Tensor, " batch"]:
        """Which rows go on, on the CPU; raises FloatingPointError for logits that are not a distribution."""
        going, unusable, self._counts = torch.stack([self._going.long(), self._unusable, self._lengths]).cpu().unbind()
        step = int(unusable.min())
        if step < self.longest:
            raise FloatingPointError(
                f"the policy's logits at response token {step} are NaN, infinite or all banned in rows "
                f"{(unusable == step).nonzero().flatten().tolist()}: the weights diverged (lower learning_rate, set "
                "max_grad_norm) or dtype overflows"
            )
        return going != 0

    def sequences(
        self, prompt_ids: Int[Tensor, "batch prompt"], prompt_mask: Bool[Tensor, "batch prompt"]
    ) -> Sequences:
        """The responses after their prompts, once ``read`` has seen them all end."""
        device, width = self._ids.device, int(self._counts.max())
        return Sequences.known(
            TokenCounts(prompt=prompt_mask.sum(1), response=self._counts),
            prompt_ids=_sent(prompt_ids, device),
            prompt_mask=_sent(prompt_mask, device),
            response_ids=self._ids[:, :width],
            response_mask=torch.arange(width, device=device) < self._lengths[:, None],
            min_lengths=self.low,
            max_lengths=self._high,
            finished=self._finished,
        )


def left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch prompt"], Bool[Tensor, "batch prompt"]]:
    """Ids, 0 on padding, and the mask of real tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(width, 0, -1, device=device) <= lengths[:, None]


def _check_shapes(prompts: Sequence[Sequence[int]], limits: Limits, uniforms: Tensor) -> None:
    n, longest = len(prompts), int(limits.max_lengths.max())
    if len(limits.min_lengths) != n or len(uniforms) != n or uniforms.shape[1] < longest:
        raise ValueError(
            f"sample: {n} prompts with limits for {len(limits.min_lengths)} rows need uniforms of shape "
            f"({n}, {longest} or more), got {tuple(uniforms.shape)}"
        )
    if bool((limits.max_lengths < 1).any()) or bool((limits.min_lengths > limits.max_lengths).any()):
        raise ValueError(f"sample: a response needs 1 <= max_lengths and min_lengths <= max_lengths, got {limits}")
    if not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError("sample: uniforms must lie in [0, 1)")


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``; the host does not wait for its arrival."""
    sent: Tensor = tensor.to(device, non_blocking=True)
    return sent
