"""GPU memory of one PPO step, predicted from two model configurations and the run's settings; nothing is loaded.

Weights are counted exactly; what lives for the length of a pass follows the formulas below. They hold for SDPA (GPT-J:
eager) attention, which keeps queries, keys, values, output and one float32 log-sum-exp per head (float32 with grouped
queries may get a CUDA kernel that keeps more), for rows at their longest, and for a step after the first, when the
optimizer's states exist. Not in the figures: fragments of torch's allocator.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from benchmarks.cost.memory_settings import CONTEXT_BYTES, MemorySettings
from benchmarks.cost.model_shape import ModelShape
from benchmarks.cost.weight_copies import cast_bytes, largest_cast_bytes, sampling_copy_bytes
from models.attention.reader import CHUNK_CELLS as ATTENTION_CELLS
from models.passes.distribution import CHUNK_CELLS as LOGITS_CELLS

COMPONENTS = (
    *("policy weights", "reference copy", "critic weights", "adapters, head", "gradients", "optimizer"),
    *("weight copies", "reward weights"),
    *("KV cache", "activations", "logits", "evidence", "CUDA context"),
)
PHASES = ("load", "sample", "old log-probs", "reference", "reward", "update")
Bytes = Mapping[str, float]
Model = Literal["policy", "reference", "reward"]


@dataclass(frozen=True, kw_only=True)
class CriticTrunk:
    """The network of a critic apart, and the settings under which it is held and trained."""

    settings: MemorySettings
    shape: ModelShape


WHOLE: Mapping[str, Any] = MappingProxyType(
    {"dtype": "float32", "four_bit": "none", "sampling_dtype": "none", "training": "full", "critic": "shared"}
)
"""How a critic's own model is held."""
CRITICS: Mapping[str, Callable[[MemorySettings, ModelShape, ModelShape], CriticTrunk | None]] = MappingProxyType(
    {
        "shared": lambda settings, policy, reward: None,
        "adapter": lambda settings, policy, reward: CriticTrunk(settings=settings, shape=policy),
        "model": lambda settings, policy, reward: CriticTrunk(settings=replace(settings, **WHOLE), shape=reward),
    }
)
"""By the kind of critic, from settings, policy and reward model; None where it shares the policy's trunk."""


def weight_bytes(settings: MemorySettings, shape: ModelShape, model: Model) -> int:
    """Weights in ``dtype``, the linear layers of the trunk in NF4 where that is asked for, and buffers."""
    width = settings.width
    linear = sum(map(four_bit_bytes, shape.linear)) if packed(settings, model) else width * sum(shape.linear)
    return linear + width * sum(shape.other) + shape.buffer_bytes


def four_bit_bytes(numbers: int) -> int:
    """One NF4 layer with double quantisation, as bitsandbytes 0.50 stores it (Dettmers et al. 2023, section 3).

    Half a byte per number; an 8-bit scale per block of 64; a float32 scale per nested block of 256 scales; per layer
    two code books (16 and 256 float32) and an offset.
    """
    blocks = math.ceil(numbers / 64)
    return math.ceil(numbers / 2) + blocks + 4 * math.ceil(blocks / 256) + 4 * (16 + 256 + 1)


def trained_sizes(settings: MemorySettings, policy: ModelShape, critic: CriticTrunk | None = None) -> tuple[int, ...]:
    """Size of each trained tensor: adapters (rank x in, out x rank) or all weights, then the critic's."""
    own = lora_sizes(settings, policy) or (*policy.linear, *policy.other)
    return (*own, *critic_sizes(policy, critic))


def critic_sizes(policy: ModelShape, critic: CriticTrunk | None) -> tuple[int, ...]:
    """Size of each tensor that only values depend on: of a critic apart, its adapters or its trunk; then the value
    head's two."""
    if critic is None:
        return (policy.hidden, 1)
    return (*(lora_sizes(critic.settings, critic.shape) or critic.shape.trunk), critic.shape.hidden, 1)


def lora_sizes(settings: MemorySettings, shape: ModelShape) -> tuple[int, ...]:
    """Size of each tensor of an adapter; none where all weights are trained."""
    rank = settings.lora_rank
    if settings.training == "full":
        return ()
    return tuple(size for into, out in shape.adapted for size in (rank * into, out * rank))


