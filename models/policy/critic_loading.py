"""Critics of every kind: on the policy's trunk, on an adapter beside the policy's, or on a model of their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from models.passes.fused import make_lean
from models.passes.gradient_checkpointing import checkpointed_modules
from models.passes.rotary import read_rows_alone
from models.policy.critic_names import CriticKind
from models.policy.critics import FOLDER, Critic, OwnTrunk, SharedTrunk
from models.policy.restoring import read_adapter_back, read_model_back
from models.policy.trunk_check import check_trunk
from models.policy.value_head import FILE, ValueHead
from models.progress_bars import save_without_bars
from models.weights.adapter_weights import WEIGHTS, save_adapter
from models.weights.adapters import adapter_folder
from models.weights.integrity import require_intact
from models.weights.language_model import read_model, remove_randomness, vocabulary
from models.weights.reference import AdapterOff, FrozenAdapter, FrozenCopy
from models.weights.safe_files import read_settings
from models.weights.source import ModelSource
from models.weights.tokenizer import load_tokenizer, require_same_tokens
from models.weights.twin import twin
from rlhf_core.files.file_errors import reading
from rlhf_core.names import nearest


@dataclass(frozen=True, eq=False, kw_only=True)
class Beside:
    """The policy that a critic is made for."""

    source: ModelSource
    lm: PreTrainedModel
    head_size: int
    """Width of the policy's last hidden state."""
    reference: FrozenCopy | AdapterOff | FrozenAdapter
    tokenizer: PreTrainedTokenizerBase
    gradient_checkpointing: bool


def check_critic_settings(critic: object, critic_model: object) -> None:
    """Refuse settings that name no critic, before any file is looked at.

    Raises:
        ValueError: an unknown kind, or a model for a kind that has none.
        TypeError: a model that is no name.
    """
    kinds = get_args(CriticKind)
    if critic not in kinds:
        raise ValueError(f"critic must be one of {', '.join(kinds)}, got {critic!r}{nearest(critic, kinds)}")
    if critic_model is not None and not isinstance(critic_model, str | Path):
        raise TypeError(f"critic_model must be a folder or a name on the hub, as text, or None, got {critic_model!r}")
    if critic_model is not None and critic != "model":
        raise ValueError(f"critic_model {critic_model!r} belongs to critic='model', and critic is {critic!r}")


def critic_source(
    critic: CriticKind, critic_model: str | None, policy: ModelSource, *, is_adapter: bool
) -> ModelSource | None:
    """Where a critic's own model comes from, None for a kind that has none; ``is_adapter``: an adapter of the policy is
    trained, and not all its weights.

    Raises:
        ValueError: a kind that this policy cannot have, before any weights are read.
        FileNotFoundError: no such folder, and no name that a hub could know.
    """
    return SOURCES[critic](critic_model, policy, is_adapter)


def _no_source(_: str | None, __: ModelSource, ___: bool) -> None:
    return None


def _adapter_source(_: str | None, policy: ModelSource, is_adapter: bool) -> None:
    saved = Path(policy.name_or_path, FOLDER)
    if not is_adapter:
        raise ValueError(
            f"critic='adapter' is an adapter beside the policy's, on weights that stay as they are, and all weights of "
            f"{policy.name_or_path} are trained; give lora=LoraSettings(), or choose critic 'model' or 'shared'"
        )
    if saved.is_dir() and not (saved / WEIGHTS).is_file():
        raise ValueError(
            f"{saved} is the critic that this policy was saved with, and no adapter; choose critic='model'"
        )


def _model_source(critic_model: str | None, policy: ModelSource, _: bool) -> ModelSource:
    saved = Path(policy.name_or_path, FOLDER)
    if critic_model is None and not (saved / "config.json").is_file():
        raise ValueError(
            f"critic='model' needs critic_model=<folder or hub name>, of a reward model or a language model with the "
            f"policy's tokenizer; {policy.name_or_path} was saved with none"
        )
    # revision and trust were given for the policy alone, and all of a critic's weights are trained
    held: dict[str, Any] = {"revision": None, "trust_remote_code": False, "dtype": "float32", "four_bit": False}
    source = replace(policy, name_or_path=str(saved if critic_model is None else critic_model), **held)
    if adapter_folder(source) is not None:
        raise ValueError(
            f"critic_model {source.name_or_path} is an adapter, and all weights of a critic's model are trained; merge "
            "it into its base (merge_and_unload of PEFT, then save_pretrained), or choose critic='adapter'"
        )
    return source


def make_critic(critic: CriticKind, beside: Beside, source: ModelSource | None) -> Critic:
    """The critic, where the policy's folder holds one as it was saved."""
    return MAKERS[critic](beside, source)


def _shared(beside: Beside, _: ModelSource | None) -> SharedTrunk:
    """A head of zeros, or the one in the policy's folder."""
    critic = SharedTrunk(head=ValueHead(beside.head_size).to(beside.lm.device))
    if Path(beside.source.name_or_path, FILE).is_file():
        critic.head.restore(beside.source.name_or_path)
    return critic


def _adapter(beside: Beside, _: ModelSource | None) -> OwnTrunk:
    if isinstance(beside.reference, FrozenCopy):
        raise TypeError("a critic's adapter needs a policy that is an adapter")
    critic = adapter_critic(beside.reference, gradient_checkpointing=beside.gradient_checkpointing)
    if Path(beside.source.name_or_path, FOLDER).is_dir():
        critic.read(str(beside.source.name_or_path))()
    return critic


