"""Read attention rows from the forward pass that a model makes anyway, without computing (token, token) maps."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.attention.layer_attention import EVERY_KEY, LayerAttention, Map, Projections
from models.attention.load_check import compare_with_untapped, quiet, run_backbone
from models.attention.taps import TAPS, Tap, UnsupportedAttention, attached
from rlhf_core.evidence import AttentionTap, ColumnTap, EvidenceRequest, Layout, ValueTap, on_response

# Largest (batch, head, row, key) block computed at a time: 64 MiB in float32, or what a CPU's cache holds.
CHUNK_CELLS = {"cpu": 2**20, "cuda": 2**24}
Scaled = Callable[[Tensor, slice], Tensor]
Result = TypeVar("Result")


@final
class AttentionReader:
    """The attention layers of one model, in the order they run, and how to read single rows of them.

    ``layer`` counts attention layers only. The model is changed while it is read and no longer: to SDPA with a tap, or
    to eager attention where its architecture allows nothing else. Call ``check`` before you use it. Not saved with the
    model, and safe with a configuration shared between models.

    Raises:
        UnsupportedAttention: no tap fits this architecture; the message names it and what was tried.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = _transformers_model(model)
        self.architecture = type(self._model).__name__
        self._tap, shown = _find(self._model, self.architecture)
        self._layers = list(shown)
        self._heads = min(attention.shape[1] for attention in shown.values())
        self._shows_values = all(isinstance(attention, Projections) for attention in shown.values())

    @property
    def n_layers(self) -> int:
        """Attention layers."""
        return len(self._layers)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why ``request`` cannot be answered, in words; empty if it can."""
        if isinstance(request, ValueTap) and not self._shows_values:
            return f"{self.architecture} returns whole attention maps only ({self._tap.name}), without value vectors"
        reason = request.why_not(self.n_layers, self._heads)
        return reason and f"{self.architecture} cannot answer: {reason}"

    def read(
        self, requests: Iterable[AttentionTap], layout: Layout, run: Callable[[], Result]
    ) -> tuple[Result, dict[AttentionTap, Tensor]]:
        """What ``run``, one forward pass, gives, to the bit as if nothing were read, and ``requests`` answered from it;
        see :meth:`capture`. Where reading takes another attention function, which rounds otherwise, it runs twice."""
        with self.capture(requests, layout) as answers:
            result = run()
        return (result if self._tap.rides_on(self._model) else run()), answers

    def capture(
        self, requests: Iterable[AttentionTap], layout: Layout
    ) -> AbstractContextManager[dict[AttentionTap, Tensor]]:
        """Answer ``requests`` from the one forward pass made inside the context.

        ``layout`` names columns of that pass's input. The dictionary fills as the layers run: float32
        (batch, response) without gradient, 0 on padding.

        Raises:
            ValueError: what ``why_not`` gives a reason for, as a layer the model does not have.
            RuntimeError: on leaving, a requested layer never ran; or the model ran twice, or with a KV cache.
        """
        wanted: defaultdict[int, list[AttentionTap]] = defaultdict(list)
        for request in requests:
            if reason := self.why_not(request):
                raise ValueError(f"{request}: {reason}")
            wanted[request.layer % self.n_layers].append(request)
        return self._capture(dict(wanted), layout)

    @contextmanager
    def _capture(self, wanted: dict[int, list[AttentionTap]], layout: Layout) -> Iterator[dict[AttentionTap, Tensor]]:
        answers: dict[AttentionTap, Tensor] = {}
        requests_of = {self._layers[layer]: requests for layer, requests in wanted.items()}

        def answer(module: nn.Module, attention: LayerAttention) -> None:
            _, _, queries, keys = attention.shape
            if queries != keys:
                raise RuntimeError(f"{self.architecture}: {queries} queries meet {keys} keys; capture without KV cache")
            for request in requests_of[module]:
                if request in answers:
                    raise RuntimeError(f"{self.architecture} ran twice inside one capture; open one for each pass")
                answers[request] = _measure(attention, request, layout)

        with attached(self._tap, self._model, list(requests_of), answer):
            yield answers
        silent = sorted(layer for layer, requests in wanted.items() if requests[0] not in answers)
        if silent:
            raise RuntimeError(
                f"{self.architecture}: attention of layer {silent} never ran inside the capture, "
                f"or not through the {self._tap.name}"
            )

    def check(self, vocab_size: int) -> None:
        """Compare the tapped model with itself untapped and with its own eager attention on small random batches, one
        of them left-padded.

        Raises:
            UnsupportedAttention: last hidden states or the weights of a layer differ by more than 1e-4 of the largest
                in float32, or, in half precision and quantised, by more than a tenth in 2-norm (rounding alone gives up
                to 0.04 on trained models); or a layer never ran.
        """
        compare_with_untapped(self._model, self._tap, self._layers, vocab_size)


@final
@dataclass(frozen=True, kw_only=True)
class UnreadableAttention:
    """Takes the place of the reader for a model whose attention cannot be read."""

    reason: str

    def why_not(self, request: EvidenceRequest) -> str:
        """The same reason for every request."""
        return self.reason

    def read(
        self, requests: Iterable[AttentionTap], layout: Layout, run: Callable[[], Result]
    ) -> tuple[Result, dict[AttentionTap, Tensor]]:
        """Raise UnsupportedAttention, with the reason."""
        raise UnsupportedAttention(self.reason)


def checked_reader(model: nn.Module, vocab_size: int) -> AttentionReader | UnreadableAttention:
    """The reader of ``model``, checked with ids below ``vocab_size``, or an ``UnreadableAttention``."""
    try:
        reader = AttentionReader(model)
        reader.check(vocab_size)
    except UnsupportedAttention as error:
        return UnreadableAttention(reason=str(error))
    return reader


def _transformers_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside ``model``, which may be wrapped (PEFT).

    Raises:
        UnsupportedAttention: there is none.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            return part
    raise UnsupportedAttention(f"{type(model).__name__} holds no transformers model")


@torch.no_grad()
def _measure(attention: LayerAttention, request: AttentionTap, layout: Layout) -> Float[Tensor, "batch response"]:
    """``request`` answered in chunks of rows, in float32 whatever autocast says."""
    rows = request.rows(layout)
    batch, heads, _, keys = attention.shape
    cells = CHUNK_CELLS.get(rows.device.type, CHUNK_CELLS["cuda"])
    chunks = torch.split(rows, max(1, cells // (batch * heads * keys)), dim=1)
    with torch.autocast(rows.device.type, enabled=False):
        scaled = _scaled_by_values(attention, request)
        if isinstance(request, ColumnTap):
            total = _by_column(attention, request, scaled, chunks, layout)
        else:
            total = torch.zeros(layout.response_mask.shape, device=rows.device)
            for chunk in chunks:
                total = total + request.reduce(scaled(_weights(attention, chunk, EVERY_KEY), EVERY_KEY), chunk, layout)
    nobody = torch.zeros(batch, keys, dtype=torch.long, device=rows.device)
    seen_by = sum((attention.seen_by(*_wanted(chunk)) for chunk in chunks), start=nobody)
    finished = request.finish(total, seen_by.gather(1, layout.response_positions))
    return torch.where(layout.response_mask, finished, 0.0)


def _by_column(
    attention: LayerAttention, request: ColumnTap, scaled: Scaled, chunks: Sequence[Tensor], layout: Layout
) -> Float[Tensor, "batch response"]:
    """The sum over chunks, of the keys from the first response token to the last that a chunk looks at."""
    batch, _, _, keys = attention.shape
    first = int(torch.where(layout.response_mask, layout.response_positions, keys).min())
    total = torch.zeros(batch, keys, device=layout.response_mask.device)
    for chunk in chunks:
        looked_at = slice(first, attention.reach(_wanted(chunk)[0]))
        total[:, looked_at] += request.of_columns(scaled(_weights(attention, chunk, looked_at), looked_at))
    return on_response(total, layout)


def _wanted(rows: Int[Tensor, "batch row"]) -> tuple[Int[Tensor, "batch row"], Bool[Tensor, "batch row"]]:
    """Query columns, any where none is wanted, and where one is."""
    wanted = rows >= 0
    return torch.where(wanted, rows, rows.max().clamp(min=0)), wanted


def _weights(attention: LayerAttention, rows: Int[Tensor, "batch row"], keys: slice) -> Tensor:
    """Weights of the wanted columns, 0 for the others; only the caller's expression keeps them in memory."""
    columns, wanted = _wanted(rows)
    weights = attention.weights(columns, keys)
    return weights if bool(wanted.all()) else weights.masked_fill_(~wanted[:, None, :, None], 0.0)


