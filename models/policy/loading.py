"""``load_policy``: one function for full fine-tuning, LoRA and QLoRA, from a folder or a hub name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.passes.fixed_decoder import FixedSteps, compiled
from models.passes.fixed_steps_check import check_fixed_steps
from models.passes.fused import share_tied_gradient
from models.passes.gradient_checkpointing import checkpointed_modules
from models.passes.sampling import CachedDecoder, Decoder
from models.policy.auxiliaries import auxiliary_sources, load_auxiliaries
from models.policy.causal_policy import CausalPolicy
from models.policy.critic_loading import Beside, check_critic_settings, critic_source, make_critic
from models.policy.critic_names import CriticKind
from models.policy.critics import Critic, OwnTrunk
from models.policy.network import Network
from models.policy.precision import Precision, check_precision, check_sampling_dtype
from models.policy.restoring import read_adapter_back, read_model_back
from models.policy.sharding import DividedWeights, require_several
from models.policy.trunk_check import check_trunk
from models.progress_bars import save_without_bars
from models.weights.adapter_weights import fit_vocabulary, save_adapter
from models.weights.adapters import adapter_folder, adapter_task, add_fresh_adapter, add_trained_adapter, base_source
from models.weights.dequantised import dequantised_copy
from models.weights.division import divide
from models.weights.dtype_names import Autocast, DType
from models.weights.folder_kinds import require_adapter_kind
from models.weights.language_model import frozen_copy, load_language_model, vocabulary
from models.weights.language_model_check import check_language_model, check_sampled_from
from models.weights.lora_settings import LoraSettings
from models.weights.reference import AdapterOff, FrozenAdapter, FrozenCopy
from models.weights.seeding import seeded
from models.weights.source import DTYPES, ModelSource
from models.weights.tokenizer import collect_eos_ids, load_tokenizer, named_ids
from rlhf_core.files.file_errors import reading

WITH_LORA = "give lora=LoraSettings()"
NO_AUXILIARIES: Mapping[str, str] = MappingProxyType({})


def load_policy(
    name_or_path: str,
    *,
    lora: LoraSettings | None = None,
    four_bit: bool = False,
    dtype: DType = "float32",
    autocast: Autocast | None = None,
    sampling_dtype: DType | None = None,
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    compile_decoding: bool = False,
    eos_ids: Sequence[int] | None = None,
    auxiliaries: Mapping[str, str] = NO_AUXILIARIES,
    critic: CriticKind = "shared",
    critic_model: str | None = None,
    shard: bool = False,
) -> CausalPolicy:
    """A policy from any causal language model of transformers; ``name_or_path`` is a folder or a hub name, safetensors
    only, at the ``revision`` given. ``trust_remote_code`` runs code from the hub; it needs a commit hash as
    ``revision``.

    What is trained, and what the reference is:

    - a whole model: all weights (float32 only); the reference is a frozen copy;
    - a whole model with ``lora``: a fresh adapter; the reference is the model with the adapter off;
    - a folder or name that *is* a LoRA adapter (say, of supervised fine-tuning): a copy of that adapter; the reference
      is the adapter itself, frozen.

    ``device`` is where the model lies ("cpu", "cuda", "cuda:1"). ``gradient_checkpointing`` recomputes activations in
    the backward pass, which saves memory and costs time.

    ``compile_decoding`` compiles the pass that samples one more token (``torch.compile``), on a card as a CUDA graph
    too. Its tokens are the same up to the rounding of logits. The first rollout waits for the compiler, as does a later
    one that needs more rows (counted in 8s) or longer ones (in 64s). Between rollouts the keys and values of one stay
    in memory.

    ``dtype`` is that of the weights and activations; adapters and value head are float32 always. ``four_bit`` holds
    the frozen weights in NF4 with double quantisation and computes in ``dtype``.

    ``autocast="bfloat16"`` trains a whole model with bfloat16 products: weights, optimizer, norms and value head stay
    float32, and every pass of policy, reference, auxiliaries and critic runs under ``torch.autocast``. Logits are then
    bfloat16; log-probabilities are computed from them in float32. It is slow on a CPU without bfloat16 instructions.

    ``sampling_dtype`` holds 4-bit weights a second time, dequantised to it, and samples from that copy, which saves
    unpacking them for every token. The copy shares the adapter, so that it is never out of date. Log-probabilities are
    those of the 4-bit weights as before, so that the tokens are drawn from a distribution that differs from theirs by
    rounding, which is checked at loading. The memory model counts the copy (``benchmarks.memory``).

    ``eos_ids`` replaces the union of what tokenizer, config and generation config name; no other generation setting of
    the folder is ever read. A model whose sampling pass, teacher-forced pass and plain forward pass disagree is
    refused.

    ``critic`` is where values come from. A value head starts at zero, so that values do, and a policy's folder restores
    the critic it was saved with if the same kind is asked for:

    - "shared": a value head on the policy's trunk (``value_head.safetensors`` of the folder). The value loss moves the
      policy's weights too;
    - "adapter": an adapter beside the policy's, on the same frozen weights, 4-bit ones too. It starts as a copy of the
      policy's, and needs a policy that is an adapter;
    - "model": the trunk of ``critic_model``, a folder or hub name of a reward model or language model with the policy's
      tokenizer (None: the one saved with the policy). All its weights are trained, in float32. Its value head starts as
      the head of a classifier with one label, or with two named negative and positive (their difference), so that
      values begin as raw scores; at zero otherwise.

    Adapter and model cost one more pass over every response; neither shares a gradient with the policy.

    ``seed`` decides what is drawn, which is a fresh adapter's A alone; ``random_streams.seed_of(seed, "init")`` of
    ``rlhf_core`` is the one that belongs to a run's seed.

    ``shard`` divides the weights of a whole model, their gradients, optimizer states and reference among the processes
    that ``torchrun`` starts, with FSDP2 of torch: of 20 bytes per weight, a card holds its share. All weights (4 bytes
    each) are put together to sample, and a layer at a time to train. Critic and auxiliaries are not divided. See
    docs/scaling.md in the repository.

    ``auxiliaries`` names further frozen models, folders or hub names, whose log-probabilities a redistributor may ask
    for (``LogRatio``): whole models, or LoRA adapters, which share the policy's frozen weights where they are made for
    the same. They must read the policy's tokens, are held in its ``dtype`` (and 4-bit), are never trained, and are not
    saved with the policy: name them again whenever it is loaded.

    Raises:
        TypeError: a name, ``lora``, ``eos_ids``, ``auxiliaries`` or ``critic_model`` of another kind.
        ValueError: combinations that cannot be trained, a critic that this policy cannot have, unsafe, damaged or
            incomplete files, an unsuitable architecture (for ``compile_decoding`` too), no such device, or a negative
            seed.
        FileNotFoundError: no such folder, and no name that a hub could know.
    """
    _check_settings(
        lora, seed, gradient_checkpointing=gradient_checkpointing, compile_decoding=compile_decoding, shard=shard
    )
    check_critic_settings(critic, critic_model)
    source = ModelSource(
        name_or_path=name_or_path,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        four_bit=four_bit,
        device=device,
    )
    precision = Precision(autocast=autocast, sampling_dtype=sampling_dtype)
    beside = auxiliary_sources(auxiliaries, source)
    with seeded(seed, device), reading(str(name_or_path)):
        adapter = adapter_folder(source)
        _require_trainable(source, lora, adapter)
        if shard:
            _require_divisible(source.name_or_path, (lora, adapter) != (None, None), compile_decoding, autocast)
        check_precision(precision, source, trains_all=(adapter, lora) == (None, None))
        of_critic = critic_source(critic, critic_model, source, is_adapter=(adapter, lora) != (None, None))
        asked = _Asked(
            lora=lora,
            adapter=adapter,
            eos_ids=eos_ids,
            gradient_checkpointing=gradient_checkpointing,
            compile_decoding=compile_decoding,
            auxiliaries=beside,
            critic=critic,
            critic_source=of_critic,
            shard=shard,
            precision=precision,
        )
        network = _network(source, asked)
    return CausalPolicy(network)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a policy's network is to be, checked."""

    lora: LoraSettings | None
    adapter: str | None
    """Folder of the adapter that the policy is."""
    eos_ids: Sequence[int] | None
    gradient_checkpointing: bool
    compile_decoding: bool
    auxiliaries: Mapping[str, ModelSource]
    critic: CriticKind
    critic_source: ModelSource | None
    shard: bool
    precision: Precision


