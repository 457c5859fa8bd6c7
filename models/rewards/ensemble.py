"""Several reward models as one: the score is an aggregate, and each member can provide its own evidence."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from transformers import PreTrainedModel

from models.passes.fused import make_lean
from models.rewards.classifier_head import HEAD_NAMES
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.loading import head_labels
from models.rewards.score_kinds import Label
from models.rewards.score_names import Pooling, ScoreKind
from models.rewards.trunk import load_trunk
from models.weights.adapter_weights import carries_embeddings, put_on
from models.weights.adapters import adapter_config, adapter_folder, adapter_task, base_source, only_low_rank
from models.weights.dtype_names import DType
from models.weights.folder_kinds import require_adapter_kind
from models.weights.source import ModelSource, same_place
from models.weights.tokenizer import load_tokenizer
from rlhf_core.checks import why_not_provided
from rlhf_core.evidence import EvidenceRequest, HiddenTap, PrefixScores
from rlhf_core.files.file_errors import reading
from rlhf_core.names import counted
from rlhf_core.scorers.aggregation import Aggregate, MemberScores, OfMember
from rlhf_core.types import HasIdRange, HasVocabulary, ReadsRows, RewardModel, Scored, Sequences, ValidatesPrompts


@final
class RewardEnsemble:
    """``members`` score every response, and ``aggregate`` combines their scores into one.

    Evidence is asked of a member by ``OfMember``, and the members' scores by ``MemberScores``;
    ``redistributors.EnsembleCredit`` does both. Members are reward models of any kind, of one tokenizer.
    ``vocabulary`` and ``vocab_size`` (the smallest) are there where a member knows its own, ``validate_columns`` where
    one is a function on the caller's rows.

    Raises:
        ValueError: no members, or members whose vocabularies differ.
    """

    vocabulary: Mapping[str, int]
    vocab_size: int
    validate_columns: Callable[[Collection[str]], None]

    def __init__(self, members: Sequence[RewardModel], aggregate: Aggregate) -> None:
        if not members:
            raise ValueError("RewardEnsemble: members are empty; one reward model is the least")
        self.members, self.aggregate = tuple(members), aggregate
        vocabularies = [member.vocabulary for member in self.members if isinstance(member, HasVocabulary)]
        differing = [number for number, vocabulary in enumerate(vocabularies) if vocabulary != vocabularies[0]]
        if differing:
            raise ValueError(
                f"RewardEnsemble: members {differing} read other tokens in the same ids than member 0; give a member "
                "with another tokenizer as a RetokenisedReward"
            )
        # attributes that exist only where a member has them: the engine compares what it finds
        if vocabularies:
            self.vocabulary = vocabularies[0]
        sizes = [member.vocab_size for member in self.members if isinstance(member, HasIdRange)]
        if sizes:
            self.vocab_size = min(sizes)
        if any(isinstance(member, ReadsRows) for member in self.members):
            self.validate_columns = self._validate_columns

    @property
    def identity(self) -> Mapping[str, object]:
        """Its members, in order, and how their scores are combined."""
        return {"members": self.members, "aggregate": self.aggregate}

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """Raise ValueError for ``prompts`` that a member refuses with ``max_length`` response tokens after them."""
        for member in self.members:
            if isinstance(member, ValidatesPrompts):
                member.validate(prompts, max_length)

    def _validate_columns(self, names: Collection[str]) -> None:
        for member in self.members:
            if isinstance(member, ReadsRows):
                member.validate_columns(names)

    def provides(self, request: EvidenceRequest) -> bool:
        """Whether ``score`` can answer ``request``."""
        return not self.why_not(request)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why ``request`` cannot be answered, in words; empty if it can."""
        number = len(self.members)
        if isinstance(request, MemberScores):
            if (request.members, request.aggregate) == (number, self.aggregate):
                return ""
            return f"the ensemble has {number} members and {self.aggregate!r}"
        if not isinstance(request, OfMember):
            return _nothing_of_its_own(request, number)
        if not 0 <= request.member < number:
            return f"the ensemble has members 0 to {number - 1}, not {request.member}"
        reason = why_not_provided(request.request, self.members[request.member])
        return reason and f"member {request.member} cannot give {request.request!r}: {reason}"

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """Scores of ``sequences``, every member's made one, and the evidence in ``needs``, asked of each member in its
        own scoring pass.

        Raises:
            ValueError: a need that cannot be answered, with the reason; whatever a member refuses.
        """
        for request in needs:
            if reason := self.why_not(request):
                raise ValueError(f"{request} cannot be measured: {reason}")
        asked = [request for request in needs if isinstance(request, OfMember)]
        scored = [
            member.score(sequences, frozenset(request.request for request in asked if request.member == number))
            for number, member in enumerate(self.members)
        ]
        scores = torch.stack([one.scores.to(scored[0].scores) for one in scored], dim=1)
        evidence: dict[EvidenceRequest, torch.Tensor] = {
            request: scored[request.member].evidence[request.request] for request in asked
        }
        evidence |= {request: scores for request in needs if isinstance(request, MemberScores)}
        return Scored(scores=self.aggregate.aggregate(scores), evidence=evidence)


