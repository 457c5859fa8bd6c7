"""GPT-2 shapes of any size, and the two sizes that commands offer."""

from collections.abc import Mapping
from typing import Any

from transformers import GPT2Config

from models.tiny import gpt2_config

SIZES: Mapping[str, Mapping[str, int]] = {
    "gpt2": {"layers": 12, "hidden": 768, "vocab": 50_257},
    "small": {"layers": 2, "hidden": 64, "vocab": 512},
}
"""GPT-2 124M, and one for a first try."""


def gpt2_of(layers: int, hidden: int, vocab: int, *, context: int = 1024, **further: Any) -> GPT2Config:
    """A GPT-2 with heads of 64; ``further`` as in :func:`models.tiny.gpt2_config`."""
    heads = hidden // 64
    return gpt2_config(vocab_size=vocab, hidden_size=hidden, n_layers=layers, n_heads=heads, context=context, **further)
