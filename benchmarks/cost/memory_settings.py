"""The settings that memory depends on, with the values of the paper's tasks. Nothing heavy is imported here."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from models.policy.critic_names import CriticKind
from rlhf_core.names import nearest

GIB = 2**30
CONTEXT_BYTES = 768 * 2**20
"""Assumed: CUDA context, loaded kernels and library workspaces (0.3 to 0.7 GiB are usual)."""
WIDTHS: Mapping[str, int] = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""
OPEN_LLAMA: Mapping[str, Any] = {
    **{"model_type": "llama", "vocab_size": 32_000, "num_attention_heads": 32},
    **{"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
}
OPEN_LLAMA_7B = {**OPEN_LLAMA, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}
OPEN_LLAMA_3B = {**OPEN_LLAMA, "hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 26}
BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "VMware/open-llama-7b-open-instruct": OPEN_LLAMA_7B,
    "openlm-research/open_llama_7b": OPEN_LLAMA_7B,
    "openlm-research/open_llama_3b": OPEN_LLAMA_3B,
    "weqweasdas/hh_rlhf_rm_open_llama_3b": OPEN_LLAMA_3B,
    "EleutherAI/gpt-j-6b": {"model_type": "gptj"},
    "lvwerra/gpt2-imdb": {"model_type": "gpt2"},
    "openai-community/gpt2": {"model_type": "gpt2"},
}
"""Architectures by hub name, so that none is downloaded."""


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Predict the GPU memory of a PPO step, and measure it where there is a GPU.

    No weights are needed: real ones are measured where both models are folders that hold them, random ones otherwise.
    """

    policy: str = "VMware/open-llama-7b-open-instruct"
    """Policy: a built-in architecture by its hub name, or a local folder with a config.json."""
    reward: str = "weqweasdas/hh_rlhf_rm_open_llama_3b"
    """Reward model, named in the same way."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of weights and activations; adapters and value head are always float32."""
    autocast: Literal["none", "bfloat16"] = "none"
    """What float32 weights that are all trained are multiplied in; none: float32."""
    four_bit: Literal["none", "policy", "reward", "both"] = "both"
    """Models whose linear layers are held in 4 bits (NF4, double quantisation); the paper's choice is policy."""
    sampling_dtype: Literal["none", "float32", "bfloat16"] = "none"
    """What the policy's 4-bit weights are held in a second time, to sample from; none: sampled from 4 bits."""
    training: Literal["full", "lora"] = "lora"
    """Train all weights, with a frozen copy as reference, or a LoRA adapter, with the model without it as reference.
    The prediction is of one card that holds it all; load_policy(shard=True) divides weights among several."""
    lora_rank: int = 32
    """Rank of the adapter, on PEFT's default target modules; full fine-tuning does not use it."""
    critic: CriticKind = "shared"
    """Where values come from: the policy's trunk, an adapter beside the policy's, or a model as large as the reward
    model, trained whole in float32."""
    gradient_checkpointing: bool = True
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    optimizer: Literal["adam", "paged_adamw_8bit"] = "adam"
    """Adam with float32 states, or with 8-bit states that can be paged out to the host."""
    rollout_batch_size: int = 16
    """Responses per step."""
    minibatch_size: int = 1
    """Responses per optimizer step, and the most per micro-batch of the update (paper: 1)."""
    micro_batch_tokens: int = 4096
    """Prompt and response tokens per pass of the policy or its reference."""
    reward_micro_batch_tokens: int = 4096
    """Prompt and response tokens per pass of the reward model."""
    sampling_tokens: int = 16_384
    """Prompt and response tokens of all rows that are sampled side by side."""
    prompt_tokens: int = 256
    """Tokens of the longest prompt."""
    response_tokens: int = 256
    """Tokens of the longest response."""
    evidence: Literal["none", "reward", "decoder"] = "reward"
    """Attention used for credit: none, the reward model's (abc), or the policy's (abc-d)."""
    card_gib: float = 48.0
    """Memory of the card, in GiB."""
    measure: Literal["auto", "never", "required"] = "auto"
    """Measure after the prediction where there is a CUDA device (auto), never, or fail without one (required)."""

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):  # all of them at once
            raise ValueError("; ".join(problems))

    @property
    def width(self) -> int:
        """Bytes of a number in ``dtype``."""
        return WIDTHS[self.dtype]

    @property
    def product_width(self) -> int:
        """Bytes of a number that matrices are multiplied in, as activations are."""
        return self.width if self.autocast == "none" else WIDTHS[self.autocast]

    @property
    def tokens(self) -> int:
        """Prompt and response of a row."""
        return self.prompt_tokens + self.response_tokens

    def rows(self, budget: int, most: int) -> int:
        """Rows of a micro-batch under a budget of tokens, as ``rlhf_core.batching`` cuts it."""
        return max(1, min(most, budget // self.tokens))


def _problems(settings: MemorySettings) -> Iterator[str]:
    """Every invalid setting, in words."""
    for role in ("policy", "reward"):
        name = getattr(settings, role)
        if name not in BUILT_IN and not Path(name, "config.json").is_file():
            yield (
                f"{role} {name!r} is neither a folder with a config.json nor a built-in architecture"
                f"{nearest(name, BUILT_IN) or '.'} Built in are {', '.join(BUILT_IN)}. For another model, download its "
                "config.json into a folder and name that"
            )
    for field in fields(settings):
        if field.type is int and getattr(settings, field.name) < 1:
            yield f"{field.name} must be 1 or more, got {getattr(settings, field.name)}"
    if not CONTEXT_BYTES / GIB < settings.card_gib < math.inf:
        yield f"card_gib must be finite and above {CONTEXT_BYTES / GIB:g} (the CUDA context), got {settings.card_gib}"
    if settings.minibatch_size > settings.rollout_batch_size:
        yield f"minibatch_size {settings.minibatch_size} exceeds rollout_batch_size {settings.rollout_batch_size}"
    if settings.training == "full" and settings.four_bit in ("policy", "both"):
        yield f"four_bit {settings.four_bit!r} weights cannot be trained: choose training 'lora'"
    if settings.autocast != "none" and settings.training != "full":
        yield f"autocast {settings.autocast!r} is for training 'full': choose it, or dtype 'bfloat16'"
    if settings.sampling_dtype != "none" and settings.four_bit not in ("policy", "both"):
        yield f"sampling_dtype {settings.sampling_dtype!r} is for 4-bit weights: choose four_bit 'policy' or 'both'"
    if settings.training == "full" and settings.critic == "adapter":
        yield "critic 'adapter' stands beside the policy's: choose training 'lora', or critic 'model' or 'shared'"
    if settings.training == "full" and settings.dtype != "float32":
        yield f"training 'full' needs dtype 'float32', got {settings.dtype!r}: use it, or training 'lora'"


Preset = Literal["dialogue", "summarisation", "positive_generation"]
TASK_PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "dialogue": {},
    "summarisation": {
        **{"policy": "EleutherAI/gpt-j-6b", "reward": "EleutherAI/gpt-j-6b"},
        **{"rollout_batch_size": 4, "prompt_tokens": 512, "response_tokens": 48},
    },
    "positive_generation": {
        **{"policy": "lvwerra/gpt2-imdb", "reward": "lvwerra/gpt2-imdb", "dtype": "float32", "four_bit": "none"},
        **{"training": "full", "gradient_checkpointing": False, "prompt_tokens": 7, "response_tokens": 15},
    },
}
"""What each of the paper's tasks (Tables 2-4) changes in the defaults, which are dialogue's. The paper's reward models
are not quantised (``four_bit`` "policy"); its prompts of summarisation are under 450 tokens."""


def from_preset(preset: Preset, **overrides: Any) -> MemorySettings:
    """A preset's settings with some of them changed; raises ValueError for settings that cannot be."""
    return MemorySettings(**{**TASK_PRESETS[preset], **overrides})
