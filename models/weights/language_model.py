"""Language models and tokenizers from a folder or the hub: safetensors only, complete, without dropout, and checked."""

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from models.passes.forward import response_predictions
from models.passes.fused import make_lean
from models.passes.layout import Rows
from models.passes.rotary import read_rows_alone
from models.passes.sampling import CachedDecoder, left_padded
from models.passes.switches import NEAR, SWITCHES, beside_switches, past_switches, within_reach
from models.weights.folder_kinds import Wanted, require_kind
from models.weights.four_bit import four_bit_config, keep_unpacked, stored_quantisation
from models.weights.integrity import check_folder, require_intact
from models.weights.safe_files import read_settings, require_safe_files
from rlhf_core.files.file_errors import reading

DType = Literal["float32", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RANDOMNESS = re.compile("drop|jitter")
TOKENIZER_FILE = re.compile(r"tokenizer\.|vocab|tekken|spiece|bpe|sentencepiece|.*\.(model|tiktoken|spm)$")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where weights come from and how they are held.

    Raises:
        TypeError: a name or revision that is no text, a flag that is neither True nor False.
        ValueError: remote code without a pinned commit, an unknown dtype or device, a folder with damaged settings.
        FileNotFoundError: neither a folder nor a name that the hub, or offline its cache, could have.
    """

    name_or_path: str
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: DType = "float32"
    four_bit: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not isinstance(self.name_or_path, str | Path) or not str(self.name_or_path):
            raise TypeError(f"a model is a folder or a name on the hub, as text, got {self.name_or_path!r}")
        for flag in ("trust_remote_code", "four_bit"):
            if not isinstance(getattr(self, flag), bool):
                raise TypeError(f"{flag} must be True or False, got {getattr(self, flag)!r}")
        if self.revision is not None and not isinstance(self.revision, str):
            raise TypeError(f"revision must be the name of one, as text, got {self.revision!r}")
        if self.dtype not in list(DTYPES):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"trust_remote_code runs code that comes with {self.name_or_path!r}: pin it with revision=<the 40 hex "
                f"digits of a commit you have read>, got revision={self.revision!r}"
            )
        folder = Path(self.name_or_path)
        if not folder.is_dir():
            _require_hub_name(self.name_or_path, self.revision)
        check_folder(folder)
        _require_device(self.device)

    @property
    def code(self) -> dict[str, Any]:
        """Keyword arguments of every ``from_pretrained``."""
        pinned = {"code_revision": self.revision} if self.trust_remote_code else {}
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code, **pinned}


def same_place(one: ModelSource, other: ModelSource) -> bool:
    """Whether both name one folder, however it is spelled, or one model on the hub, of whatever revision."""
    places = [Path(source.name_or_path) for source in (one, other)]
    if all(place.is_dir() for place in places):
        return places[0].samefile(places[1])
    return str(one.name_or_path) == str(other.name_or_path)


def _require_hub_name(name: str, revision: str | None) -> None:
    """Say at once what retries over the network would find out late, or never."""
    if not HUB_NAME.fullmatch(str(name)):
        raise FileNotFoundError(f"there is no folder {name!r}; a name on the hub has the form owner/name")
    files = ("config.json", "adapter_config.json")
    if is_offline_mode() and not any(
        isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files
    ):
        raise FileNotFoundError(
            f"there is no folder {name!r}, and offline (HF_HUB_OFFLINE) no hub model but those in the cache; a name on "
            "the hub has the form owner/name"
        )


def _require_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'cpu', 'cuda' or kin, got {device!r}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: torch finds no CUDA device on this machine")


def load_language_model(source: ModelSource) -> PreTrainedModel:
    """The causal language model, with every dropout at zero, in eval mode.

    Raises:
        ValueError: files that ``require_safe_files`` refuses or that cannot be read, weights missing
            from them (transformers would draw them at random), or what ``require_intact`` refuses.
        ModuleNotFoundError: 4-bit without bitsandbytes.
    """
    lm = read_language_model(source)
    remove_randomness(lm)
    make_lean(lm)
    keep_unpacked(lm)
    read_rows_alone(lm)
    lm.eval()  # type: ignore[no-untyped-call]
    return lm


def read_language_model(source: ModelSource) -> PreTrainedModel:
    """The causal language model as it was saved, with its dropout."""
    lm, loading = read_model(AutoModelForCausalLM, source, DTYPES[source.dtype], wanted="language model")
    require_complete(source.name_or_path, lm, loading)
    return lm


def read_model(
    factory: Any,
    source: ModelSource,
    dtype: torch.dtype,
    *,
    wanted: Wanted,
    products: torch.dtype | None = None,
    whole: Collection[str] = (),
    **options: object,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The one road by which the weights of a whole model come in, and transformers' account of it, which is the
    caller's to judge. In 4-bit, ``products`` is what matrix products are computed in (None: ``dtype``), and ``whole``
    names modules that are not quantised.

    Raises:
        ValueError: another kind of model than is ``wanted``, files that ``require_safe_files``
            refuses or that cannot be read, or weights quantised in a way that nothing here computes with.
        ModuleNotFoundError: 4-bit without bitsandbytes.
    """
    name = source.name_or_path
    config = read_settings(name, "config.json", source.revision)
    require_kind(name, wanted, config)
    require_safe_files(name, source.revision)
    stored = stored_quantisation(name, config)
    if stored is not None:
        with reading(name):
            own: Any = AutoConfig.from_pretrained(name, **source.code, **options)
        own.quantization_config = {**stored, "bnb_4bit_compute_dtype": str(products or dtype).removeprefix("torch.")}
        options = {"config": own}
    elif source.four_bit:
        quantisation = four_bit_config(products or dtype)
        quantisation.llm_int8_skip_modules = list(whole) or None
        options |= {"quantization_config": quantisation}
    quantised = source.four_bit or stored is not None
    if quantised:
        options |= {"device_map": {"": source.device}}
    with reading(name):
        model, loading = factory.from_pretrained(
            name,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source.code,
            **options,
        )
    if not quantised:
        model.to(source.device)
    elif stored is not None:
        for weight in model.parameters():  # those that are not packed keep the dtype they were stored in
            weight.data = weight.data.to(dtype) if weight.is_floating_point() else weight.data
    return model, loading


def require_complete(name: str, lm: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    """Raise ValueError where weights of a language model are missing, or what else ``require_intact`` refuses."""
    if loading["missing_keys"]:
        raise ValueError(
            f"{name} is no complete {type(lm).__name__}: {sorted(loading['missing_keys'])[:5]} are not in its files "
            "and would be random; fine-tune and save it as a causal language model first"
        )
    require_intact(name, lm, loading)


def load_tokenizer(sources: Sequence[ModelSource]) -> PreTrainedTokenizerBase:
    """A policy's tokenizer, found as :func:`find_tokenizer` does.

    Raises:
        ValueError: none has one, or it ends every text with EOS, after which nothing can be generated.
    """
    tokenizer = find_tokenizer(sources)
    ids = tokenizer("a")["input_ids"]
    if tokenizer.eos_token_id is not None and ids and ids[-1] == tokenizer.eos_token_id:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} ends every text with EOS, after which a policy has nothing to "
            "say; set add_eos_token to false in its tokenizer_config.json"
        )
    return tokenizer


