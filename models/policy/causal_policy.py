"""The policy: a causal language model with a value head and a frozen reference, in one distribution."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.passes.distribution import Distribution, Targets, gaps
from models.passes.forward import Predictions, head_ends_it, response_hidden, response_predictions
from models.passes.layout import PaddedRows, onto_responses, policy_layout, right_padded
from models.passes.sampling import sample_responses
from models.passes.token_statistics import recomputed_statistics, token_logprobs, token_statistics
from models.policy.critics import Critic
from models.policy.network import Network
from models.policy.sharding import DividedWeights
from models.policy.value_head import ValueHead
from models.texts.prompt_encoding import check_prompt_ids, encode, encode_chats, encode_responses, prompt_problems
from models.texts.sentence_ends import sentence_ends
from models.texts.unknown_words import warn_of_unknown_words
from models.weights.adapter_weights import require_wide
from models.weights.division import original_class
from models.weights.language_model import vocabulary
from models.weights.reference import Reference, adapter_settings
from models.weights.tokenizer import named_ids
from rlhf_core.distributed import writes
from rlhf_core.evidence import (
    AttentionTap,
    AuxiliaryLogprobs,
    EvidenceRequest,
    FullKL,
    SentenceEnds,
    Source,
    TokenEntropy,
)
from rlhf_core.names import nearest
from rlhf_core.prompts import listed
from rlhf_core.types import Evaluation, Limits, Message, Sequences

Answers = Mapping[AttentionTap, Tensor]
# (token, vocab) cells above which logits are made in parts, and once more for the backward pass: 1 GiB in float32.
KEPT_CELLS = 2**28
# Evidence that costs nothing: what every pass computes anyway, and what the tokens themselves tell.
FREE = (TokenEntropy, SentenceEnds)


@final
class CausalPolicy:
    """A transformers causal language model as a ``Policy`` (see rlhf_core.types for the contract of each method).

    Build one with ``load_policy``, which makes the ``network``: language model, value head, reference and tokenizer.
    Results are on the model's device; arguments may be on any. The ``temperature`` of a call divides the logits, and
    must be a finite number above 0. Ids for which the tokenizer has no token are not in the distribution at all.
    """

    def __init__(self, network: Network) -> None:
        require_wide(network.lm)
        self.eos_ids = network.eos_ids
        self._network = network
        self._lm = network.lm
        self._trainable = network.trained
        named = named_ids(network.tokenizer)
        self._unnamed, self._unnamed_ids = gaps(named), frozenset(range(vocabulary(network.lm))) - named
        self._ending: dict[int, bool] = {}

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision of the activations."""
        return self._network.compute_dtype

    @property
    def identity(self) -> Mapping[str, object]:
        """Settings that decide its numbers."""
        network = self._network
        adapter = getattr(network.reference, "adapters", None)
        return {
            "model": original_class(self._lm).__name__,
            "dtype": self.compute_dtype,
            "four_bit": bool(getattr(self._lm, "is_quantized", False)),
            "adapter": None if adapter is None else adapter_settings(adapter),
            "eos_ids": self.eos_ids,
            "auxiliaries": tuple(sorted(network.auxiliaries)),
            **network.critic.identity,
            **network.precision.identity,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is, and every result."""
        return self._lm.device

    @property
    def language_model(self) -> PreTrainedModel:
        """The network that is trained, for instruments; nothing else should reach into it."""
        return self._lm

    @property
    def critic(self) -> Critic:
        """Where its values come from; the value loss trains it."""
        return self._network.critic

    @property
    def sharding(self) -> DividedWeights | None:
        """How its weights are divided among processes; None where each has all."""
        return self._network.sharding

    @property
    def value_head(self) -> ValueHead:
        """The critic's last layer."""
        return self._network.critic.head

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
        """One more than the largest id that it reads and draws: an embedding padded beyond its tokenizer has more."""
        return min(vocabulary(self._lm), max(self.vocabulary.values()) + 1)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why ``request`` cannot be answered, in words; empty if it can.

        The first attention request checks that attention can be read.
        """
        if isinstance(request, AttentionTap) and request.source in ("policy", "reference"):
            return self._network.readers[request.source].why_not(request)
        if isinstance(request, (FullKL, *FREE)) and request.source == "policy":
            return ""
        if isinstance(request, AuxiliaryLogprobs) and request.source == "policy":
            held = self._network.auxiliaries
            if request.name in held:
                return ""
            return (
                f"it was loaded with no auxiliary model {request.name!r} (held: "
                f"{', '.join(map(repr, held)) or 'none'}); load it with "
                f"load_policy(..., auxiliaries={{{request.name!r}: <folder or hub name>}}){nearest(request.name, held)}"
            )
        return (
            "a policy measures attention, full KL, token entropy, sentence ends and log-probabilities of its "
            f"auxiliaries, not {type(request).__name__} of the {request.source}"
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of ``texts``, special tokens in front unless a text has them; warns, once, of unknown words."""
        return warn_of_unknown_words(self.tokenizer, texts, encode(self.tokenizer, texts))

    def encode_chats(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids of ``chats``, up to where the assistant answers; see ``models.texts.prompt_encoding``."""
        return warn_of_unknown_words(self.tokenizer, chats, encode_chats(self.tokenizer, chats))

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of ``texts`` as whole responses: each by itself, with nothing before it and EOS after it."""
        return warn_of_unknown_words(self.tokenizer, texts, encode_responses(self.tokenizer, texts, self.eos_ids))

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of ``ids`` without special tokens."""
        return self._decoded(ids, skip_special_tokens=True)

    def decode_with_special(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of ``ids`` with every special token in them, EOS too."""
        return self._decoded(ids, skip_special_tokens=False)

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """Raise ValueError, listing the rows, for ``prompts``: empty, unknown ids, no room for ``max_length`` more."""
        self._require_prompts(prompts, [max_length] * len(prompts))

    def validate_ids(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise ValueError, listing the rows, for ``prompts`` whose ids hold padding; warn, once, where they lack the
        BOS that the tokenizer puts before every text. They are taken as they are."""
        check_prompt_ids(self.tokenizer, prompts, self.eos_ids)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        uniforms: Float[Tensor, "batch position"],
        *,
        temperature: float = 1.0,
    ) -> Sequences:
        """Draw a response per row of ``prompts`` within ``limits``; ``uniforms[i, t]`` in [0, 1) decides its token t.
        At ``temperature`` 0 every token is the most likely one.

        Raises:
            ValueError: prompts that ``validate`` refuses, or limits and uniforms that do not fit them.
            FloatingPointError: logits that are not a distribution.
            RuntimeError: a decoding step that should be compiled, and cannot be here.
        """
        self._require_prompts(prompts, limits.max_lengths.tolist())
        of = self._distribution(temperature or 1.0)
        with torch.no_grad(), self._network.policy_pass():
            return sample_responses(
                self._network.decoder(limits.max_lengths),
                prompts,
                limits,
                uniforms,
                eos_ids=of.eos_ids,
                temperature=temperature,
                device=self.device,
                unnamed=of.unnamed,
            )

    def evaluate(
        self, sequences: Sequences, needs: frozenset[EvidenceRequest], *, temperature: float = 1.0
    ) -> Evaluation:
        """Teacher-forced pass over ``sequences``, and the evidence in ``needs`` (without gradient).

        Runs in train mode with gradient checkpointing (where wanted) while gradients are enabled and in eval mode
        otherwise; every dropout is zero, so both compute the same. A banned EOS in a response has log-probability
        -inf: no such response can be sampled.

        Raises:
            ValueError: evidence this model does not provide, or evidence asked for with gradients enabled.
            RuntimeError: a gradient of divided weights outside an update.
        """
        self._require_evidence(needs)
        sequences, of = sequences.to(self.device), self._distribution(temperature)
        rows, targets, mask = right_padded(sequences), Targets.of(sequences), sequences.response_mask
        beside: dict[EvidenceRequest, Tensor] = {  # first, while no logits of the policy are held
            request: self._logprobs_under(self._network.auxiliaries[request.name], sequences, of)
            for request in needs
            if isinstance(request, AuxiliaryLogprobs)
        }
        if all(isinstance(request, (AuxiliaryLogprobs, *FREE)) for request in needs) and self._in_parts(
            self._lm, targets
        ):
            with self._network.policy_pass():
                hidden, logprobs, entropies = self._statistics_in_parts(self._lm, rows, sequences, targets, of)
                values = self._network.critic.values(rows, mask, hidden)
            free = self._free(needs, sequences, entropies)
            return _evaluation(logprobs, values, entropies, mask, beside | free)
        with self._network.policy_pass():
            predictions, evidence = self._read("policy", self._lm, needs, sequences)
            of_both = any(isinstance(request, FullKL) or request.source == "reference" for request in needs)
            ref_evidence, ref_logits = self._reference_pass(sequences, needs) if of_both else ({}, None)
            values = self._network.critic.values(rows, mask, predictions.hidden)
        logprobs, entropies = token_statistics(predictions.logits, targets, of)
        full = {
            request: onto_responses(of.full_kl(predictions.logits, ref_logits, targets), mask)
            for request in needs
            if isinstance(request, FullKL) and ref_logits is not None
        }
        free = self._free(needs, sequences, entropies)
        measured = (evidence, ref_evidence, full, beside, free)
        found = dict(pair for answers in measured for pair in answers.items())
        return _evaluation(logprobs, values, entropies, mask, found)

    def reference_logprobs(self, sequences: Sequences, *, temperature: float = 1.0) -> Float[Tensor, "batch response"]:
        """Log-probabilities of the responses of ``sequences`` under the frozen reference, in the same distribution."""
        of = self._distribution(temperature)
        return self._logprobs_under(self._network.reference, sequences.to(self.device), of)

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trainable ones: all weights or the adapter's, then the critic's own, the value head's last."""
        return self._trainable

    def provides(self, request: EvidenceRequest) -> bool:
        """Whether ``evaluate`` can answer ``request``; :meth:`why_not` says why it cannot."""
        return not self.why_not(request)

    def save(self, folder: str) -> None:
        """Write model or adapter, critic and tokenizer into an existing ``folder``; ``load_policy`` reads it back.

        Where weights are divided, every process calls it, and the first one writes.
        """
        self._network.write(folder)
        if self.sharding is None or writes():
            self._network.critic.save(folder)
            self._network.tokenizer.save_pretrained(folder)

    def restore(self, folder: str) -> None:
        """Read back what ``save`` wrote into ``folder``, to the bit; the reference stays as it is.

        Raises:
            ValueError: another model, adapter or critic, or files that ``load_policy`` would refuse; nothing has
                changed then.
        """
        if self.sharding:
            self.sharding.divide_again()
        read = (self._network.read(folder), self._network.critic.read(folder))
        for put in read:
            put()

    def _free(
        self, needs: frozenset[EvidenceRequest], sequences: Sequences, entropies: Float[Tensor, " token"]
    ) -> dict[EvidenceRequest, Tensor]:
        ids, mask = sequences.response_ids, sequences.response_mask
        found: dict[EvidenceRequest, Tensor] = {}
        for request in needs:
            if isinstance(request, TokenEntropy):
                found[request] = onto_responses(entropies, mask)
            elif isinstance(request, SentenceEnds):
                found[request] = sentence_ends(self.tokenizer, ids, mask, request.marks)
        return found

    def _in_parts(self, lm: PreTrainedModel, targets: Targets) -> bool:
        """Whether the logits are too many to exist together, and can be made in parts."""
        return len(targets.tokens) * vocabulary(lm) > KEPT_CELLS and self._head_ends(lm)

    def _statistics_in_parts(
        self, lm: PreTrainedModel, rows: PaddedRows, sequences: Sequences, targets: Targets, of: Distribution
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, log-probabilities and entropies of response tokens, without the logits of all of them."""
        hidden = response_hidden(lm, rows, sequences.response_mask)
        head: Any = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
        return hidden, *recomputed_statistics(hidden, head, vocabulary(lm), targets, of)

    def _head_ends(self, lm: PreTrainedModel) -> bool:
        if self.sharding is not None:  # the head's weights are at hand in a pass of the whole model alone
            return False
        if id(lm) not in self._ending:
            with self._mode():
                self._ending[id(lm)] = head_ends_it(lm)
        return self._ending[id(lm)]

    def _decoded(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        texts: list[str] = self._network.tokenizer.batch_decode(
            [list(row) for row in ids], skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return texts

    def _mode(self) -> AbstractContextManager[None]:
        return self._network.mode()

    @torch.no_grad()
    def _logprobs_under(
        self, frozen: Reference, sequences: Sequences, of: Distribution
    ) -> Float[Tensor, "batch response"]:
        """Log-probabilities of the responses under a frozen model; no evidence, no gradient."""
        rows, targets, mask = right_padded(sequences), Targets.of(sequences), sequences.response_mask
        with self._mode(), frozen.active():
            if self._in_parts(frozen.lm, targets):
                _, logprobs, _ = self._statistics_in_parts(frozen.lm, rows, sequences, targets, of)
            else:
                logits = response_predictions(frozen.lm, rows, mask).logits
                logprobs = token_logprobs(logits, targets, of)
        return onto_responses(logprobs, mask)

    @torch.no_grad()
    def _reference_pass(
        self, sequences: Sequences, needs: frozenset[EvidenceRequest]
    ) -> tuple[Answers, Float[Tensor, "token vocab"]]:
        """Attention evidence and logits of the frozen reference."""
        with self._network.reference.active():
            predictions, evidence = self._read("reference", self._network.reference.lm, needs, sequences)
        return evidence, predictions.logits

    def _read(
        self, source: Source, lm: PreTrainedModel, needs: frozenset[EvidenceRequest], sequences: Sequences
    ) -> tuple[Predictions, Answers]:
        """A forward pass of ``lm``, and the attention requests to ``source`` answered from it."""
        rows = right_padded(sequences)
        taps = [request for request in needs if isinstance(request, AttentionTap) and request.source == source]
        run = partial(response_predictions, lm, rows, sequences.response_mask)
        if not taps:
            return run(), {}
        return self._network.readers[source].read(taps, policy_layout(rows, sequences), run)

    def _distribution(self, temperature: float) -> Distribution:
        return Distribution(eos_ids=self.eos_ids, temperature=temperature, unnamed=self._unnamed)

    def _require_evidence(self, needs: frozenset[EvidenceRequest]) -> None:
        refused = {request: reason for request in needs if (reason := self.why_not(request))}
        if refused:
            raise ValueError(f"this policy cannot measure {list(refused)}: {'; '.join(refused.values())}")
        if needs and torch.is_grad_enabled():
            raise ValueError(f"evidence carries no gradient: evaluate {list(needs)} under torch.no_grad()")

    def _require_prompts(self, prompts: Sequence[Sequence[int]], max_lengths: Sequence[int]) -> None:
        size, unnamed, context = self.vocab_size, self._unnamed_ids, self._network.context
        if problems := list(prompt_problems(prompts, max_lengths, vocab_size=size, context=context, unnamed=unnamed)):
            raise ValueError("prompts: " + listed(problems))


def _evaluation(
    logprobs: Tensor, values: Tensor, entropies: Tensor, mask: Tensor, evidence: Mapping[EvidenceRequest, Tensor]
) -> Evaluation:
    """Numbers of response tokens, put where the tokens stand."""
    numbers = {"logprobs": logprobs, "values": values, "entropy": entropies}
    return Evaluation(**{name: onto_responses(flat, mask) for name, flat in numbers.items()}, evidence=evidence)