def _scaled_by_values(attention: LayerAttention, request: AttentionTap) -> Scaled:
    """The change to (batch, head, row, key) weights before they are reduced: none, unless a tap reads values."""
    if not isinstance(request, ValueTap):
        return lambda weights, keys: weights
    if not isinstance(attention, Projections):
        raise TypeError(f"{request}: a whole attention map has no value vectors")
    factors = request.factors(attention.value.float())
    group = attention.shape[1] // factors.shape[1]
    of_key: Tensor = repeat(factors, "batch key_head key -> batch (key_head group) 1 key", group=group)
    return lambda weights, keys: weights * of_key[..., keys]


def _find(model: PreTrainedModel, architecture: str) -> tuple[Tap, dict[nn.Module, LayerAttention]]:
    """The first tap through which a trial run reports attention weights, and what each module reported."""
    reasons = []
    for tap in TAPS:
        try:
            tap.require(model)
            return tap, _trial(model, tap)
        except UnsupportedAttention as reason:
            reasons.append(f"{tap.name}: {reason}")
    raise UnsupportedAttention(
        f"{architecture}: no way to read its attention weights ({'; '.join(reasons)}). "
        "Use a redistributor that needs no attention, or another model"
    )


def _trial(model: PreTrainedModel, tap: Tap) -> dict[nn.Module, LayerAttention]:
    """Modules that report in the order they run, each map once, from the innermost module that shows it."""
    fired: list[tuple[nn.Module, LayerAttention]] = []

    def listen(module: nn.Module, attention: LayerAttention) -> None:
        shown = isinstance(attention, Map) and any(
            isinstance(other, Map) and other.map.data_ptr() == attention.map.data_ptr() for _, other in fired
        )
        if not shown:
            fired.append((module, attention))

    if model.config.is_encoder_decoder:
        raise UnsupportedAttention("it is an encoder-decoder; only decoders and encoders are supported")
    ids = torch.arange(10, device=model.device).reshape(2, 5)
    with quiet(model), attached(tap, model, list(model.modules()), listen):
        run_backbone(model, ids, torch.ones_like(ids))
    layers = [module for module, _ in fired]
    if not layers:
        raise UnsupportedAttention("no layer of it shows attention weights in a trial run")
    if len(set(layers)) < len(layers):
        raise UnsupportedAttention("several of its layers share one attention module")
    _require_distributions([attention for _, attention in fired], torch.arange(5, device=model.device).expand(2, 5))
    return dict(fired)


def _require_distributions(attentions: list[LayerAttention], columns: Int[Tensor, "batch row"]) -> None:
    """Weights that do not sum to 1 over the tokens leave part of the attention on something that is not a token."""
    for layer, attention in enumerate(attentions):
        if attention.shape[0] != 2 or attention.shape[2:] != (5, 5):
            raise UnsupportedAttention(f"layer {layer} shows weights of shape {attention.shape} for 2 rows of 5 tokens")
        totals = attention.weights(columns).sum(-1)
        if not torch.allclose(totals, torch.ones_like(totals), atol=2e-2):
            raise UnsupportedAttention(
                f"weights of layer {layer} sum to {float(totals.min()):.3f} over the tokens instead of 1: "
                "part of the attention goes to a sink that is not a token"
            )
