"""The models behind the memory prediction: counted on torch's meta device; made, run and measured on a card.

The measured step is made of the project's own pieces: ``CausalPolicy``, ``ClassifierReward`` and ``PPOTrainer``. Where
policy and reward model are both local folders with weights, those are loaded; otherwise both get random weights of the
right shape, 4-bit layers quantised one at a time. Every row is as long as the settings allow, EOS being banned.
"""

import copy
import importlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast, final, runtime_checkable

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from benchmarks.cost.memory_model import Settings, Shape
from models.passes.checkpointing import checkpointed_modules
from models.passes.fused import make_lean, share_tied_gradient
from models.passes.value_head import ValueHead
from models.policy.causal_policy import CausalPolicy
from models.policy.loading import load_policy
from models.policy.network import Network
from models.policy.restoring import read_model_back
from models.rewards.classifier_head import HEAD_NAMES
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.loading import load_reward_model
from models.rewards.score_kinds import ScoreKind
from models.tiny import EOS_ID, tiny_tokenizer
from models.weights.adapters import LoraSettings, add_fresh_adapter
from models.weights.four_bit import four_bit_config, keep_unpacked
from models.weights.language_model import frozen_copy, remove_randomness
from models.weights.reference import FrozenCopy
from models.weights.source import DTYPES
from redistributors import DecoderAttention, RewardAttention, Sparse
from rlhf_core.batching import SmallerParts, micro_batches
from rlhf_core.config import PPOConfig
from rlhf_core.optimizer import make_schedule
from rlhf_core.rollout import Draw, sample
from rlhf_core.trainer import PPOTrainer

Head = Literal["lm", "classifier"]
FAMILIES = {"llama": "llama", "qwen2": "llama", "gpt2": "gpt2", "gptj": "gptj"}
"""Model types whose passes the formulas of the prediction describe."""
NOT_QUANTISED = ("lm_head", *HEAD_NAMES)
STD = 0.02
"""Of random weights: what trained models start from, small enough for stable passes."""


def shape_of(config: PreTrainedConfig, head: Head, name: str) -> Shape:
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
    heads = config.num_attention_heads
    return Shape(
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
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        adapted=tuple(_widths(module) for part, module in linear.items() if part.rpartition(".")[2] in targets),
    )