def find_tokenizer(sources: Sequence[ModelSource]) -> PreTrainedTokenizerBase:
    """The tokenizer of the first source that has one: an adapter's, else its base model's.

    Raises:
        ValueError: none has one, with the reasons.
    """
    reasons = []
    for source in sources:
        folder = Path(source.name_or_path)
        if folder.is_dir() and not any(TOKENIZER_FILE.match(file.name) for file in folder.iterdir()):
            reasons.append(f"{folder} has no tokenizer files; save the tokenizer of its model there (save_pretrained)")
            continue
        try:
            with reading(source.name_or_path):
                tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name_or_path, **source.code)
        except (OSError, ValueError) as reason:
            reasons.append(str(reason))
            continue
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            reasons.append(f"{source.name_or_path} has no tokenizer files")
            continue
        return tokenizer
    raise ValueError("no tokenizer could be loaded: " + "; ".join(reasons))


def remove_randomness(model: nn.Module) -> None:
    """Set every dropout (modules, functional ones read from attributes or the config, layer drop, router jitter) to 0,
    so that train and eval mode compute the same."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for owner in (module, getattr(module, "config", None)):
            for name, value in vars(owner).items() if owner is not None else ():
                if RANDOMNESS.search(name) and isinstance(value, float | int) and not isinstance(value, bool):
                    setattr(owner, name, 0.0)


def vocabulary(lm: PreTrainedModel) -> int:
    """Ids the model has an embedding for; may exceed the tokenizer's where the embedding is padded."""
    embedding: Any = lm.get_input_embeddings()
    return int(embedding.weight.shape[0])


def named_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for a token, added ones included; there may be others below the largest."""
    added: Any = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.get_vocab().values()) | frozenset(added)


def collect_eos_ids(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a response: the tokenizer's, the config's and the generation config's (Llama 3 has three)."""
    found: set[int] = set()
    for owner in (tokenizer, lm.config, lm.generation_config):
        ids = getattr(owner, "eos_token_id", None)
        given = ids if isinstance(ids, list | tuple) else [] if ids is None else [ids]
        if not all(type(token) is int for token in given):
            raise ValueError(
                f"eos_token_id of {type(owner).__name__} must be a token id or a list of them, got {ids!r}"
            )
        found |= set(given)
    return tuple(sorted(found))


