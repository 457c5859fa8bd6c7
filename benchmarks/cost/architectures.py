"""Architectures without their weights: counted on torch's meta device, or filled with random numbers.

Random models are the networks that loading makes, 4-bit layers quantised one at a time.
"""

import copy
import importlib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from benchmarks.cost.memory_prediction import packed
from benchmarks.cost.memory_settings import MemorySettings
from benchmarks.cost.model_shape import ModelShape
from models.passes.fused import make_lean, share_tied_gradient
from models.passes.gradient_checkpointing import checkpointed_modules
from models.passes.sampling import CachedDecoder
from models.policy.causal_policy import CausalPolicy
from models.policy.critic_loading import adapter_critic, model_critic
from models.policy.critics import Critic, SharedTrunk
from models.policy.network import Network
from models.policy.precision import Precision
from models.policy.restoring import read_model_back
from models.policy.value_head import ValueHead
from models.progress_bars import save_without_bars
from models.rewards.classifier_head import HEAD_NAMES
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.score_names import ScoreKind
from models.tiny import EOS_ID, tiny_tokenizer
from models.weights.adapters import add_fresh_adapter
from models.weights.dequantised import dequantised_copy
from models.weights.dtype_names import Autocast, DType
from models.weights.four_bit import four_bit_config, keep_unpacked
from models.weights.language_model import frozen_copy, remove_randomness
from models.weights.lora_settings import LoraSettings
from models.weights.reference import AdapterOff, FrozenCopy
from models.weights.source import DTYPES

Head = Literal["lm", "classifier", "none"]
FACTORIES: Mapping[Head, Any] = MappingProxyType(
    {"lm": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification, "none": AutoModel}
)
FAMILIES = {"llama": "llama", "qwen2": "llama", "gpt2": "gpt2", "gptj": "gptj"}
"""Model types whose passes the formulas of the prediction describe."""
NOT_QUANTISED = ("lm_head", *HEAD_NAMES)
STD = 0.02
"""Of random weights: what trained models start from, small enough for stable passes."""


def shape_of(config: PreTrainedConfig, head: Head, name: str) -> ModelShape:
    """Build the architecture on the meta device, and count.

    Raises:
        ValueError: an architecture whose passes the formulas do not describe.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{name} is a {config.model_type!r} model, and memory is predicted for {', '.join(FAMILIES)} only, whose "
            "activations were checked: measure with a training run instead, or name one of those"
        )
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # after models.weights.four_bit

    with torch.device("meta"):
        model = _from_config(config, head, torch.float32)
    linear = {part: module for part, module in model.named_modules() if _quantised(part, module)}
    sizes = {id(module.weight): module.weight.numel() for module in linear.values()}
    targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[config.model_type]
    heads, trunk = config.num_attention_heads, {id(weight) for weight in model.base_model.parameters()}
    return ModelShape(
        name=name,
        family=FAMILIES[config.model_type],
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        linear=tuple(sizes.values()),
        other=tuple(weight.numel() for weight in model.parameters() if id(weight) not in sizes),
        head=tuple(weight.numel() for weight in model.parameters() if id(weight) not in trunk),
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        adapted=tuple(_widths(module) for part, module in linear.items() if part.rpartition(".")[2] in targets),
    )


def _from_config(config: PreTrainedConfig, head: Head, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture, from a copy of its configuration: models write into theirs."""
    model: PreTrainedModel = FACTORIES[head].from_config(copy.deepcopy(config), dtype=dtype)
    return model


def _quantised(name: str, module: nn.Module) -> bool:
    """Whether 4-bit loading replaces ``module``: a linear layer that is neither output embedding nor classifier."""
    return isinstance(module, nn.Linear | Conv1D) and name.partition(".")[0] not in NOT_QUANTISED


def _widths(module: Any) -> tuple[int, int]:
    """Input and output width of a linear layer; Conv1D keeps its weight transposed."""
    into, out = module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)
    return into, out


def score_kind(reward: PreTrainedConfig) -> ScoreKind:
    """How a classifier's score is read, by its number of labels."""
    return "single_logit" if reward.num_labels == 1 else "logit_difference"


def lora_of(settings: MemorySettings) -> LoraSettings | None:
    """The adapter asked for, if one is."""
    rank = settings.lora_rank
    return LoraSettings(rank=rank, alpha=rank) if settings.training == "lora" else None


def precision_of(settings: MemorySettings) -> tuple[Autocast | None, DType | None]:
    """What products are computed in and what is sampled from, as ``load_policy`` takes them."""
    autocast = None if settings.autocast == "none" else settings.autocast
    return autocast, None if settings.sampling_dtype == "none" else settings.sampling_dtype


