"""Further frozen models beside a policy, whose log-probabilities a redistributor asks for: one trained by DPO, say."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.weights.adapter_weights import carries_embeddings, fit_vocabulary, put_on
from models.weights.adapters import adapter_config, adapter_folder, add_frozen_adapter, base_source, only_low_rank
from models.weights.language_model import load_language_model, vocabulary
from models.weights.language_model_check import check_language_model
from models.weights.reference import TRAINED, AdapterOff, FrozenAdapter, FrozenCopy, Reference
from models.weights.source import ModelSource, same_place
from models.weights.tokenizer import load_tokenizer, require_same_tokens
from rlhf_core.files.file_errors import reading

Beside = AdapterOff | FrozenAdapter | FrozenCopy


def auxiliary_sources(named: Mapping[str, str], policy: ModelSource) -> dict[str, ModelSource]:
    """The source of each, with the policy's dtype, device and quantisation.

    Raises:
        TypeError: no mapping from names to folders or hub names.
        FileNotFoundError: no such folder, and no name that a hub could know.
    """
    if not isinstance(named, Mapping) or not all(isinstance(name, str) and name for name in named):
        raise TypeError(f"auxiliaries must map names to folders or hub names, got {named!r}")
    # revision and trust were given for the policy alone
    return {
        name: replace(policy, name_or_path=where, revision=None, trust_remote_code=False)
        for name, where in named.items()
    }


def load_auxiliaries(
    sources: Mapping[str, ModelSource], base: ModelSource, reference: Beside, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Reference]:
    """Each as a frozen model by its name: an adapter on the weights that the policy is itself an adapter on shares
    them; anything else (a whole model, an adapter on other weights) is loaded beside it.

    Raises:
        ValueError: what cannot be read, as for a policy, or reads other tokens than the policy.
    """
    found: dict[str, Reference] = {}
    for number, (name, source) in enumerate(sources.items()):
        with reading(source.name_or_path):
            adapter = adapter_folder(source)
            under = source if adapter is None else base_source(adapter, source)
            shared = adapter is not None and _same_weights(under, base)
            under = base if shared else under  # of the policy's revision
            theirs = load_tokenizer([source] if adapter is None else [source, under])
            require_same_tokens(f"auxiliary {name!r} ({source.name_or_path})", theirs, tokenizer)
            if (
                adapter is not None
                and not isinstance(reference, FrozenCopy)
                and shared
                and _can_share(reference, adapter)
            ):
                held = f"auxiliary_{number}"  # PEFT's names are attributes of modules, so not any text will do
                found[name] = add_frozen_adapter(reference.adapters, reference.lm, adapter, name=held)
                continue
            lm = load_language_model(under)
            if adapter is not None:
                fit_vocabulary(lm, adapter, theirs)
                put_on(lm, adapter, trained=False)
            found[name] = FrozenCopy(lm=_frozen(lm, name, source, vocabulary(reference.lm)))
    return found


def _same_weights(under: ModelSource, base: ModelSource) -> bool:
    """Whether an adapter made for ``under`` fits the policy's weights; one that states no revision takes the policy's,
    and folders have none."""
    if not same_place(under, base):
        return False
    return Path(base.name_or_path).is_dir() or under.revision in (None, base.revision)


def _can_share(reference: AdapterOff | FrozenAdapter, adapter: str) -> bool:
    """Whether the policy's weights are those of the base still, and stay so under one more adapter."""
    ours, theirs = reference.adapters.peft_config[TRAINED], adapter_config(adapter)
    if not (only_low_rank(ours) and only_low_rank(theirs)):
        return False
    changed = isinstance(reference, FrozenAdapter) and reference.carries_embeddings
    return not changed and not carries_embeddings(reference.lm, adapter, theirs)


def _frozen(lm: PreTrainedModel, name: str, source: ModelSource, vocab_size: int) -> PreTrainedModel:
    if vocabulary(lm) != vocab_size:
        raise ValueError(
            f"auxiliary {name!r} ({source.name_or_path}) gives probabilities to {vocabulary(lm)} token ids, the policy "
            f"to {vocab_size}; bring both embeddings to one size with resize_token_embeddings and save again"
        )
    check_language_model(lm, vocab_size)
    lm.requires_grad_(False)
    lm.eval()  # type: ignore[no-untyped-call]
    return lm
