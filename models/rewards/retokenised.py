"""A reward model with another tokenizer than the policy's: encode texts again, and map credit back by bytes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.passes.context_length import context_length
from models.passes.sampling import left_padded
from models.policy.causal_policy import CausalPolicy
from models.rewards.classifier import null_token, require_null
from models.rewards.classifier_probe import ClassifierProbe
from models.rewards.classifier_reward import ClassifierReward
from models.texts.alignment import Crossing
from models.texts.retokenising import Said, Telling, Told, encode, normalised, say, tell
from rlhf_core.callers import warn_caller
from rlhf_core.evidence import EvidenceRequest, HiddenTap, PrefixScores
from rlhf_core.names import nearest
from rlhf_core.probe import (
    AttentionMaps,
    Baseline,
    Cost,
    Experiment,
    MapGradients,
    PathPoint,
    Variants,
    measured,
)
from rlhf_core.prompts import listed
from rlhf_core.step_guard import UnusableRollout
from rlhf_core.types import Scored, Sequences

Prefixes = Literal["boundary", "retold"]
Reading = Literal["exact", "normalised"]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class RetokenisedReward:
    """``reward`` for a policy with another tokenizer: prompt and response are decoded once, as one text, and encoded
    for the reward model; evidence comes back to the policy's tokens by the bytes they share (see ``alignment``).

    The engine sees a reward model that reads the policy's ids: ``tokenizer``, ``eos_ids`` and ``vocab_size`` are the
    policy's (see :meth:`of`), whose special tokens are not part of the text. A response keeps the tokens that the
    policy sampled, which need not be those of its tokenizer for the same text. ``telling`` says how the text is
    prepared for the reward model.

    Attention and embedding gradients are shared out by bytes, so that their sum is kept. Experiments with altered
    responses alter policy tokens; "replace" writes the reward tokenizer's null token where they stood.

    ``prefixes``: how r(x, y_<t) is computed. "retold" encodes and scores every prefix separately, which is causal and
    exact, and takes one pass per token. "boundary" reads it from one pass over the whole text, at the last reward token
    that ends at or before token t's first byte. The reward tokenizer's split of a text depends on what follows, so
    these scores do too: if reward tokens are longer than the policy's, later text changes which tokens were read at a
    third to a half of the boundaries. Prefix differences are then not exact shaping, whatever they declare.

    ``reading``: what to do with a text that the reward tokenizer does not reproduce, because it normalises (lower case,
    NFKC, a space for a line's end) or lacks a token. "exact" refuses prompts of this kind, and a response of this kind
    makes its rollout unusable, which ``fit`` skips and counts. "normalised" scores what the reward model reads, and
    places its tokens by the tokenizer's own offsets.

    Raises:
        ValueError: EOS is wanted after every response, and the reward tokenizer has none; another ``prefixes`` or
            ``reading``; "normalised" with a tokenizer that tells no offsets.
    """

    reward: ClassifierReward
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    vocab_size: int
    telling: Telling
    prefixes: Prefixes = "retold"
    reading: Reading = "exact"

    @property
    def identity(self) -> Mapping[str, object]:
        """Settings that determine its scores."""
        return {"reward": self.reward, "telling": self.telling, "prefixes": self.prefixes}

    def __post_init__(self) -> None:
        for name, kind in (("prefixes", Prefixes), ("reading", Reading)):
            value, known = getattr(self, name), get_args(kind)
            if value not in list(known):
                raise ValueError(
                    f"RetokenisedReward: {name} must be one of {', '.join(known)}, got {value!r}{nearest(value, known)}"
                )
        if self.reading == "normalised" and not self.reward.tokenizer.is_fast:
            raise ValueError(
                f"RetokenisedReward: reading='normalised' needs a fast tokenizer, which reports the place of its "
                f"tokens; that of {self.reward.name} is not"
            )
        if self.reading == "exact" and (made := normalised(self.reward.tokenizer)):
            warn_caller(
                f"the tokenizer of {self.reward.name} rewrites texts ({made}), so most responses cannot be read as "
                "they are, and steps with such a one are skipped; RetokenisedReward(reading='normalised') scores "
                "them as the reward model reads them"
            )
        if self.telling.eos == "always" and self.reward.tokenizer.eos_token_id is None:
            raise ValueError("Telling: eos is 'always', but the reward model's tokenizer has no EOS token")

    @staticmethod
    def of(
        reward: ClassifierReward,
        policy: CausalPolicy,
        telling: Telling,
        *,
        prefixes: Prefixes = "retold",
        reading: Reading = "exact",
    ) -> "RetokenisedReward":
        """``reward`` for what ``policy`` writes; ``telling``, ``prefixes`` and ``reading`` as in the class."""
        return RetokenisedReward(
            reward=reward,
            tokenizer=policy.tokenizer,
            eos_ids=policy.eos_ids,
            vocab_size=policy.vocab_size,
            telling=telling,
            prefixes=prefixes,
            reading=reading,
        )

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The policy's vocabulary: the token of each id."""
        tokens: dict[str, int] = self.tokenizer.get_vocab()
        return tokens

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """Raise ValueError, listing the rows, for prompts whose text the reward tokenizer does not give back, or that
        leave no room in the context for ``max_length`` tokens. A response may take more of them than the policy needed
        for it, which scoring finds out."""
        said = [say(self.tokenizer, self.eos_ids, prompt, [], finished=False) for prompt in prompts]
        told = [tell(self.reward.tokenizer, self.telling, row) for row in said]
        if problems := list(self._lost(told)):
            raise ValueError(f"prompts: {listed(problems)}")
        self.reward.validate([row.prompt + row.response for row in told], max_length)

    def provides(self, request: EvidenceRequest) -> bool:
        """Whether ``score`` can answer ``request``."""
        return not self.why_not(request)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why ``request`` cannot be answered, in words; empty if it can."""
        if isinstance(request, HiddenTap) and not isinstance(request, PrefixScores):
            return "of hidden states, only prefix scores can be read between the tokens of another tokenizer"
        return self.reward.why_not(request)

    @torch.no_grad()
    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """Score every row of ``sequences``, and answer ``needs`` on the policy's tokens.

        Raises:
            MemoryError: a single row ran out of memory.
            UnusableRollout: texts that the reward tokenizer does not give back, that take more of its tokens than the
                context holds, or without a token before the response, listing the rows.
            ValueError: whatever the reward model refuses.
        """
        for request in needs:
            if reason := self.why_not(request):
                raise ValueError(f"{request} cannot be measured: {reason}")
        experiments = [request for request in needs if isinstance(request, Experiment)]
        retold = [request for request in needs if isinstance(request, PrefixScores) and self.prefixes == "retold"]
        probe = self.probe(sequences)
        scored = self.reward.score(probe.told, needs - frozenset(experiments) - frozenset(retold))
        crossing = probe.crossing
        evidence = {
            tap: crossing.before(found, scored.scores) if isinstance(tap, PrefixScores) else crossing.carry(found)
            for tap, found in scored.evidence.items()
        }
        evidence |= {request: probe.prefix_scores().to(scored.scores) for request in retold}
        evidence |= {request: measured(request, replace(probe, cost=Cost())) for request in experiments}
        return Scored(scores=scored.scores, evidence=evidence)

    def probe(self, sequences: Sequences) -> "RetokenisedProbe":
        """A probe of these ``sequences``, to measure an experiment alone and see what it costs. Raises UnusableRollout
        as ``score`` does."""
        rows = zip(sequences.prompts(), sequences.responses(), sequences.finished.tolist(), strict=True)
        said = [say(self.tokenizer, self.eos_ids, prompt, response, finished=done) for prompt, response, done in rows]
        told = [tell(self.reward.tokenizer, self.telling, row) for row in said]
        problems = [*self._lost(told), *self._headless(told)] or self._too_long([len(one) for one in told])
        if problems:
            raise UnusableRollout(f"responses: {listed(problems)}")
        crossing = Crossing(
            reward=tuple(row.segments for row in told),
            policy=tuple(row.segments for row in said),
            shape=(len(sequences), sequences.response_ids.shape[1]),
        )
        asked = _sequences([row.prompt for row in told], [row.response for row in told], sequences)
        return RetokenisedProbe(bridge=self, sequences=sequences, said=tuple(said), told=asked, crossing=crossing)

    def _lost(self, told: Sequence[Told]) -> Iterator[str]:
        """Rows whose text the reward tokenizer changes, if it must not."""
        for row, one in enumerate(told):
            if one.why_not_exact and self.reading == "exact":
                yield (
                    f"row {row}: {one.why_not_exact} under the tokenizer of {self.reward.name}; "
                    "RetokenisedReward(reading='normalised') scores it as it comes back"
                )

    def _headless(self, told: Sequence[Told]) -> Iterator[str]:
        for row, one in enumerate(told):
            if not one.prompt:
                yield (
                    f"row {row} has no token before its response under the tokenizer of {self.reward.name}; give it "
                    "one with add_special_tokens=True (BOS), or by Telling.prompt"
                )

    def _too_long(self, lengths: Sequence[int]) -> list[str]:
        limit = context_length(self.reward.model)
        return [
            f"row {row} takes {length} tokens of {self.reward.name}, which reads at most {limit}"
            for row, length in enumerate(lengths)
            if limit is not None and length > limit
        ]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class RetokenisedProbe:
    """A ``Probe`` (see rlhf_core.probe for the contract of each method) across two tokenizers. Cost counts the reward
    model's passes and tokens; ``said`` are the rows as texts, ``told`` the same in the reward model's tokens."""

    bridge: RetokenisedReward
    sequences: Sequences
    said: tuple[Said, ...]
    told: Sequences
    crossing: Crossing
    cost: Cost = field(default_factory=Cost)

    def scores(self, variants: Variants) -> Float[Tensor, "batch variant"]:
        """Scores of altered responses, each different text once.

        Raises:
            ValueError: ``keep`` of another shape than (batch, variant, response), or no null token to replace with.
        """
        keep, (batch, width) = variants.keep, self.crossing.shape
        if keep.ndim != 3 or (keep.shape[0], keep.shape[2]) != (batch, width) or keep.shape[1] < 1:
            raise ValueError(f"variants of shape {tuple(keep.shape)} for {batch} responses of {width} tokens")
        absent = {"delete": bytes, "replace": self._null}[variants.absent]()
        rows = [
            said.altered(kept[: len(said.segments)], absent)
            for said, of_row in zip(self.said, keep.tolist(), strict=True)
            for kept in of_row
        ]
        return self._scores(rows, self.bridge.telling).reshape(keep.shape[:2])

    def prefix_scores(self) -> Float[Tensor, "batch response"]:
        """r(x, y_<t), found as ``prefixes`` of the bridge says."""
        return {"boundary": self._at_boundaries, "retold": self._retold}[self.bridge.prefixes]()

    def embedding_gradients(self, alpha: float, baseline: Baseline) -> PathPoint:
        """On the path of the reward model's own response tokens, shared out by bytes."""
        point = self._probe(self.told).embedding_gradients(alpha, baseline)
        return PathPoint(scores=point.scores, contributions=self.crossing.carry(point.contributions))

    def select(self, rows: Int[Tensor, " row"]) -> "RetokenisedProbe":
        """The same model asked about some of the rows."""
        return replace(self.bridge.probe(self.sequences.select(rows)), cost=self.cost)

    def attention(
        self, reduce: Callable[[AttentionMaps], Float[Tensor, "batch reward ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """What ``reduce`` makes of the maps over the reward model's own tokens, shared out by bytes."""
        return self.crossing.carry(self._probe(self.told).attention(reduce))

    def attention_gradients(
        self, reduce: Callable[[MapGradients], Float[Tensor, "batch reward ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """The same for the maps and their gradients."""
        return self.crossing.carry(self._probe(self.told).attention_gradients(reduce))

    def _at_boundaries(self) -> Float[Tensor, "batch response"]:
        """From one pass; one more where the policy wrote on (EOS) after the last reward token: what is known there is
        the score."""
        probe, mask = self._probe(self.told), self.told.response_mask
        ends = torch.zeros(len(mask), device=mask.device)
        if self.crossing.reads_ends:
            ends = probe.scores(Variants(keep=mask[:, None], absent="delete"))[:, 0]
        return self.crossing.before(probe.prefix_scores(), ends)

    def _retold(self) -> Float[Tensor, "batch response"]:
        """Scores of every prefix as its own text, without the text that follows a response."""
        lengths = [len(said.segments) for said in self.said]
        beginnings = [
            said.altered([token < end for token in range(length)], b"")
            for said, length in zip(self.said, lengths, strict=True)
            for end in range(length)
        ]
        scores = self._scores(beginnings, replace(self.bridge.telling, after="", eos="never"))
        found = scores.new_zeros(self.crossing.shape)
        return found.masked_scatter(self.sequences.response_mask.to(found.device), scores)

    def _probe(self, sequences: Sequences) -> ClassifierProbe:
        return replace(self.bridge.reward.probe(sequences), cost=self.cost)

    def _null(self) -> bytes:
        tokenizer = self.bridge.reward.tokenizer
        null = require_null(self.bridge.reward.name, null_token(tokenizer), "absent")
        return str(tokenizer.convert_ids_to_tokens(null)).encode()

    def _scores(self, rows: Sequence[Said], how: Telling) -> Float[Tensor, " row"]:
        """Scores of texts, each different one once. One of a single token stands as a prompt whose response is taken
        out."""
        told = [tuple(encode(self.bridge.reward.tokenizer, how, row).ids) for row in rows]
        if problems := self.bridge._too_long([len(ids) for ids in told]):
            raise UnusableRollout(f"altered responses: {listed(problems)}")
        place = {ids: number for number, ids in enumerate(dict.fromkeys(told))}
        sequences = _sequences([ids[:1] for ids in place], [ids[1:] or ids for ids in place], self.sequences)
        mask = sequences.response_mask
        keep = mask & torch.tensor([len(ids) > 1 for ids in place], device=mask.device)[:, None]
        scores = self._probe(sequences).scores(Variants(keep=keep[:, None], absent="delete"))[:, 0]
        return scores[torch.tensor([place[ids] for ids in told], device=scores.device)]


def _sequences(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], like: Sequences) -> Sequences:
    """On the device of ``like``; lengths and ``finished`` mean nothing to a reward model."""
    device = like.response_ids.device
    prompt_ids, prompt_mask = left_padded(prompts, device)
    flipped, mask = left_padded([row[::-1] for row in responses], device)
    lengths = mask.sum(1)
    return Sequences(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=flipped.flip(1),
        response_mask=mask.flip(1),
        min_lengths=torch.zeros_like(lengths),
        max_lengths=lengths,
        finished=torch.ones_like(lengths, dtype=torch.bool),
    )