def random_models(
    settings: MemorySettings, policy: PreTrainedConfig, reward: PreTrainedConfig, device: torch.device
) -> tuple[CausalPolicy, ClassifierReward]:
    """The same networks as loading makes, with random weights and a tokenizer of made-up words."""
    if reward.vocab_size < policy.vocab_size:
        raise ValueError(
            f"{settings.policy} has {policy.vocab_size} token ids, of which {settings.reward} knows "
            f"{reward.vocab_size}: measure with a reward model of the policy's tokenizer"
        )
    tokenizer, dtype = tiny_tokenizer(vocab_size=policy.vocab_size), DTYPES[settings.dtype]
    lm = random_model(policy, "lm", dtype, packed(settings, "policy"), device)
    lora = lora_of(settings)
    reference = FrozenCopy(lm=frozen_copy(lm)) if lora is None else add_fresh_adapter(lm, lora, revision=None)
    share_tied_gradient(lm)
    autocast, sampled = precision_of(settings)
    copy = None if sampled is None else dequantised_copy(lm, DTYPES[sampled])
    network = Network(
        lm=lm,
        critic=random_critic(settings, policy.hidden_size, reference, reward, tokenizer),
        reference=reference,
        write=partial(save_without_bars, lm),
        read=partial(read_model_back, lm),
        tokenizer=tokenizer,
        eos_ids=(EOS_ID,),
        compute_dtype=dtype if autocast is None else DTYPES[autocast],
        decoder=partial(CachedDecoder, lm if copy is None else copy),
        checkpointed=checkpointed_modules(lm) if settings.gradient_checkpointing else (),
        precision=Precision(autocast=autocast, sampling_dtype=sampled),
        sampling_copy=copy,
    )
    classifier = random_model(reward, "classifier", dtype, packed(settings, "reward"), device)
    budget = settings.reward_micro_batch_tokens
    return CausalPolicy(network), ClassifierReward(
        classifier, tokenizer, score=score_kind(reward), micro_batch_tokens=budget
    )


def random_critic(
    settings: MemorySettings,
    hidden_size: int,
    reference: FrozenCopy | AdapterOff,
    reward: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> Critic:
    """The critic of the kind asked for, on the reference's device; a model of its own is as large as the reward
    model."""
    device, checkpointing = reference.lm.device, settings.gradient_checkpointing
    if settings.critic == "model":
        trunk = random_model(reward, "none", torch.float32, False, device)
        return model_critic(trunk, tokenizer, gradient_checkpointing=checkpointing)
    if settings.critic == "adapter" and isinstance(reference, AdapterOff):
        return adapter_critic(reference, gradient_checkpointing=checkpointing)
    return SharedTrunk(head=ValueHead(hidden_size).to(device))


def random_model(
    config: PreTrainedConfig, head: Head, dtype: torch.dtype, four_bit: bool, device: torch.device
) -> PreTrainedModel:
    """Built without weights, then filled one tensor at a time, so that no more than the result and one layer exist."""
    with _EmptyOnMeta():
        model: Any = _from_config(config, head, dtype)
    if four_bit:
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear  # after models.weights.four_bit

        model = replace_with_bnb_linear(model, [*NOT_QUANTISED], four_bit_config(dtype))
        model.is_quantized = model.is_loaded_in_4bit = True  # what PEFT and our checks look at
    filled: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in filled:  # tied weights are one parameter under two names
                filled[parameter] = _filled(name, parameter, dtype, device)
            setattr(module, name, filled[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    remove_randomness(model)
    make_lean(model)
    keep_unpacked(model)
    model.eval()
    return cast(PreTrainedModel, model)


class _EmptyOnMeta(TorchFunctionMode):
    """``torch.empty``, of which weights are made, makes meta tensors; buffers, which are computed, stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        changed = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **changed})


def _filled(name: str, parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Ones for a norm, zeros for a bias, else normal numbers; quantised where the layer is a 4-bit one."""
    if parameter.ndim == 1:
        return nn.Parameter(torch.full(parameter.shape, float(name == "weight"), dtype=dtype, device=device))
    numbers = torch.empty(parameter.shape, dtype=dtype, device=device).normal_(std=STD)
    if not hasattr(parameter, "quant_state"):
        return nn.Parameter(numbers)
    bitsandbytes: Any = importlib.import_module("bitsandbytes")
    packed = bitsandbytes.nn.Params4bit(numbers, requires_grad=False, **vars(parameter))
    return cast(nn.Parameter, packed.to(device))
