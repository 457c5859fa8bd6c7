"""The named workloads on which steps are timed. Nothing heavy is imported here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Case:
    """The work of a step: GPT-2 shaped models with random weights for policy, reference and reward model."""

    layers: int = 12
    hidden: int = 768
    vocab: int = 50_257
    prompts: int = 16
    lengths: tuple[int, int] = (8, 15)
    """Shortest and longest response; lengths are drawn from this range, and the other stack uses the same ones."""
    minibatch_size: int = 1
    micro_batch_tokens: int = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    autocast: Literal["none", "bfloat16"] = "none"
    training: Literal["full", "lora"] = "full"
    four_bit: Literal["none", "both"] = "none"
    sampling_dtype: Literal["none", "bfloat16"] = "none"
    tf32: bool = False
    keep_freed_memory: bool = True
    device: Literal["cpu", "cuda"] = "cpu"
    loading: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of ``models.load_policy``; with any, the random policy is saved and loaded as a user's is."""
    ppo: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of ``rlhf_core.PPOConfig``."""

    @property
    def words(self) -> str:
        """Its description in the tables."""
        low, high = self.lengths
        further = "".join(f", {name} {value}" for name, value in {**self.loading, **self.ppo}.items())
        return (
            f"GPT-2 of {self.layers} layers x {self.hidden}, vocabulary {self.vocab}; {self.prompts} prompts, "
            f"{low}-{high} tokens, minibatch {self.minibatch_size}, passes of up to {self.micro_batch_tokens} tokens; "
            f"{self.training} fine-tuning in {self.precision} on {self.device}"
            + ("" if self.keep_freed_memory else ", freed memory given back")
            + further
        )

    @property
    def precision(self) -> str:
        """What is computed in, in words."""
        parts: list[str] = [self.dtype]
        parts += [f"{self.autocast} autocast"] if self.autocast != "none" else []
        parts += ["TF32"] if self.tf32 else []
        parts += ["4-bit weights"] if self.four_bit == "both" else []
        parts += [f"sampled through {self.sampling_dtype}"] if self.sampling_dtype != "none" else []
        return ", ".join(parts)


LARGE: Mapping[str, Any] = {"prompts": 64, "lengths": (64, 128), "minibatch_size": 16}
CASES: Mapping[str, Case] = {
    "paper": Case(),
    "minibatch-16": Case(minibatch_size=16),
    "long": Case(lengths=(100, 200), minibatch_size=8),
    "long-small-passes": Case(lengths=(100, 200), minibatch_size=8, micro_batch_tokens=384),
    "autocast": Case(minibatch_size=16, autocast="bfloat16"),
    "lora": Case(minibatch_size=16, training="lora"),
    "bf16": Case(minibatch_size=16, dtype="bfloat16", training="lora"),
    "four-bit": Case(minibatch_size=16, dtype="bfloat16", training="lora", four_bit="both"),
    "four-bit-copy": Case(
        minibatch_size=16, dtype="bfloat16", training="lora", four_bit="both", sampling_dtype="bfloat16"
    ),
    "tf32": Case(minibatch_size=16, tf32=True),
    "default-allocator": Case(keep_freed_memory=False),
    "tiny": Case(layers=2, hidden=64, vocab=128, prompts=4, minibatch_size=4),
    "compiled": Case(minibatch_size=16, loading={"compile_decoding": True}),
    "four-samples": Case(minibatch_size=16, ppo={"responses_per_prompt": 4}),
    "checkpointed": Case(minibatch_size=16, loading={"gradient_checkpointing": True}),
    "large": Case(layers=36, hidden=1280, **LARGE),
    "large-lora-bf16": Case(layers=36, hidden=1280, dtype="bfloat16", training="lora", **LARGE),
    "large-lora-four-bit": Case(layers=36, hidden=1280, dtype="bfloat16", training="lora", four_bit="both", **LARGE),
}
"""GPT-2 124M in the paper's setting, with larger minibatches, with long responses, and with those in less memory;
"tiny" is for a first try. The large ones, GPT-2 774M, are for a card."""
ON_A_CARD = (
    *("paper", "minibatch-16", "lora", "bf16", "four-bit", "compiled", "autocast", "tf32", "four-bit-copy"),
    *("four-samples", "checkpointed", "long", "large-lora-bf16", "large-lora-four-bit", "large"),
)
"""What ``benchmarks.card`` measures, the most telling first, since the last may not fit in its time."""