def _from_config(config: PreTrainedConfig, head: Head, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture, from a copy of its configuration: models write into theirs."""
    factory: Any = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
    model: PreTrainedModel = factory.from_config(copy.deepcopy(config), dtype=dtype)
    return model


def _quantised(name: str, module: nn.Module) -> bool:
    """Whether 4-bit loading replaces ``module``: a linear layer that is neither output embedding nor classifier."""
    return isinstance(module, nn.Linear | Conv1D) and name.partition(".")[0] not in NOT_QUANTISED


def _widths(module: Any) -> tuple[int, int]:
    """Input and output width of a linear layer; Conv1D keeps its weight transposed."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


@runtime_checkable
class Meter(Protocol):
    """Something that watches the memory of a device, in bytes."""

    def reset(self) -> None:
        """Forget the peak so far."""
        ...

    def peak(self) -> int:
        """Most that tensors took at a time since ``reset``."""
        ...

    def held(self) -> int:
        """Most that the allocator took from the device so far."""
        ...


@final
class CudaMeter:
    """Torch's own count; what the allocator takes beside tensors is fragments and caches."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held = 0

    def reset(self) -> None:
        """Forget the peak so far."""
        self._held = self.held()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """``max_memory_allocated``."""
        return torch.cuda.max_memory_allocated(self._device)

    def held(self) -> int:
        """``max_memory_reserved`` over all phases."""
        return max(self._held, torch.cuda.max_memory_reserved(self._device))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Peak bytes of each phase as a meter saw them, and what the allocator held; the CUDA context is in neither."""

    peaks: Mapping[str, int]
    held: int


@contextmanager
def capped(device: torch.device, limit: float) -> Iterator[float]:
    """Let torch take at most ``limit`` bytes of the device inside; gives what it may take, less on a smaller card."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    try:
        yield min(limit, total)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def measure(
    settings: Settings, policy: PreTrainedConfig, reward: PreTrainedConfig, meter: Meter, device: torch.device
) -> Measurement:
    """Load, take one step so that the optimizer has its states, then measure each phase of a second.

    Raises:
        MemoryError: a phase ran out of memory; names it.
        ValueError: a reward model that does not know all of the policy's token ids.
    """
    peaks: dict[str, int] = {}
    with _phase("load", meter, peaks):
        trainer = make_trainer(settings, policy, reward, device)
    prompts = _prompts(settings, policy.vocab_size)
    with _phase("first step", meter, {}):
        trainer.step(prompts)
    of_policy = frozenset(need for need in trainer.redistributor.needs if need.source != "reward")
    with _phase("sample", meter, peaks):
        sequences = sample(trainer.policy, prompts, trainer.config, Draw(seed=0, name="sampling", step=1))
    parts = [sequences.select(rows) for rows in micro_batches(sequences, settings.micro_batch_tokens)]
    with _phase("old log-probs", meter, peaks), torch.no_grad():
        for part in parts:
            trainer.policy.evaluate(part, of_policy, temperature=trainer.config.temperature)
    with _phase("reference", meter, peaks):
        for part in parts:
            trainer.policy.reference_logprobs(part, temperature=trainer.config.temperature)
    with _phase("reward", meter, peaks):
        trainer.reward.score(sequences, trainer.redistributor.needs - of_policy)
    rollout = trainer.collect(prompts)
    experience = trainer.estimate_returns(rollout, trainer.redistribute(rollout))
    with _phase("update", meter, peaks):
        trainer.update(experience)
    return Measurement(peaks=peaks, held=meter.held())


@contextmanager
def _phase(name: str, meter: Meter, peaks: dict[str, int]) -> Iterator[None]:
    """Enter the peak of what happens inside under ``name``."""
    meter.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SmallerParts)  # a step that shrank would fit by another measure
            yield
    except (torch.OutOfMemoryError, MemoryError, SmallerParts) as error:
        raise MemoryError(f"measuring ran out of memory in the phase {name!r}: {error}") from error
    peaks[name] = meter.peak()


def make_trainer(
    settings: Settings, policy: PreTrainedConfig, reward: PreTrainedConfig, device: torch.device
) -> PPOTrainer:
    """Policy, reward model and the redistributor whose evidence is asked for, under the settings' PPO configuration."""
    real = all(any(Path(name).glob("*.safetensors")) for name in (settings.policy, settings.reward))
    models = _loaded(settings, reward, device) if real else random_models(settings, policy, reward, device)
    redistributor = {"none": Sparse, "reward": RewardAttention, "decoder": DecoderAttention}[settings.evidence]()
    config = PPOConfig.from_paper(
        "positive_generation",
        rollout_batch_size=settings.rollout_batch_size,
        minibatch_size=settings.minibatch_size,
        micro_batch_tokens=settings.micro_batch_tokens,
        sampling_tokens=settings.sampling_tokens,
        epochs=1,
        min_length=settings.response_tokens,
        max_length=(settings.response_tokens, settings.response_tokens),
        first_step_checks="warn",
    )
    trainer = PPOTrainer(*models, redistributor, config)
    if settings.optimizer == "paged_adamw_8bit":
        trainer.optimizer = _paged_optimizer(trainer.policy.parameters(), config)
        trainer.schedule = make_schedule(trainer.optimizer, config)
    return trainer


def _loaded(
    settings: Settings, reward: PreTrainedConfig, device: torch.device
) -> tuple[CausalPolicy, ClassifierReward]:
    """Trained models from their folders."""
    policy = load_policy(
        settings.policy,
        lora=_lora(settings),
        four_bit=settings.four_bit in ("policy", "both"),
        dtype=settings.dtype,
        device=str(device),
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    return policy, load_reward_model(
        settings.reward,
        score=_score(reward),
        four_bit=settings.four_bit in ("reward", "both"),
        dtype=settings.dtype,
        device=str(device),
        micro_batch_tokens=settings.reward_micro_batch_tokens,
    )


def _score(reward: PreTrainedConfig) -> ScoreKind:
    return "single_logit" if reward.num_labels == 1 else "logit_difference"


def _lora(settings: Settings) -> LoraSettings | None:
    rank = settings.lora_rank
    return LoraSettings(rank=rank, alpha=rank) if settings.training == "lora" else None


def random_models(
    settings: Settings, policy: PreTrainedConfig, reward: PreTrainedConfig, device: torch.device
) -> tuple[CausalPolicy, ClassifierReward]:
    """The same networks as loading makes, with random weights and a tokenizer of made-up words."""
    if reward.vocab_size < policy.vocab_size:
        raise ValueError(
            f"{settings.policy} has {policy.vocab_size} token ids, of which {settings.reward} knows "
            f"{reward.vocab_size}: measure with a reward model of the policy's tokenizer"
        )
    tokenizer, dtype = tiny_tokenizer(vocab_size=policy.vocab_size), DTYPES[settings.dtype]
    lm = random_model(policy, "lm", dtype, settings.four_bit in ("policy", "both"), device)
    lora = _lora(settings)
    reference = FrozenCopy(lm=frozen_copy(lm)) if lora is None else add_fresh_adapter(lm, lora, revision=None)
    share_tied_gradient(lm)
    network = Network(
        lm=lm,
        value_head=ValueHead(policy.hidden_size).to(device),
        reference=reference,
        write=lm.save_pretrained,
        read=partial(read_model_back, lm),
        tokenizer=tokenizer,
        eos_ids=(EOS_ID,),
        compute_dtype=dtype,
        checkpointed=checkpointed_modules(lm) if settings.gradient_checkpointing else (),
    )
    classifier = random_model(reward, "classifier", dtype, settings.four_bit in ("reward", "both"), device)
    budget = settings.reward_micro_batch_tokens
    return CausalPolicy(network), ClassifierReward(
        classifier, tokenizer, score=_score(reward), micro_batch_tokens=budget
    )


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


def _paged_optimizer(parameters: Iterable[nn.Parameter], config: PPOConfig) -> torch.optim.Optimizer:
    bitsandbytes: Any = importlib.import_module("bitsandbytes")
    optimizer = bitsandbytes.optim.PagedAdamW8bit(list(parameters), lr=config.learning_rate, weight_decay=0.0)
    return cast(torch.optim.Optimizer, optimizer)


def _prompts(settings: Settings, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    size = (settings.rollout_batch_size, settings.prompt_tokens)
    prompts: list[list[int]] = torch.randint(EOS_ID + 1, vocab_size, size, generator=generator).tolist()
    return prompts
