"""The policy: a causal language model with a value head and a frozen reference, in one distribution."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.attention import AttentionReader, UnsupportedAttention
from models.distribution import entropy, full_kl, token_distribution
from models.forward import response_predictions
from models.loading import context_length, vocabulary
from models.modes import pass_mode
from models.prompts import listed, prompt_problems
from models.reference import Reference
from models.rows import Rows, policy_layout, right_padded
from models.sampling import CachedDecoder, sample_responses
from models.value_head import ValueHead
from rlhf_core.evidence import AttentionTap, EvidenceRequest, FullKL, Source
from rlhf_core.types import Evaluation, Limits, Sequences

# Largest (token, vocab) block of float32 log-probabilities at a time while no gradient is kept: 64 MiB.
CHUNK_CELLS = 2**24
Answers = Mapping[AttentionTap, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """The parts of a policy: what is trained, what it is held against, and what is written when it is saved."""

    lm: PreTrainedModel
    value_head: ValueHead
    reference: Reference
    write: Callable[[str], None]
    """Writes the weights, or the adapter, into a folder."""
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    compute_dtype: torch.dtype
    checkpointed: tuple[nn.Module, ...]
    """Modules that recompute their activations in the backward pass; empty where that is off."""


@final
class CausalPolicy:
    """A transformers causal language model as a ``Policy`` (see rlhf_core.types for the contract of each method).

    Build one with ``load_policy``. Results are on the model's device; arguments may be on any. ``temperature`` may be
    set at any time, as a trainer does, and holds for sampling, old, new and reference log-probabilities alike.
    """

    def __init__(self, network: Network, *, temperature: float = 1.0) -> None:
        self.temperature = temperature
        self.eos_ids = network.eos_ids
        self._network = network
        self._lm = network.lm
        self._trainable = (
            *(parameter for parameter in network.lm.parameters() if parameter.requires_grad),
            *network.value_head.parameters(),
        )
        self._readers: Mapping[Source, AttentionReader] | None = None
        self.attention_problem = ""

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision of the activations."""
        return self._network.compute_dtype

    @property
    def device(self) -> torch.device:
        """Where the model is, and every result."""
        return self._lm.device

    @property
    def language_model(self) -> PreTrainedModel:
        """The network that is trained, for instruments; nothing else should reach into it."""
        return self._lm

    @property
    def value_head(self) -> ValueHead:
        """The critic on top of it."""
        return self._network.value_head

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, to compare with a reward model's."""
        return self._network.tokenizer

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Which token each id stands for."""
        tokens: dict[str, int] = self._network.tokenizer.get_vocab()
        return tokens

    @property
    def vocab_size(self) -> int:
        """Ids it reads and draws; more than ``vocabulary`` names where the embedding is padded."""
        return vocabulary(self._lm)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why ``provides`` says no, for an error message."""
        if isinstance(request, AttentionTap) and request.source in ("policy", "reference"):
            return self.attention_problem or f"there is no layer {request.layer}"
        return f"a policy measures attention and full KL, not {type(request).__name__} of the {request.source}"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, with the special tokens the tokenizer puts in front."""
        ids: list[list[int]] = self._network.tokenizer(list(texts))["input_ids"]
        return ids

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        texts: list[str] = self._network.tokenizer.batch_decode(
            [list(row) for row in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """Raise ValueError, listing every bad row: empty, ids outside the vocabulary, or no room for a response of
        ``max_length`` tokens in the context (skipped for a model without a limit)."""
        self._require_prompts(prompts, [max_length] * len(prompts))

    def sample(
        self, prompts: Sequence[Sequence[int]], limits: Limits, uniforms: Float[Tensor, "batch position"]
    ) -> Sequences:
        """Draw a response per prompt; see :func:`models.sampling.sample_responses`.

        Raises:
            ValueError: prompts that ``validate`` refuses, or limits and uniforms that do not fit them.
            FloatingPointError: logits that are no distribution.
        """
        self._require_prompts(prompts, limits.max_lengths.tolist())
        with torch.no_grad(), self._mode():
            return sample_responses(
                CachedDecoder(self._lm),
                prompts,
                limits,
                uniforms,
                eos_ids=self.eos_ids,
                temperature=self.temperature,
                device=self.device,
            )

    def evaluate(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Evaluation:
        """Teacher-forced pass: log-probabilities, values, entropy, and the evidence asked for (without gradient).

        Runs in train mode with gradient checkpointing (where wanted) while gradients are enabled and in eval mode
        otherwise; every dropout is zero, so both compute the same. A banned EOS in a response has log-probability
        -inf: no such response can be sampled.

        Raises:
            ValueError: evidence this model does not provide, or evidence asked for with gradients enabled.
        """
        self._require_evidence(needs)
        sequences = _to(sequences, self.device)
        rows, targets = right_padded(sequences), _targets(sequences)
        with self._mode():
            with self._captured("policy", needs, rows, sequences) as evidence:
                predictions = response_predictions(self._lm, rows, sequences.response_mask)
            ref_evidence, ref_logits = self._reference_pass(sequences, needs) if _beyond(needs) else ({}, None)
            values = self._network.value_head(predictions.hidden)

        def measure(logprobs: Tensor, chunk: slice) -> tuple[Tensor, ...]:
            kl = () if ref_logits is None else (full_kl(logprobs, self._distribution(ref_logits, targets, chunk)),)
            return _of(targets.tokens[chunk], logprobs), entropy(logprobs), *kl

        logprobs, entropies, *kl = self._by_chunks(predictions.logits, targets, measure)
        mask = sequences.response_mask
        full = {request: _spread(kl[0], mask) for request in needs if isinstance(request, FullKL)}
        return Evaluation(
            logprobs=_spread(logprobs, mask),
            values=_spread(values, mask),
            entropy=_spread(entropies, mask),
            evidence=dict([*evidence.items(), *ref_evidence.items(), *full.items()]),
        )

    @torch.no_grad()
    def reference_logprobs(self, sequences: Sequences) -> Float[Tensor, "batch response"]:
        """Log-probabilities of the responses under the frozen reference, in the same distribution."""
        sequences = _to(sequences, self.device)
        targets = _targets(sequences)
        with self._mode():
            _, logits = self._reference_pass(sequences, frozenset())
        (logprobs,) = self._by_chunks(logits, targets, lambda every, chunk: (_of(targets.tokens[chunk], every),))
        return _spread(logprobs, sequences.response_mask)

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trainable ones: all weights or the adapter's, then the value head's."""
        return self._trainable

    def provides(self, request: EvidenceRequest) -> bool:
        """Full KL; attention of the policy and of its reference where the architecture lets it be read.

        The first attention request builds and checks the readers; ``attention_problem`` says why there are none.
        """
        if isinstance(request, AttentionTap) and request.source in ("policy", "reference"):
            reader = self._attention_readers().get(request.source)
            return reader is not None and -reader.n_layers <= request.layer < reader.n_layers
        return isinstance(request, FullKL) and request.source == "policy"

    def save(self, folder: str) -> None:
        """Write model or adapter, value head and tokenizer into an existing folder; ``load_policy`` reads it back."""
        self._network.write(folder)
        self._network.value_head.save(folder)
        self._network.tokenizer.save_pretrained(folder)

    def _mode(self) -> AbstractContextManager[None]:
        return pass_mode(self._lm, self._network.checkpointed)

    @torch.no_grad()
    def _reference_pass(
        self, sequences: Sequences, needs: frozenset[EvidenceRequest]
    ) -> tuple[Answers, Float[Tensor, "token vocab"]]:
        """Attention evidence and logits of the frozen reference."""
        rows, reference = right_padded(sequences), self._network.reference
        with reference.active(), self._captured("reference", needs, rows, sequences) as evidence:
            logits = response_predictions(reference.lm, rows, sequences.response_mask).logits
        return evidence, logits

    def _captured(
        self, source: Source, needs: frozenset[EvidenceRequest], rows: Rows, sequences: Sequences
    ) -> AbstractContextManager[Answers]:
        """Answers the attention requests to ``source`` from the one forward pass inside."""
        taps = [request for request in needs if isinstance(request, AttentionTap) and request.source == source]
        if not taps:
            return nullcontext({})
        return self._attention_readers()[source].capture(taps, policy_layout(rows, sequences))

    def _attention_readers(self) -> Mapping[Source, AttentionReader]:
        """One reader a model. A separate reference gets one too, whether asked or not: a reader may change how a model
        computes its attention, and both must round alike for a KL of exactly 0."""
        if self._readers is None:
            try:
                models: dict[Source, PreTrainedModel] = {"policy": self._lm, "reference": self._network.reference.lm}
                built = {id(lm): AttentionReader(lm) for lm in models.values()}
                for reader in built.values():
                    reader.check(self.vocab_size)
                self._readers = {source: built[id(lm)] for source, lm in models.items()}
            except UnsupportedAttention as problem:
                self.attention_problem = str(problem)
                self._readers = {}
        return self._readers

    def _distribution(self, logits: Tensor, targets: "_Targets", chunk: slice) -> Float[Tensor, "token vocab"]:
        return token_distribution(
            logits[chunk], self.eos_ids, targets.steps[chunk], targets.min_lengths[chunk], self.temperature
        )

    def _by_chunks(
        self, logits: Tensor, targets: "_Targets", measure: Callable[[Tensor, slice], tuple[Tensor, ...]]
    ) -> list[Float[Tensor, " token"]]:
        """Reduce the distribution of each token to numbers, a bounded number of tokens at a time."""
        size = max(1, CHUNK_CELLS // logits.shape[-1])
        chunks = [slice(start, start + size) for start in range(0, len(logits), size)]
        parts = [measure(self._distribution(logits, targets, chunk), chunk) for chunk in chunks]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def _require_evidence(self, needs: frozenset[EvidenceRequest]) -> None:
        refused = [request for request in needs if not self.provides(request)]
        if refused:
            raise ValueError(f"this policy cannot measure {refused}. {self.attention_problem}")
        if needs and torch.is_grad_enabled():
            raise ValueError(f"evidence carries no gradient: evaluate {list(needs)} under torch.no_grad()")

    def _require_prompts(self, prompts: Sequence[Sequence[int]], max_lengths: Sequence[int]) -> None:
        context = context_length(self._lm)
        problems = list(prompt_problems(prompts, max_lengths, vocab_size=self.vocab_size, context=context))
        if problems:
            raise ValueError("prompts: " + listed(problems))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Targets:
    """Response tokens row after row: id, how many came before it, and its row's minimum length."""

    tokens: Int[Tensor, " token"]
    steps: Int[Tensor, " token"]
    min_lengths: Int[Tensor, " token"]


def _targets(sequences: Sequences) -> _Targets:
    row, step = sequences.response_mask.nonzero(as_tuple=True)
    return _Targets(tokens=sequences.response_ids[row, step], steps=step, min_lengths=sequences.min_lengths[row])


def _of(tokens: Int[Tensor, " token"], logprobs: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    return logprobs.gather(1, tokens[:, None])[:, 0]


def _spread(flat: Float[Tensor, " token"], mask: Bool[Tensor, "batch response"]) -> Float[Tensor, "batch response"]:
    """Put one number a response token where the token stands, 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def _beyond(needs: frozenset[EvidenceRequest]) -> bool:
    """Whether the reference has to run."""
    return any(isinstance(request, FullKL) or request.source == "reference" for request in needs)


def _to(sequences: Sequences, device: torch.device) -> Sequences:
    if sequences.prompt_ids.device == device:
        return sequences
    return replace(sequences, **{f.name: getattr(sequences, f.name).to(device) for f in fields(sequences)})