def adapter_critic(reference: AdapterOff | FrozenAdapter, *, gradient_checkpointing: bool) -> OwnTrunk:
    """A copy of the policy's adapter on the same frozen weights, and a head of zeros."""
    adapters, carries = twin(reference.adapters), getattr(reference, "carries_embeddings", False)
    return _own_trunk(
        "adapter",
        adapters.get_base_model(),
        write=partial(save_adapter, adapters, carries=carries),
        read_back=partial(read_adapter_back, adapters, carries=carries),
        gradient_checkpointing=gradient_checkpointing,
    )


def _model(beside: Beside, source: ModelSource | None) -> OwnTrunk:
    """The trunk at ``source``. The head is the one in its folder; else that of a classifier whose score it tells (see
    :func:`score_head`); else zeros."""
    if source is None:
        raise TypeError("a critic's model needs a source")
    with reading(source.name_or_path):
        require_same_tokens(f"critic_model {source.name_or_path}", load_tokenizer([source]), beside.tokenizer)
        model = _read(source, vocabulary(beside.lm))
        trunk = cast(PreTrainedModel, model.base_model)
        critic = model_critic(trunk, beside.tokenizer, gradient_checkpointing=beside.gradient_checkpointing)
        if Path(source.name_or_path, FILE).is_file():
            critic.head.restore(source.name_or_path)
        else:
            start_from(critic.head, score_head(model))
    return critic


def model_critic(
    trunk: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, gradient_checkpointing: bool
) -> OwnTrunk:
    """A critic of which all of ``trunk`` is trained, and a head of zeros; saved with the ``tokenizer``, so that its
    folder is a ``critic_model`` itself."""
    remove_randomness(trunk)
    make_lean(trunk)
    read_rows_alone(trunk)
    trunk.requires_grad_(True)
    trunk.eval()  # type: ignore[no-untyped-call]

    def write(folder: str) -> None:
        save_without_bars(trunk, folder)
        tokenizer.save_pretrained(folder)

    return _own_trunk(
        "model",
        trunk,
        write=write,
        read_back=partial(read_model_back, trunk, wanted="critic"),
        gradient_checkpointing=gradient_checkpointing,
    )


def _own_trunk(
    kind: CriticKind,
    trunk: PreTrainedModel,
    *,
    write: Callable[[str], None],
    read_back: Callable[[str], Callable[[], object]],
    gradient_checkpointing: bool,
) -> OwnTrunk:
    return OwnTrunk(
        kind=kind,
        trunk=trunk,
        head=ValueHead(check_trunk(trunk, vocabulary(trunk))).to(trunk.device),
        write=write,
        read_back=read_back,
        checkpointed=checkpointed_modules(trunk) if gradient_checkpointing else (),
    )


def _read(source: ModelSource, policy_vocabulary: int) -> PreTrainedModel:
    """A classifier with its head, or the trunk of anything else, whole and in float32."""
    name = source.name_or_path
    named = read_settings(name, "config.json", source.revision).get("architectures")
    classifies = any(str(one).endswith("ForSequenceClassification") for one in named or ())
    factory = AutoModelForSequenceClassification if classifies else AutoModel
    model, loading = read_model(factory, source, torch.float32, wanted="critic")
    if getattr(model, "is_quantized", False):
        raise ValueError(f"critic_model {name} holds 4-bit weights, which cannot be trained")
    if loading["missing_keys"]:
        raise ValueError(f"critic_model {name}: {sorted(loading['missing_keys'])[:3]} are not in its files")
    require_intact(name, model, loading, heads=())
    if vocabulary(model) < policy_vocabulary:
        raise ValueError(
            f"critic_model {name} has embeddings of {vocabulary(model)} token ids, and the policy of "
            f"{policy_vocabulary}; bring both to one size with resize_token_embeddings and save again"
        )
    return model


def score_head(model: PreTrainedModel) -> nn.Linear | None:
    """The score of a classifier as one linear map of its trunk's state: the logit of a head of one label, or label 1
    minus label 0 where these are named negative and positive. None for another head, and for no classifier."""
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear):
        return None
    labels = [str(label).casefold() for _, label in sorted((model.config.id2label or {}).items())]
    signs = {1: [1.0], 2: [-1.0, 1.0] if labels == ["negative", "positive"] else None}.get(len(labels))
    if signs is None:
        return None
    found = nn.Linear(score.in_features, 1, device=score.weight.device)
    row = torch.tensor([signs], device=score.weight.device)
    with torch.no_grad():
        found.weight.copy_(row @ score.weight)
        found.bias.copy_(torch.zeros(1) if score.bias is None else row @ score.bias)
    return found


def start_from(head: ValueHead, score: nn.Linear | None) -> None:
    """Give ``head`` the weights of ``score`` where there is one of its size."""
    if score is not None and score.in_features == head.linear.in_features:
        head.linear.load_state_dict(score.state_dict())


Source = Callable[[str | None, ModelSource, bool], ModelSource | None]
SOURCES: Mapping[CriticKind, Source] = MappingProxyType(
    {"shared": _no_source, "adapter": _adapter_source, "model": _model_source}
)
MAKERS: Mapping[CriticKind, Callable[[Beside, ModelSource | None], Critic]] = MappingProxyType(
    {"shared": _shared, "adapter": _adapter, "model": _model}
)
"""By the names that ``load_policy(critic=...)`` takes."""
