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
from models.passes.distribution import Gap, token_distribution
from models.passes.forward import language_model_pass
from models.passes.rotary import grows_to
from rlhf_core.types import Limits, Sequences


@runtime_checkable
class Decoder(Protocol):
    """Next-token logits of a batch that grows by one token at a time and loses rows."""

    def start(self, ids: Int[Tensor, "row prompt"], mask: Bool[Tensor, "row prompt"]) -> Float[Tensor, "row vocab"]:
        """Logits after left-padded prompts."""
        ...

    def advance(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Logits after one more token a row."""
        ...

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop every other row."""
        ...


class CachedDecoder:
    """A transformers language model with its key-value cache, left padding, explicit mask and positions.

    ``room``: how many tokens each row may grow by.

    Raises:
        ValueError: the model hands back no cache whose rows can be selected.
    """

    def __init__(self, lm: PreTrainedModel, room: Int[Tensor, " row"]) -> None:
        self._lm = lm
        self._room = room.to(lm.device)
        self._takes_positions = "position_ids" in inspect.signature(lm.forward).parameters
        self._cache_name = cache_name(lm)
        self._recurrent = getattr(lm, "_is_stateful", False) and not self._takes_positions

    def start(self, ids: Int[Tensor, "row prompt"], mask: Bool[Tensor, "row prompt"]) -> Float[Tensor, "row vocab"]:
        """Prefill."""
        self._mask = mask.long()
        self._longest = self._mask.sum(1) + self._room
        self._cache: Any = None
        logits = self._forward(ids, (self._mask.cumsum(1) - 1).clamp(min=0))
        make_room(self._cache, int(self._room.max()))
        return logits

    def advance(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """One cached step."""
        positions = self._mask.sum(1, keepdim=True)
        self._mask = torch.cat([self._mask, torch.ones_like(positions)], dim=1)
        return self._forward(tokens[:, None], positions)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Select rows of mask, lengths and cache."""
        self._mask, self._longest = self._mask[rows], self._longest[rows]
        self._cache.reorder_cache(rows)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        if self._cache is None or not self._recurrent:  # a recurrent model would read column 0 as the new token's
            inputs["attention_mask"] = self._mask
        if self._cache is not None:
            inputs[self._cache_name] = self._cache
        if self._takes_positions:
            inputs["position_ids"] = positions
        with grows_to(self._longest):
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
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, uniforms.double()[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(drawn, last)[:, 0]


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

    Raises:
        ValueError: ``uniforms`` or ``limits`` that do not fit the prompts.
        FloatingPointError: logits that are not a distribution, naming the rows.
    """
    _check_shapes(prompts, limits, uniforms)
    prompt_ids, prompt_mask = left_padded(prompts, device)
    low, high, uniforms = limits.min_lengths.to(device), limits.max_lengths.to(device), uniforms.to(device)
    response_ids = torch.zeros(len(prompts), int(high.max()), dtype=torch.long, device=device)
    lengths, finished = torch.zeros_like(low), torch.zeros_like(low, dtype=torch.bool)
    eos, rows = (
        torch.tensor(sorted(eos_ids), dtype=torch.long, device=device),
        torch.arange(len(prompts), device=device),
    )
    logits = decoder.start(prompt_ids, prompt_mask)
    for step in range(response_ids.shape[1]):
        logprobs = token_distribution(
            logits, eos_ids, torch.full_like(rows, step), low[rows], temperature or 1.0, unnamed=unnamed
        )
        _require_distribution(logprobs, rows, step)
        tokens = inverse_cdf(logprobs, uniforms[rows, step]) if temperature else logprobs.argmax(-1)
        response_ids[rows, step], lengths[rows] = tokens, step + 1
        finished[rows] = torch.isin(tokens, eos)
        going = (~finished[rows] & (step + 1 < high[rows])).nonzero()[:, 0]
        if len(going) == 0:
            break
        if len(going) < len(rows):
            decoder.keep(going)
        rows = rows[going]
        logits = decoder.advance(tokens[going])
    width = int(lengths.max())
    return Sequences(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids[:, :width],
        response_mask=torch.arange(width, device=device) < lengths[:, None],
        min_lengths=low,
        max_lengths=high,
        finished=finished,
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


def _require_distribution(logprobs: Tensor, rows: Tensor, step: int) -> None:
    bad = logprobs[:, 0].isnan()  # such a row is NaN throughout
    if bool(bad.any()):
        raise FloatingPointError(
            f"the policy's logits at response token {step} are NaN, infinite or all banned in rows "
            f"{rows[bad].tolist()}: the weights diverged (lower learning_rate, set max_grad_norm) or dtype overflows"
        )
