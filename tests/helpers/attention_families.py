"""Tiny models of many families, and their own attention."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from rlhf_core.evidence import AttentionTap, Layout

VOCAB, COLUMNS, HEADS = 40, 12, 4


LENGTHS = (12, 5, 9, 1)  # real tokens of each left-padded row


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS}


LLAMA = SIZE | {"intermediate_size": 48}


GQA = LLAMA | {"num_key_value_heads": 2}


IDS = {"bos_token_id": 1, "eos_token_id": 1}


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": HEADS} | IDS,
    "llama": LLAMA,
    "llama-gqa": GQA,
    "qwen2": GQA,
    "qwen3": GQA | {"head_dim": 8},
    "mistral": GQA | {"sliding_window": 4},
    "gpt_neox": LLAMA | {"bos_token_id": 1, "eos_token_id": 1},
    "opt": SIZE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": LLAMA,
    "gemma": LLAMA | {"num_key_value_heads": 1, "head_dim": 8},
    "bert": LLAMA,
    "roberta": LLAMA,
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": HEADS, "rotary_dim": 4} | IDS,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": HEADS, "window_size": 4}
    | {"attention_types": [[["global", "local"], 1]]}
    | IDS,
    "falcon": SIZE | {"bos_token_id": 1, "eos_token_id": 1},
    # under SDPA, falcon adds ALiBi after scaling, another function: see test_asking.py
    "falcon-alibi": SIZE | {"alibi": True, "attn_implementation": "eager", "bos_token_id": 1, "eos_token_id": 1},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": HEADS},
    "gemma2": GQA | {"head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0},
}


REFUSED: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
    "gpt_oss": GQA | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "pad_token_id": 0},
    "albert": LLAMA,
    "t5": {"d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": HEADS, "d_ff": 48},
}


@dataclass(frozen=True, kw_only=True)
class ReadRow(AttentionTap):
    """The row at the read position, mean over heads."""

    source: str = "reward"

    def rows(self, layout: Layout) -> Tensor:
        return layout.read_positions[:, None]

    def reduce(self, weights: Tensor, rows: Tensor, layout: Layout) -> Tensor:
        return weights.sum(2).mean(1).gather(1, layout.response_positions)


def build(family: str, auto: Any = AutoModel, **changes: Any) -> Any:
    settings = (FAMILIES | REFUSED)[family] | {"vocab_size": VOCAB, "pad_token_id": 0} | changes
    config = AutoConfig.for_model(family.split("-", maxsplit=1)[0], **settings)
    model = auto.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + (parameter if parameter.ndim == 1 else 0))
    return model.eval()


def batch() -> tuple[Tensor, Tensor, Layout]:
    """Left-padded rows; the last tokens of each are its response (row 3 has one token and no earlier column)."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(2, VOCAB, (len(LENGTHS), COLUMNS), generator=generator)
    mask = torch.arange(COLUMNS) >= COLUMNS - torch.tensor(LENGTHS)[:, None]
    responses = (6, 4, 1, 1)
    width = max(responses)
    response_mask = torch.arange(width) < torch.tensor(responses)[:, None]
    first = COLUMNS - torch.tensor(responses)
    positions = torch.where(response_mask, first[:, None] + torch.arange(width), 0)
    layout = Layout(response_positions=positions, response_mask=response_mask, read_positions=torch.full((4,), 11))
    return ids, mask, layout


@torch.no_grad()
def own_attention(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """The maps of an untouched copy under eager attention."""
    other = copy.deepcopy(model)
    other.config._attn_implementation = "eager"
    return tuple(other.base_model(input_ids=ids, attention_mask=mask.long(), output_attentions=True).attentions)


def run(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
