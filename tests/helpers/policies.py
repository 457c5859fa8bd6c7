"""Policies with every kind of adapter, and what they sample."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from models import CausalPolicy, LoraSettings, load_policy
from models.tiny import save_tiny
from rlhf_core.evidence import AttentionTap, EvidenceRequest
from rlhf_core.types import Limits, Sequences

FAMILIES = ["gpt2", "llama"]


LORA = LoraSettings(rank=4)


NOTHING: frozenset[EvidenceRequest] = frozenset()


PROMPTS = [[2, 3, 4, 5, 6], [7], [8, 9, 1], [10, 11], [12, 1, 1, 13], [3, 3, 3, 3, 3, 3, 3]]


LOW, HIGH = torch.tensor([0, 3, 0, 5, 2, 0]), torch.tensor([12, 9, 1, 12, 7, 10])


@dataclass(frozen=True, kw_only=True)
class LastRow(AttentionTap):
    """What the policy attended to when it predicted the last token."""

    def rows(self, layout):
        return layout.read_positions[:, None]

    def reduce(self, weights, rows, layout):
        row = weights.mean(1)[:, 0]
        return torch.where(layout.response_mask, row.gather(1, layout.response_positions), 0.0)


def sft_adapter(family: str, base: str, folder: Path, **config) -> str:
    """An adapter whose B is not zero, with dropout, as supervised fine-tuning leaves it."""
    lm = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.1, fan_in_fan_out=family == "gpt2", **config
    )
    adapters = get_peft_model(lm, lora)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapters.save_pretrained(folder)
    return str(folder)


def plain_adapter(base: str, adapter) -> PeftModel:
    """The adapter as PEFT alone loads it."""
    lm = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(lm, adapter).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[tuple[str, str], str]:
    """Model folders by (family, kind); "adapter" is one on top of the model."""
    root, found = tmp_path_factory.mktemp("models"), {}
    for family in FAMILIES:
        found[family, "model"] = save_tiny(root / family, family, dropout=0.1)
        found[family, "adapter"] = sft_adapter(family, found[family, "model"], root / f"{family}-adapter")
    return found


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(params=["full", "lora", "adapter"])
def policy(request, family, folders) -> CausalPolicy:
    return build(folders, family, request.param)


def build(folders, family: str, kind: str, **settings) -> CausalPolicy:
    if kind == "adapter":
        policy = load_policy(folders[family, "adapter"], **settings)
    else:
        policy = load_policy(folders[family, "model"], lora=LORA if kind == "lora" else None, **settings)
    *_, weight, _ = policy.parameters()
    with torch.no_grad():
        weight.normal_(generator=torch.Generator().manual_seed(1))
    policy._lm.train()
    return policy


def sample(policy: CausalPolicy, prompts=PROMPTS, low=LOW, high=HIGH, temperature=1.0) -> Sequences:
    u = torch.rand(len(prompts), int(high.max()), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return policy.sample(prompts, Limits(min_lengths=low, max_lengths=high), u, temperature=temperature)


def rolled_out(policy: CausalPolicy, s: Sequences, needs=NOTHING, temperature=1.0):
    with torch.no_grad():
        return policy.evaluate(s, needs, temperature=temperature)