def _check_settings(lora: object, seed: object, **switches: object) -> None:
    if lora is not None and not isinstance(lora, LoraSettings):
        raise TypeError(f"lora must be a LoraSettings or None, got {lora!r}")
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise TypeError(f"{name} must be True or False, got {switch!r}")
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")


def _network(source: ModelSource, asked: _Asked) -> Network:
    adapter, lora = asked.adapter, asked.lora
    if adapter is not None:
        require_adapter_kind(source.name_or_path, "language model", adapter_task(adapter))
    base = source if adapter is None else base_source(adapter, source)
    check_sampling_dtype(asked.precision, base)
    lm = load_language_model(base)
    if adapter is None and lora is None and getattr(lm, "is_quantized", False):
        raise ValueError(f"{source.name_or_path} holds 4-bit weights, which cannot be trained; {WITH_LORA}")
    tokenizer = load_tokenizer([source] if adapter is None else [source, base])
    checkpointed = checkpointed_modules(lm) if asked.gradient_checkpointing else ()
    reference: FrozenCopy | AdapterOff | FrozenAdapter
    sharding = None
    if adapter is not None:
        fit_vocabulary(lm, adapter, tokenizer)
        reference = add_trained_adapter(lm, adapter, base.name_or_path)
    elif lora is not None:
        reference = add_fresh_adapter(lm, lora, revision=source.revision)
    elif asked.shard:
        sharding = _divided(lm, partial(load_language_model, base), checkpointed)
        reference = FrozenCopy(lm=sharding.reference, ready=sharding.reference_pass)
    else:
        reference = FrozenCopy(lm=frozen_copy(lm))
    head_size = check_language_model(lm, vocabulary(lm))
    if sharding is None:  # else torch adds the gradients up, and knows none that are sparse
        share_tied_gradient(lm)
    beside = Beside(
        source=source,
        lm=lm,
        head_size=head_size,
        reference=reference,
        tokenizer=tokenizer,
        gradient_checkpointing=asked.gradient_checkpointing,
    )
    critic = make_critic(asked.critic, beside, asked.critic_source)
    _check_under_autocast(lm, critic, asked.precision)
    copy = _sampling_copy(lm, asked.precision)
    return Network(
        lm=lm,
        critic=critic,
        reference=reference,
        write=_writer(lm, reference) if sharding is None else sharding.write,
        read=_reader(lm, reference),
        tokenizer=tokenizer,
        eos_ids=_eos_ids(asked.eos_ids, lm, tokenizer),
        compute_dtype=DTYPES[asked.precision.autocast or source.dtype],
        checkpointed=checkpointed,
        decoder=_decoder(lm if copy is None else copy, asked),
        auxiliaries=load_auxiliaries(asked.auxiliaries, base, reference, tokenizer),
        sharding=sharding,
        precision=asked.precision,
        sampling_copy=copy,
    )


