"""Experiments: evidence that needs passes of its own, and the probe they are made with.

An ``Experiment`` says what to measure in terms of a ``Probe``; a model brings the probe, which cuts the work into
micro-batches, draws what is random, and counts what it costs. So leave-one-out, integrated gradients and Shapley values
are a few lines beside their redistributor, and a new one touches neither engine nor models.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest, Layout
from rlhf_core.types import Sequences

Ability = Literal["delete", "replace", "prefix_scores", "embedding_gradients", "attention", "attention_gradients"]
Absence = Literal["delete", "replace"]
Baseline = Literal["null", "zero"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Variants:
    """Altered responses, the same number for every row: ``keep[i, v, t]`` says whether token t of row i stands in
    variant v.

    ``absent``: tokens that are not kept are removed ("delete"), or become the model's null token ("replace"). Prompts
    are never touched; a response may lose all its tokens. Equal variants of a row are scored once, so that rows which
    need fewer can repeat one.
    """

    keep: Bool[Tensor, "batch variant response"]
    absent: Absence


@dataclass(frozen=True, eq=False, kw_only=True)
class PathPoint:
    """The reward model at the embeddings e' + alpha (e − e') of the response tokens; raw score units.

    ``contributions[:, t]`` = ⟨∂r/∂e_t, e_t − e'_t⟩, 0 on padding.
    """

    scores: Float[Tensor, " batch"]
    contributions: Float[Tensor, "batch response"]


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionMaps:
    """The attention of a micro-batch: one whole map (batch, head, query, key) per layer, from the first on.

    Weights after softmax, in float32 at least; the query rows of padding, and its keys, are 0. ``layout`` names
    columns of the maps; its ``read_positions`` are where the score is read.
    """

    weights: tuple[Float[Tensor, "batch head query key"], ...]
    layout: Layout


@dataclass(frozen=True, eq=False, kw_only=True)
class MapGradients:
    """The maps of a micro-batch and ∂r/∂A of each, in raw score units; 0 wherever the weights are those of padding."""

    maps: AttentionMaps
    gradients: tuple[Float[Tensor, "batch head query key"], ...]


@dataclass(kw_only=True)
class Cost:
    """The cost so far: forward and backward passes, counted once per row, the tokens of those rows without padding, and
    wall-clock seconds."""

    forwards: int = 0
    backwards: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds spent inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


@runtime_checkable
class Probe(Protocol):
    """One model asked about one batch of responses. All answers are in raw score units, without gradient."""

    @property
    def sequences(self) -> Sequences:
        """The responses."""
        ...

    @property
    def cost(self) -> Cost:
        """The cost of this probe so far."""
        ...

    def select(self, rows: Int[Tensor, " row"]) -> "Probe":
        """The same model asked about the given ``rows``, without the columns that are padding in all of them; what it
        spends counts here too."""
        ...

    def scores(self, variants: Variants) -> Float[Tensor, "batch variant"]:
        """Scores of the altered responses ``variants``."""
        ...

    def prefix_scores(self) -> Float[Tensor, "batch response"]:
        """r(x, y_<t), all from one forward pass (see :class:`rlhf_core.evidence.PrefixScores`)."""
        ...

    def embedding_gradients(self, alpha: float, baseline: Baseline) -> PathPoint:
        """Score and gradient at the share ``alpha`` of the straight path from a ``baseline`` (the null token's
        embedding, or zeros, in the place of every response token; the prompt as it is) to the response."""
        ...

    def attention(
        self, reduce: Callable[[AttentionMaps], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """What ``reduce`` makes of the attention maps of every layer, 0 on padding. The maps of one micro-batch exist
        at a time, those of all its layers together."""
        ...

    def attention_gradients(
        self, reduce: Callable[[MapGradients], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """What ``reduce`` makes of the maps and of the score's gradient with respect to them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Experiment(EvidenceRequest):
    """Evidence measured with a probe of the ``source``; ``uses`` names what the probe must be able to do. An experiment
    of your own subclasses this and defines ``measure``."""

    uses: ClassVar[frozenset[Ability]] = frozenset()

    def measure(self, probe: Probe) -> Float[Tensor, "batch ..."]:
        """The evidence, asked of ``probe``, of the shape that the request states; TypeError unless a subclass says
        how."""
        raise TypeError(f"{type(self).__name__} must say what it measures")


def measured(experiment: Experiment, probe: Probe) -> Tensor:
    """What the experiment gives, checked against the shape it states.

    Raises:
        ValueError: another shape.
    """
    answer = experiment.measure(probe)
    wanted = experiment.shape(*probe.sequences.response_ids.shape)
    if tuple(answer.shape) != wanted:
        raise ValueError(f"{experiment} measured a tensor of shape {tuple(answer.shape)}, not the {wanted} it states")
    return answer.detach()


def generators(name: str, sequences: Sequences) -> list[torch.Generator]:
    """A stream of random numbers for every row, fixed by ``name`` and the row's own tokens: a row gets the same numbers
    alone, in any batch, and in a resumed run."""
    pairs = zip(sequences.prompts(), sequences.responses(), strict=True)
    return [keyed_generator(name, prompt, response) for prompt, response in pairs]


def keyed_generator(*key: object) -> torch.Generator:
    """A stream of random numbers fixed by ``key``: names, numbers and lists of them, as they are written."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