def optimizer_bytes(settings: MemorySettings, policy: ModelShape, critic: CriticTrunk | None = None) -> tuple[int, int]:
    """States that must be on the card, and those that may be paged out to the host, which torch does not count.

    Adam: two float32 per number. Paged 8-bit: the same for tensors below 4,096 numbers; for others two bytes, paged
    from 100,000 numbers on, and two float32 scales per block of 256.
    """
    sizes = trained_sizes(settings, policy, critic)
    if settings.optimizer == "adam":
        return 8 * sum(sizes), 0
    scales = sum(8 * math.ceil(size / 256) for size in sizes if size >= 4096)
    fixed = sum(size * (8 if size < 4096 else 2) for size in sizes if size < 100_000)
    return scales + fixed, sum(2 * size for size in sizes if size >= 100_000)


def cache_bytes(shape: ModelShape, width: int, tokens: int) -> int:
    """Keys and values of ``tokens`` tokens in all layers; grouped queries share them."""
    return 2 * shape.layers * shape.key_heads * shape.head_size * width * tokens


def kept_by_layer(settings: MemorySettings, shape: ModelShape) -> float:
    """Bytes per token that one layer keeps for its backward pass, without checkpointing.

    With b bytes per number, r of those between layers (as b, but 4 under autocast), h hidden, a = heads x head size, k
    the same of the keys, i the MLP's width, S tokens per row:

    - Llama, Qwen2: norms 2 (4 h + 4), in float32; attention b (2 a + 2 k) + 4 heads; gated MLP 3 b i;
    - GPT-2: norms 2 (r h + 8); attention 4 b h + 4 heads; MLP b i, for its GELU is one operation here;
    - GPT-J: norm r h + 8; eager attention 8 h (under autocast 4 h) + b h + (4 + [b < 4] b) heads S, its softmax in
      float32; MLP b i.

    Besides, where weights are trained, the input of each product (a Llama norm's in float32); where adapters are, a
    float32 copy of each adapted module's input (in float32 one for all) and its projection. The first layer under LoRA
    keeps less, which is not modelled. Under autocast each product keeps an input of its own (3 b h in all but GPT-2).
    """
    b, r, h, i, heads = settings.product_width, settings.width, shape.hidden, shape.inner, shape.heads
    a, k = heads * shape.head_size, shape.key_heads * shape.head_size
    own = {
        "llama": 2 * (4 * h + 4) + b * (2 * a + 2 * k) + 4 * heads + 3 * b * i,
        "gpt2": 2 * (r * h + 8) + 4 * b * h + 4 * heads + b * i,
        "gptj": r * h + 8 + (8 if b == r else 4) * h + b * h + (4 + (b < 4) * b) * heads * settings.tokens + b * i,
    }[shape.family]
    if settings.training == "full":
        recast = 3 * b * h * (b != r and shape.family != "gpt2")
        return own + b * (2 * h + i) + 8 * h * (shape.family == "llama") + recast
    copies = 4 * sum(into for into, _ in shape.adapted) / shape.layers if b < 4 else 4 * h
    return own + copies + 4 * settings.lora_rank * len(shape.adapted) / shape.layers


def kept_by_pass(settings: MemorySettings, shape: ModelShape, tokens: int) -> float:
    """Bytes that the trunk keeps for its backward pass over ``tokens`` tokens: every layer's, or its input alone where
    layers are checkpointed, and the final norm's."""
    r, h = settings.width, shape.hidden
    layer = r * h if settings.gradient_checkpointing else kept_by_layer(settings, shape)
    norm = 4 * h * (1 + (settings.training == "full")) if shape.family == "llama" else r * h
    return tokens * (shape.layers * layer + norm + 8)