def _nothing_of_its_own(request: EvidenceRequest, members: int) -> str:
    if isinstance(request, HiddenTap) and not isinstance(request, PrefixScores):
        return (
            f"an ensemble of {members} members has no hidden states of its own; ask one of them, by OfMember, or give "
            "the method features without HiddenState"
        )
    return (
        f"an ensemble has evidence of each of its {members} members, and none of its own; wrap the method in "
        "EnsembleCredit"
    )


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class AdapterMember:
    """One of several adapters on a base model that they share: ``reward`` with the adapter ``name`` switched on, its
    head with it. What is asked of a member is asked while its adapter is the active one."""

    reward: ClassifierReward
    adapters: Any
    """The PeftModel around ``reward.model``."""
    name: str

    @property
    def identity(self) -> Mapping[str, object]:
        """The base under one of its adapters; where that came from is not a setting."""
        return {"reward": self.reward}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Which token each id stands for."""
        return self.reward.vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of ids that the base model reads."""
        return self.reward.vocab_size

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """As the reward model's."""
        self.reward.validate(prompts, max_length)

    def provides(self, request: EvidenceRequest) -> bool:
        """Whether ``score`` can answer ``request``."""
        return not self.why_not(request)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why ``request`` cannot be answered, in words; empty if it can."""
        return self._active().why_not(request)

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """Scores and evidence under this adapter; raises as the reward model does."""
        return self._active().score(sequences, needs)

    def _active(self) -> ClassifierReward:
        self.adapters.set_adapter(self.name, inference_mode=True)
        return self.reward


def load_reward_ensemble(
    adapters: Sequence[str],
    *,
    aggregate: Aggregate,
    score: ScoreKind | None = None,
    label: Label | None = None,
    pooling: Pooling = "last",
    four_bit: bool = False,
    dtype: DType = "float32",
    device: str = "cpu",
    micro_batch_tokens: int = 4096,
) -> RewardEnsemble:
    """An ensemble of LoRA ``adapters`` (folders or hub names), each with a ``score`` head of its own, on the one base
    model they all name, which is loaded once. ``aggregate``, a rule of ``rlhf_core.scorers.aggregation``, makes one
    score of theirs. ``score``, ``label``, ``pooling``, ``four_bit``, ``dtype``, ``device`` and ``micro_batch_tokens``
    as in :func:`models.load_reward_model`.

    Raises:
        ValueError: no adapters, one that is none or lacks a head, adapters on different bases or with other numbers of
            labels; what :func:`models.load_reward_model` refuses.
        FileNotFoundError: no such folder.
    """
    sources = [ModelSource(name_or_path=name, dtype=dtype, four_bit=four_bit, device=device) for name in adapters]
    if not sources:
        raise ValueError("load_reward_ensemble: adapters are empty; name the folder of each member's adapter")
    folders = [_adapter(source) for source in sources]
    bases = [base_source(folder, source) for folder, source in zip(folders, sources, strict=True)]
    labels = [head_labels(folder, source.name_or_path) for folder, source in zip(folders, sources, strict=True)]
    for name, base, count in zip(adapters, bases, labels, strict=True):
        same = same_place(base, bases[0]) and base.revision == bases[0].revision
        if not same or count != labels[0]:
            raise ValueError(
                f"{name} is an adapter on {base.name_or_path} with {counted(count, 'label')}, {adapters[0]} one on "
                f"{bases[0].name_or_path} with {labels[0]}; load such reward models one by one, for RewardEnsemble"
            )
    with reading(str(bases[0].name_or_path)):
        model = load_trunk(bases[0], labels=labels[0])
        make_lean(model)
        peft = _with_adapters(model, folders)
        tokenizer = load_tokenizer([sources[0], bases[0]])
    reward = ClassifierReward(
        model, tokenizer, score=score, label=label, pooling=pooling, micro_batch_tokens=micro_batch_tokens
    )
    members = [AdapterMember(reward=reward, adapters=peft, name=str(number)) for number in range(len(folders))]
    return RewardEnsemble(members, aggregate)


def _adapter(source: ModelSource) -> str:
    folder = adapter_folder(source)
    if folder is None:
        raise ValueError(
            f"{source.name_or_path} is not an adapter; load whole reward models one by one, for RewardEnsemble"
        )
    require_adapter_kind(source.name_or_path, "classifier", adapter_task(folder))
    return folder


def _with_adapters(model: PreTrainedModel, folders: Sequence[str]) -> Any:
    """All adapters on ``model``, in place and frozen, named by their number.

    Raises:
        ValueError: one that changes more of the base than low-rank updates and a head, which the others would share.
    """
    peft: Any = None
    for number, folder in enumerate(folders):
        config = adapter_config(folder)
        config.modules_to_save = sorted(set(config.modules_to_save or ()) - set(HEAD_NAMES))
        if not only_low_rank(config) or carries_embeddings(model, folder, config):
            raise ValueError(
                f"{folder} trains or holds more than low-rank updates and its head (modules_to_save="
                f"{config.modules_to_save}, trainable_token_indices={config.trainable_token_indices}, "
                f"target_parameters={config.target_parameters}, or embeddings), which the other members would share; "
                "load such reward models one by one, for RewardEnsemble"
            )
        peft = put_on(model, folder, name=str(number), trained=False, beside=peft)
    peft.set_adapter("0", inference_mode=True)
    peft.requires_grad_(False)
    return peft