def _divided(
    lm: PreTrainedModel, again: Callable[[], PreTrainedModel], checkpointed: Sequence[nn.Module]
) -> DividedWeights:
    """Divide ``lm``, then a frozen copy of it, which is read ``again`` for that: no process holds both whole."""
    divide(lm)
    reference = again().requires_grad_(False)
    divide(reference)
    return DividedWeights(lm, reference, checkpointed)


def _decoder(sampled: PreTrainedModel, asked: _Asked) -> Callable[[Int[Tensor, " row"]], Decoder]:
    if not asked.compile_decoding:
        return partial(CachedDecoder, sampled)
    with asked.precision.passes(sampled.device):
        check_fixed_steps(sampled, vocabulary(sampled))
    return FixedSteps(sampled, compiled(sampled)).decoder


def _check_under_autocast(lm: PreTrainedModel, critic: Critic, precision: Precision) -> None:
    """Check policy and critic once more where they will run under autocast; in float32, where less hides in rounding,
    they were checked before."""
    if precision.autocast is None:
        return
    with precision.passes(lm.device):
        check_language_model(lm, vocabulary(lm))
        if isinstance(critic, OwnTrunk):
            check_trunk(critic.trunk, vocabulary(critic.trunk))


def _sampling_copy(lm: PreTrainedModel, precision: Precision) -> PreTrainedModel | None:
    """A checked copy of ``lm`` to sample from, where one is asked for."""
    if precision.sampling_dtype is None:
        return None
    made = dequantised_copy(lm, DTYPES[precision.sampling_dtype])
    check_sampled_from(made, lm, vocabulary(lm))
    return made