def backward_bytes(settings: MemorySettings, shape: ModelShape, tokens: int) -> float:
    """Working memory of the backward pass on top of :func:`kept_by_pass`.

    The larger of three gradients in the MLP, b (3 i + h) per token, and a float32 norm's in Llama, (20 + b) h, or those
    of GPT-J's attention, 8 heads S, when its MLP's 4 b i are free again; the layer being recomputed, where layers are
    checkpointed; one weight in full size, dequantised, or a gradient about to be added.
    """
    b, h = settings.product_width, shape.hidden
    maps = 8 * shape.heads * settings.tokens - 4 * b * shape.inner
    rival = {"llama": (20 + b) * h, "gpt2": 0, "gptj": maps}[shape.family]
    recomputed = kept_by_layer(settings, shape) - settings.width * h if settings.gradient_checkpointing else 0
    working = tokens * (max(b * (3 * shape.inner + h), rival) + recomputed)
    whole = 4 * max(*shape.linear, *shape.other) if settings.training == "full" else 0
    return working + max(whole, dequantised_bytes(settings, shape, "policy"))


def forward_bytes(settings: MemorySettings, shape: ModelShape, rows: int, row: int, model: Model) -> float:
    """Working memory of a pass without gradient over ``rows`` rows of ``row`` tokens: one layer's widest moment.

    Bytes per token, letters as in :func:`kept_by_layer`, in MLP or attention: Llama 4 r h + 3 b i, or under the
    policy's adapter 4 b h + 16 h where that is more; GPT-2 5 r h + 2 b i; GPT-J 6 r h + 2 b i + (b heads + 4) S, or in
    its eager attention (6 b + 8) h + ((8 + b) heads + 4) S. With 4-bit weights, one of them in full size besides.
    """
    b, r, h, i, heads = settings.product_width, settings.width, shape.hidden, shape.inner, shape.heads
    adapter = (4 * b + 16) * h if model == "policy" and settings.training == "lora" else 0
    moments = {
        "llama": (4 * r * h + 3 * b * i, adapter),
        "gpt2": (5 * r * h + 2 * b * i,),
        "gptj": (6 * r * h + 2 * b * i + (b * heads + 4) * row, (6 * b + 8) * h + ((8 + b) * heads + 4) * row),
    }[shape.family]
    return rows * row * max(moments) + dequantised_bytes(settings, shape, model)


def dequantised_bytes(settings: MemorySettings, shape: ModelShape, model: Model) -> int:
    """The largest linear layer in full size, which a product with 4-bit weights makes for a moment."""
    return settings.width * max(shape.linear) if packed(settings, model) else 0


def packed(settings: MemorySettings, model: Model) -> bool:
    """Whether the model's linear layers are held in 4 bits; the reference shares the policy's."""
    return settings.four_bit in ("both", "reward" if model == "reward" else "policy")


