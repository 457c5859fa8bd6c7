"""Decoding in steps of fixed shapes, so that ``torch.compile`` can make one graph of a step, and a card can replay it.

A :class:`FixedSteps` belongs to one language model and outlives its rollouts: its buffers hold the keys and values of
a rollout (transformers' ``StaticCache``), and every one-token pass reads all of them under a mask. Rows that have ended
stay in place until their rollout is over. A rollout that fits into the buffers uses them as they are, which compiles
nothing and leaves a recorded CUDA graph valid.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from transformers import PreTrainedModel
from transformers.cache_utils import StaticCache

from models.passes.cache import cache_name
from models.passes.context_length import context_length
from models.passes.sampling import CachedDecoder

# Buffers have a multiple of so many rows and columns, so that rollouts of similar size share one graph.
ROWS, COLUMNS = 8, 64
# Graphs of different shapes that one model may have; torch's own limit is 8.
GRAPHS = 64


def compiled(lm: PreTrainedModel) -> Callable[..., Any]:
    """The model as one compiled graph a shape, and on a card as a CUDA graph too. Nothing is compiled before its first
    call."""
    mode = "reduce-overhead" if lm.device.type == "cuda" else None
    run: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]  # its overloads lack the last two
        lm, fullgraph=True, dynamic=False, mode=mode, recompile_limit=GRAPHS, isolate_recompiles=True
    )
    return run


@final
class FixedDecoder:
    """A ``Decoder`` that reads prompts as :class:`CachedDecoder` does, and goes on with :class:`FixedSteps`.

    ``room``: how many tokens each row may grow by. Only one decoder of the same ``steps`` can be in use.
    """

    def __init__(self, lm: PreTrainedModel, steps: "FixedSteps", room: Int[Tensor, " row"]) -> None:
        self._lm, self._steps, self._room = lm, steps, int(room.max())
        self._prompts: CachedDecoder | None = None

    def start(self, ids: Int[Tensor, "row prompt"], mask: Bool[Tensor, "row prompt"]) -> Float[Tensor, "row vocab"]:
        """Prefill, whose shape is the prompts' own."""
        self._prompts = CachedDecoder(self._lm, room=torch.zeros(len(ids), dtype=torch.long))
        self._rows = torch.arange(len(ids), device=self._lm.device)
        return self._prompts.start(ids, mask)

    def advance(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """One step of fixed shapes."""
        if self._prompts is not None:
            cache, mask = self._prompts.filled
            self._prompts = None
            self._steps.begin(cache, mask, self._rows, self._room)
            self._rows = torch.arange(len(self._rows), device=self._lm.device)
        return self._steps.step(tokens, self._rows)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget every other row, whose place stays. Before the first ``advance``, a row may be kept several times."""
        self._rows = self._rows.index_select(0, rows.to(self._lm.device, non_blocking=True))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Buffers:
    """What a step reads, in tensors that stay."""

    cache: Any
    """A ``StaticCache``."""
    tokens: Int[Tensor, "row 1"]
    positions: Int[Tensor, "row 1"]
    mask: Int[Tensor, "row column"]
    """1 on columns that hold a token."""
    column: Int[Tensor, "1"]
    """Where the next token comes."""

    def hold(self, rows: int, columns: int) -> bool:
        """Whether a rollout fits."""
        return rows <= self.mask.shape[0] and columns <= self.mask.shape[1]

    def fill(self, filled: Any, mask: Int[Tensor, "place prompt"], rows: Int[Tensor, " place"]) -> None:
        """Begin with the first ``mask.shape[1]`` columns, as :meth:`FixedSteps.begin` says."""
        n, width = mask.shape
        self.cache.reset()  # to zeros: a NaN of the last rollout would get through the mask
        for layer, prompts in zip(self.cache.layers, filled.layers, strict=True):
            if not layer.is_initialized:
                shape = (len(self.mask), -1, -1, -1)
                layer.lazy_initialization(prompts.keys[:1].expand(shape), prompts.values[:1].expand(shape))
            layer.keys[:n, :, :width] = prompts.keys.index_select(0, rows)
            layer.values[:n, :, :width] = prompts.values.index_select(0, rows)
            layer.cumulative_length.fill_(width)
            prompts.reset()  # one layer at a time, so that little is held twice
        for numbers in (self.tokens, self.positions, self.mask):
            numbers.zero_()
        self.positions[:n] = mask.sum(1, keepdim=True)
        self.mask[:n, :width] = mask
        self.column.fill_(width)


@final
class FixedSteps:
    """One-token passes of ``lm`` over buffers that stay. ``run`` is the model as it is called: compiled, or itself."""

    def __init__(self, lm: PreTrainedModel, run: Callable[..., Any]) -> None:
        self._lm, self._run = lm, run
        context = context_length(lm)
        self._last_position = None if context is None else context - 1
        self._takes_positions = "position_ids" in inspect.signature(lm.forward).parameters
        self._cache_name = cache_name(lm)
        self._buffers: _Buffers | None = None

    def decoder(self, room: Int[Tensor, " row"]) -> FixedDecoder:
        """The decoder of a rollout whose rows may grow by so many tokens."""
        return FixedDecoder(self._lm, self, room)

    def begin(self, filled: Any, mask: Int[Tensor, "prompt column"], rows: Int[Tensor, " row"], room: int) -> None:
        """Copy the keys and values of prompts into the buffers, and let them go: place i gets prompt ``rows[i]``.

        ``filled``: a ``DynamicCache``; ``mask``: 1 on those of its columns that hold a token.
        """
        n, width = len(rows), mask.shape[1]
        if self._buffers is None or not self._buffers.hold(n, width + room):
            self._buffers = None  # the old ones are let go before new ones are made
            self._buffers = self._made(_multiple(n, ROWS), _multiple(width + room, COLUMNS))
        self._buffers.fill(filled, mask.index_select(0, rows), rows)

    def step(self, tokens: Int[Tensor, " row"], rows: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Logits of the places ``rows`` after one more token each; all other places go on with what they have.

        Raises:
            RuntimeError: the step cannot be compiled here.
        """
        buffers = self._buffers
        if buffers is None:
            raise RuntimeError("a step needs prompts: call begin first")
        buffers.tokens.index_copy_(0, rows, tokens[:, None])
        buffers.mask.index_fill_(1, buffers.column, 1)
        buffers.column.add_(1)
        inputs = {"input_ids": buffers.tokens, "attention_mask": buffers.mask, self._cache_name: buffers.cache}
        if self._takes_positions:
            inputs["position_ids"] = buffers.positions
        try:
            output = self._run(**inputs, use_cache=True, return_dict=True)
        except TorchDynamoException as error:
            raise RuntimeError(
                f"torch.compile cannot compile the decoding step of {type(self._lm).__name__} here: "
                f"{type(error).__name__}: {' '.join(str(error).split()[:60])} ... Turn compile_decoding off; or, if a "
                "compiler is missing (C++ on a CPU, Triton's on a card), install it"
            ) from error
        buffers.positions.add_(1)
        if self._last_position is not None:
            buffers.positions.clamp_(max=self._last_position)  # of a row that has ended
        logits: Tensor = output.logits[:, -1].index_select(0, rows)  # a copy: the next step overwrites the graph's
        return logits

    def _made(self, rows: int, columns: int) -> _Buffers:
        zeros = partial(torch.zeros, dtype=torch.long, device=self._lm.device)
        return _Buffers(
            cache=StaticCache(self._lm.config, max_cache_len=columns),
            tokens=zeros(rows, 1),
            positions=zeros(rows, 1),
            mask=zeros(rows, columns),
            column=zeros(1),
        )


def _multiple(number: int, of: int) -> int:
    """The next multiple, at least."""
    return -(-number // of) * of