def _require_trainable(source: ModelSource, lora: LoraSettings | None, adapter: str | None) -> None:
    name = source.name_or_path
    if adapter is not None and lora is not None:
        raise ValueError(f"{name} is an adapter, and training goes on with a copy of it: leave out {lora}")
    if adapter is not None or lora is not None:
        return
    if source.four_bit:
        raise ValueError(f"{name}: 4-bit weights cannot be trained; {WITH_LORA}")
    if source.dtype != "float32":
        raise ValueError(
            f"{name}: full fine-tuning in {source.dtype} loses every update below 1/256 of a weight; "
            "use dtype='float32', with autocast='bfloat16' to compute in bfloat16; or lora=LoraSettings(), whose "
            "adapters are float32"
        )


def _require_divisible(name: str, is_adapter: bool, compiled: bool, autocast: Autocast | None) -> None:
    if autocast is not None:
        raise ValueError(f"{name}: shard=True and autocast={autocast!r} were never run together; leave out one of them")
    if compiled:
        raise ValueError(
            f"{name}: shard=True puts the weights together anew for every rollout, and a compiled step reads them "
            "where they first lay; leave out compile_decoding"
        )
    if is_adapter:
        raise ValueError(
            f"{name}: shard=True divides weights that are trained, and an adapter's are few; leave it "
            "out, and load the frozen weights with four_bit=True where they do not fit"
        )
    require_several()


def _writer(lm: PreTrainedModel, reference: FrozenCopy | AdapterOff | FrozenAdapter) -> Callable[[str], None]:
    if isinstance(reference, FrozenCopy):
        return partial(save_without_bars, lm)
    return partial(save_adapter, reference.adapters, carries=_carries(reference))


def _reader(
    lm: PreTrainedModel, reference: FrozenCopy | AdapterOff | FrozenAdapter
) -> Callable[[str], Callable[[], object]]:
    if isinstance(reference, FrozenCopy):
        return partial(read_model_back, lm)
    return partial(read_adapter_back, reference.adapters, carries=_carries(reference))


def _carries(reference: AdapterOff | FrozenAdapter) -> bool:
    return isinstance(reference, FrozenAdapter) and reference.carries_embeddings


def _eos_ids(given: Sequence[int] | None, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Those given, which must be drawable, or those that the files name."""
    ids = _checked(given if given is not None else collect_eos_ids(lm, tokenizer), vocabulary(lm))
    nameless = [token for token in ids if token not in named_ids(tokenizer)]
    if given is not None and nameless:
        raise ValueError(f"EOS ids {nameless} have no token in the tokenizer, and such ids are never drawn")
    return ids


def _checked(eos_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    if not isinstance(eos_ids, Sequence) or not all(type(token) is int for token in eos_ids):
        raise TypeError(f"eos_ids must be a list of token ids, got {eos_ids!r}")
    outside = [token for token in eos_ids if not 0 <= token < vocab_size]
    if outside:
        raise ValueError(f"EOS ids {outside} lie outside the vocabulary of {vocab_size}; give eos_ids=(...)")
    return tuple(sorted(set(eos_ids)))