def evidence_bytes(settings: MemorySettings, shape: ModelShape, rows: int, queries: int) -> float:
    """Attention rows of one layer: float32 keys, and two blocks of weights."""
    keys = 4 * rows * settings.tokens * shape.key_heads * shape.head_size
    row_cells = rows * shape.heads * settings.tokens
    cells = min(queries, max(1, ATTENTION_CELLS["cuda"] // row_cells)) * row_cells
    return keys + 8 * cells


def chunk_cells(shape: ModelShape, tokens: int) -> int:
    """(token, vocab) block of float32 log-probabilities that ``models.passes.token_statistics`` works on at a time."""
    return min(tokens, max(1, LOGITS_CELLS["cuda"] // shape.vocab)) * shape.vocab


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Bytes by phase and component, every phase at its fullest moment."""

    phases: Mapping[str, Bytes]
    paged: int
    """Optimizer states that may be on the host; in no phase."""

    def total(self, phase: str) -> float:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """The fullest phase."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> float:
        """Bytes of the fullest phase."""
        return self.total(self.peak_phase)


def predict(
    settings: MemorySettings, policy: ModelShape, reward: ModelShape, critic_model: ModelShape | None = None
) -> Prediction:
    """Peak memory of each phase. A critic that is a model of its own is ``critic_model``; None: as large as the reward
    model.

    Raises:
        ValueError: rows that a model's context does not hold.
    """
    critic = CRITICS[settings.critic](settings, policy, critic_model or reward)
    for shape in (policy, reward, *(() if critic is None else (critic.shape,))):
        if settings.tokens > shape.context:
            raise ValueError(
                f"prompt_tokens {settings.prompt_tokens} + response_tokens {settings.response_tokens} exceed the "
                f"{shape.context} positions of {shape.name}"
            )
    held = _held(settings, policy, reward, critic)
    largest = dequantised_bytes(settings, policy, "policy"), dequantised_bytes(settings, reward, "reward")
    moments: Mapping[str, list[Bytes]] = {
        # layers are quantised one at a time, and the optimizer has no states before its first step
        "load": [{"optimizer": 0, "activations": max(largest)}],
        "sample": _sampling(settings, policy),
        "old log-probs": [*_scoring(settings, policy, "policy"), *_valuing(settings, policy, critic)],
        "reference": _scoring(settings, policy, "reference"),
        "reward": _reward(settings, reward),
        "update": _updating(settings, policy, critic),
    }
    fullest = {phase: max(options, key=lambda moment: sum(moment.values())) for phase, options in moments.items()}
    phases = {phase: {**dict.fromkeys(COMPONENTS, 0.0), **held, **moment} for phase, moment in fullest.items()}
    return Prediction(phases=phases, paged=optimizer_bytes(settings, policy, critic)[1])


def _held(settings: MemorySettings, policy: ModelShape, reward: ModelShape, critic: CriticTrunk | None) -> Bytes:
    """What stays from one step to the next. Gradients do not: they are freed after the update."""
    full, weights = settings.training == "full", weight_bytes(settings, policy, "policy")
    whole = critic is not None and critic.settings.training == "full"
    of_trunk = sum(critic.shape.trunk) if critic is not None and whole else 0
    own = sum(lora_sizes(settings, policy)) + sum(critic_sizes(policy, critic)) - of_trunk
    return {
        "critic weights": 4 * of_trunk + (critic.shape.buffer_bytes if critic is not None and whole else 0),
        "policy weights": weights,
        "reference copy": weights if full else 0,
        "weight copies": sampling_copy_bytes(settings, policy),
        "adapters, head": 4 * own,
        "optimizer": optimizer_bytes(settings, policy, critic)[0],
        "reward weights": weight_bytes(settings, reward, "reward"),
        "CUDA context": CONTEXT_BYTES,
    }


def _sampling(settings: MemorySettings, policy: ModelShape) -> list[Bytes]:
    """The prompts' pass, all rows side by side, and the last token: the whole cache, one tensor of it twice (rows that
    leave are copied), and the distribution in float32 and float64, 20 bytes per (row, vocab) cell beside the logits."""
    b, rows = settings.product_width, settings.rows(settings.sampling_tokens, settings.rollout_batch_size)
    prompts, whole = rows * settings.prompt_tokens, rows * settings.tokens
    each = (settings.width + b) // 2 if policy.family == "llama" else b  # under autocast its keys are float32
    copied = cache_bytes(policy, each, whole) / (2 * policy.layers)
    in_float32 = 4 * whole * policy.hidden * (b < 4) if policy.family == "gptj" else 0
    first = forward_bytes(settings, policy, rows, settings.prompt_tokens, "policy")
    last = forward_bytes(settings, policy, rows, 1, "policy") + copied + in_float32
    logits = (20 + b) * rows * policy.vocab
    copies = {"weight copies": sampling_copy_bytes(settings, policy) + cast_bytes(settings, policy)}
    return [
        {"KV cache": cache_bytes(policy, each, prompts), "activations": first, **copies},
        {"KV cache": cache_bytes(policy, each, whole), "activations": last, "logits": logits, **copies},
    ]


def _scoring(settings: MemorySettings, policy: ModelShape, model: Model) -> list[Bytes]:
    """A pass over whole rows without gradient: its widest layer; then logits in ``dtype`` and one float32 chunk, 16
    bytes per cell with the policy's entropy, 9 without."""
    rows = settings.rows(settings.micro_batch_tokens, settings.rollout_batch_size)
    responses = rows * settings.response_tokens
    trunk = forward_bytes(settings, policy, rows, settings.tokens, model)
    read = settings.evidence == "decoder" and model == "policy"
    evidence = evidence_bytes(settings, policy, rows, settings.response_tokens) if read else 0
    chunk = chunk_cells(policy, responses) * (16 if model == "policy" else 9)
    logits = settings.product_width * responses * policy.vocab + chunk
    hidden = (settings.width + 4) * responses * policy.hidden
    cast = cast_bytes(settings, policy) if model == "policy" else largest_cast_bytes(settings, policy)
    copies = {"weight copies": sampling_copy_bytes(settings, policy) + cast}
    return [{"activations": trunk, "evidence": evidence, **copies}, {"activations": hidden, "logits": logits}]


def _valuing(settings: MemorySettings, policy: ModelShape, critic: CriticTrunk | None) -> list[Bytes]:
    """The pass of a critic apart, while the policy's logits are held."""
    if critic is None:
        return []
    rows = settings.rows(settings.micro_batch_tokens, settings.rollout_batch_size)
    responses = rows * settings.response_tokens
    trunk = forward_bytes(critic.settings, critic.shape, rows, settings.tokens, "policy")
    hidden = settings.width * responses * policy.hidden
    casts = cast_bytes(settings, policy) + cast_bytes(critic.settings, critic.shape, head=False)
    copies = {"weight copies": sampling_copy_bytes(settings, policy) + casts}
    return [{"activations": trunk + hidden, "logits": settings.product_width * responses * policy.vocab, **copies}]


def _reward(settings: MemorySettings, reward: ModelShape) -> list[Bytes]:
    """The reward model's pass, which autocast does not reach; its head reads one position per row."""
    settings = replace(settings, autocast="none")
    rows = settings.rows(settings.reward_micro_batch_tokens, settings.rollout_batch_size)
    trunk = forward_bytes(settings, reward, rows, settings.tokens, "reward")
    read = evidence_bytes(settings, reward, rows, 1) if settings.evidence == "reward" else 0
    return [{"activations": trunk, "evidence": read}]


def _updating(settings: MemorySettings, policy: ModelShape, critic: CriticTrunk | None) -> list[Bytes]:
    """Backward through the head, the last and the first layer. Before the last layer only gradients of an earlier
    micro-batch exist; at the first, everybody's do, and activations are freed but for one layer's. A critic apart keeps
    its activations beside the policy's, and its backward pass comes before the policy's.

    Autograd keeps the logits as they were multiplied. Besides, one float32 chunk with the entropy (16 bytes per cell)
    on the way forward; their gradient and a chunk of 9 bytes per cell on the way back. What autocast casts is held
    until the forward pass ends, which is a moment of its own, and without checkpointing until the backward pass has
    read it.
    """
    b, rows = settings.product_width, settings.rows(settings.micro_batch_tokens, settings.minibatch_size)
    tokens, responses = rows * settings.tokens, rows * settings.response_tokens
    cells, chunk = responses * policy.vocab, chunk_cells(policy, responses)
    logits = max(b * cells + 16 * chunk, 2 * b * cells + 9 * chunk)
    kept, working = kept_by_pass(settings, policy, tokens), backward_bytes(settings, policy, tokens)
    gradients = 4 * sum(trained_sizes(settings, policy, critic))
    earlier = gradients if rows < settings.minibatch_size else 0
    beside, of_critic, after_it = 0.0, list[Bytes](), earlier
    own, casts = sampling_copy_bytes(settings, policy), cast_bytes(settings, policy)
    read_again = 0 if settings.gradient_checkpointing else 1
    if critic is not None:
        beside = kept_by_pass(critic.settings, critic.shape, tokens)
        casts += cast_bytes(critic.settings, critic.shape, head=False)
        after_it = max(earlier, 4 * sum(critic_sizes(policy, critic)))
        working_of_critic = backward_bytes(critic.settings, critic.shape, tokens)
        activations = kept + beside + working_of_critic
        at_it = {"logits": b * cells, "weight copies": own + read_again * casts}
        of_critic = [{"gradients": after_it, "activations": activations, **at_it}]
    forward = kept + beside + (settings.width + 4) * responses * policy.hidden
    of_layers = read_again * cast_bytes(settings, policy, head=False)
    of_head = cast_bytes(settings, policy) - cast_bytes(settings, policy, head=False)
    at_head = own + max(read_again * casts, of_head)
    return [
        {"gradients": earlier, "activations": forward, "logits": b * cells, "weight copies": own + casts},
        {"gradients": earlier, "activations": forward, "logits": logits, "weight copies": at_head},
        *of_critic,
        {"gradients": after_it, "activations": kept + working, "weight copies": own + of_layers},
        {
            "gradients": gradients,
            "activations": kept / policy.layers + working,
            "weight copies": own + of_layers / policy.layers,
        },
    ]
