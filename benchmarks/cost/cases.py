"""The named workloads on which steps are timed. Nothing heavy is imported here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


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

    @property
    def words(self) -> str:
        """Its description in the tables."""
        low, high = self.lengths
        return (
            f"GPT-2 of {self.layers} layers x {self.hidden}, vocabulary {self.vocab}; {self.prompts} prompts, "
            f"{low}-{high} tokens, minibatch {self.minibatch_size}, passes of up to {self.micro_batch_tokens} tokens; "
            f"{self.training} fine-tuning in {self.precision} on {self.device}"
            + ("" if self.keep_freed_memory else ", freed memory given back")
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
}
"""GPT-2 124M in the paper's setting, with larger minibatches, with long responses, and with those in less memory;
"tiny" is for a first try."""