def context_length(lm: PreTrainedModel) -> int | None:
    """Positions the model was built for; None where its config names no limit."""
    config = lm.config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    limits = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    return min(limits, default=None)


def frozen_copy(lm: PreTrainedModel) -> PreTrainedModel:
    """An independent copy in eval mode that no optimizer reaches."""
    frozen = copy.deepcopy(lm).requires_grad_(False)
    frozen.eval()  # type: ignore[no-untyped-call]
    return frozen


@torch.no_grad()
def check_language_model(lm: PreTrainedModel, vocab_size: int) -> int:
    """Run ragged batches through every kind of pass a policy makes and compare with the model's plain forward on each
    row alone; the size of the head's input.

    Catches architectures that see the future, ignore position ids under left padding, keep their cache elsewhere,
    compute logits from something else than their output embedding, still drop out in train mode, or read a row by its
    company: rows lie on both sides of the switches that the config names (see :mod:`models.passes.switches`).

    Raises:
        ValueError: naming the architecture, the pass, and the mean difference of log-probabilities in nats.
    """
    for lengths in beside_switches(lm, context_length(lm)):
        hidden = _check_passes(lm, _ragged(lengths, vocab_size), "")
    with within_reach(lm):
        past = (
            f" past its switches ({', '.join(SWITCHES)}, put at {NEAR} tokens; one beyond twice "
            "max_position_embeddings, which you may lower in its config.json, is never reached)"
        )
        _check_passes(lm, _ragged(past_switches(context_length(lm)), vocab_size), past)
    return hidden


def _ragged(lengths: tuple[int, int], vocab_size: int) -> list[list[int]]:
    return [[(7 * i + 3 * row + 1) % vocab_size for i in range(length)] for row, length in enumerate(lengths)]


def _check_passes(lm: PreTrainedModel, ids: list[list[int]], where: str) -> int:
    lm.train(False)
    plain = [lm(input_ids=torch.tensor([row], device=lm.device), use_cache=False).logits[0] for row in ids]
    wanted = torch.cat([logits[:-1] for logits in plain])
    evaluated, hidden = _evaluated(lm, ids)
    lm.train()
    trained, _ = _evaluated(lm, ids)
    lm.train(False)
    tolerance = 1e-4 if lm.dtype == torch.float32 and not getattr(lm, "is_quantized", False) else 0.1
    _compare(lm, f"teacher-forced pass (right padding, head on response tokens){where}", evaluated, wanted, tolerance)
    _compare(lm, f"pass in train mode (dropout at 0){where}", trained, evaluated, 1e-5)
    ends = torch.stack([plain[0][-2], plain[1][-2], plain[1][-1]])
    _compare(lm, f"sampling pass (left padding, cache){where}", _sampled(lm, ids), ends, tolerance)
    return hidden


def _evaluated(lm: PreTrainedModel, ids: list[list[int]]) -> tuple[Tensor, int]:
    """Logits that predict every token but the first of each row."""
    lengths = torch.tensor([len(row) for row in ids], device=lm.device)
    width = int(lengths.max())
    columns = torch.arange(width, device=lm.device)
    rows = Rows(
        input_ids=torch.tensor([row + [0] * (width - len(row)) for row in ids], device=lm.device),
        attention_mask=columns < lengths[:, None],
        response_positions=columns[1:].expand(len(ids), -1),
        longest=lengths,
    )
    predictions = response_predictions(lm, rows, rows.attention_mask[:, 1:])
    return predictions.logits, predictions.hidden.shape[-1]


def _sampled(lm: PreTrainedModel, ids: list[list[int]]) -> Tensor:
    """Logits at the last column but one of both rows, and, from a cached step without the first, the second's last."""
    decoder = CachedDecoder(lm, room=torch.ones(len(ids), dtype=torch.long))
    first = decoder.start(*left_padded([row[:-1] for row in ids], lm.device))
    decoder.keep(torch.tensor([1], device=lm.device))
    return torch.cat([first, decoder.advance(torch.tensor([ids[1][-1]], device=lm.device))])


def _compare(
    lm: PreTrainedModel,
    what: str,
    found: Float[Tensor, "token vocab"],
    wanted: Float[Tensor, "token vocab"],
    tol: float,
) -> None:
    if found.shape != wanted.shape:
        raise ValueError(f"{type(lm).__name__} cannot be a policy: its {what} gives logits {tuple(found.shape)}")
    gap = float((found.float().log_softmax(-1) - wanted.float().log_softmax(-1)).abs().mean())
    if not gap <= tol:
        raise ValueError(
            f"{type(lm).__name__} cannot be a policy: its {what} differs from its plain forward pass by {gap:.2g} nats "
            f"(mean over the vocabulary; allowed: {tol:.0e})"
        )
