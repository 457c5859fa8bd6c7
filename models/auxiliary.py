"""Further frozen models beside a policy, whose log-probabilities a redistributor asks for: one trained by DPO, say."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.adapters import adapter_folder, add_frozen_adapter, base_source, put_adapter
from models.loading import ModelSource, check_language_model, load_language_model, load_tokenizer, vocabulary
from models.reference import AdapterOff, FrozenAdapter, FrozenCopy, Reference

Beside = AdapterOff | FrozenAdapter | FrozenCopy


def load_auxiliaries(
    named: Mapping[str, str], base: ModelSource, reference: Beside, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Reference]:
    """Each as a frozen model by its name: an adapter on the weights that the policy is itself an adapter on shares
    them; anything else (a whole model, an adapter on other weights) is loaded beside it, held as the policy is.

    Raises:
        TypeError: no mapping from names to folders or hub names.
        ValueError: what cannot be read, as for a policy, or reads other tokens than the policy.
        FileNotFoundError: no such folder, and no name that a hub could know.
    """
    if not isinstance(named, Mapping) or not all(isinstance(name, str) and name for name in named):
        raise TypeError(f"auxiliaries must map names to folders or hub names, got {named!r}")
    found: dict[str, Reference] = {}
    for name, where in named.items():
        source = replace(base, name_or_path=where, revision=None, trust_remote_code=False)
        adapter = adapter_folder(source)
        under = source if adapter is None else base_source(adapter, source)
        theirs = load_tokenizer([source] if adapter is None else [source, under])
        _require_same_tokens(name, where, theirs, tokenizer)
        if adapter is not None and not isinstance(reference, FrozenCopy) and _same_weights(under, base):
            found[name] = add_frozen_adapter(reference.adapters, reference.lm, adapter, name=f"auxiliary_{len(found)}")
            continue
        lm = load_language_model(under)
        if adapter is not None:
            put_adapter(lm, adapter)
        found[name] = FrozenCopy(lm=_frozen(lm, name, where, vocabulary(reference.lm)))
    return found


def _same_weights(one: ModelSource, other: ModelSource) -> bool:
    places = [Path(source.name_or_path) for source in (one, other)]
    if all(place.is_dir() for place in places):
        return places[0].samefile(places[1])
    return (str(one.name_or_path), one.revision) == (str(other.name_or_path), other.revision)


def _frozen(lm: PreTrainedModel, name: str, where: str, vocab_size: int) -> PreTrainedModel:
    if vocabulary(lm) != vocab_size:
        raise ValueError(
            f"auxiliary {name!r} ({where}) gives probabilities to {vocabulary(lm)} token ids, the policy to "
            f"{vocab_size}; bring both embeddings to one size with resize_token_embeddings and save again"
        )
    check_language_model(lm, vocab_size)
    lm.requires_grad_(False)
    lm.eval()  # type: ignore[no-untyped-call]
    return lm


def _require_same_tokens(name: str, where: str, theirs: Any, ours: Any) -> None:
    one, other = theirs.get_vocab(), ours.get_vocab()
    differing = sorted(token for token in one.keys() | other.keys() if one.get(token) != other.get(token))
    if differing:
        shown = ", ".join(f"{token!r} is {one.get(token)} and {other.get(token)}" for token in differing[:3])
        raise ValueError(
            f"auxiliary {name!r} ({where}) must share the policy's tokenizer, but {len(differing)} of their tokens "
            f"differ ({shown}); train it from a model with the policy's tokenizer"
        )
