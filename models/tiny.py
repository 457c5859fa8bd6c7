"""Tiny random models, built from a config in milliseconds: for tests, and to try things without a GPU or a download.

Weights are drawn wide (``std`` 0.3 where a trained model would start at 0.02), so that attention is far from uniform,
logits are far from flat, and a wrong position, mask or scale shows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from models.progress_bars import save_without_bars

EOS_ID = 1
Family = Literal["gpt2", "llama"]
Head = Literal["lm", "classifier"]
Padding = Literal["none", "eos", "own"]
Model = TypeVar("Model", bound=PreTrainedModel)


def gpt2_config(
    *,
    vocab_size: int = 32,
    hidden_size: int = 32,
    n_layers: int = 2,
    n_heads: int = 4,
    context: int = 64,
    dropout: float = 0.0,
    num_labels: int = 1,
    eos_ids: int | list[int] | None = EOS_ID,
    pad_id: int | None = None,
) -> GPT2Config:
    """A GPT-2 with learned absolute positions; ``dropout`` sets every dropout probability it has."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=hidden_size,
        n_layer=n_layers,
        n_head=n_heads,
        n_positions=context,
        attn_pdrop=dropout,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=None,
        eos_token_id=eos_ids,
        pad_token_id=pad_id,
        **_labels(num_labels),
    )


def llama_config(
    *,
    vocab_size: int = 32,
    hidden_size: int = 32,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    context: int = 64,
    dropout: float = 0.0,
    num_labels: int = 1,
    eos_ids: int | list[int] | None = EOS_ID,
    pad_id: int | None = None,
    tie_word_embeddings: bool = False,
) -> LlamaConfig:
    """A Llama with rotary positions and grouped queries; ``dropout`` is that of its attention, the only one it has."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        max_position_embeddings=context,
        attention_dropout=dropout,
        bos_token_id=None,
        eos_token_id=eos_ids,
        pad_token_id=pad_id,
        tie_word_embeddings=tie_word_embeddings,
        **_labels(num_labels),
    )


def tiny_gpt2(*, seed: int = 0, std: float = 0.3, **config: Any) -> GPT2LMHeadModel:
    """A random GPT-2 language model; ``config`` as in :func:`gpt2_config`."""
    return _drawn(GPT2LMHeadModel(gpt2_config(**config)), seed, std)


def tiny_llama(*, seed: int = 0, std: float = 0.3, **config: Any) -> LlamaForCausalLM:
    """A random Llama language model; ``config`` as in :func:`llama_config`."""
    return _drawn(LlamaForCausalLM(llama_config(**config)), seed, std)


def tiny_gpt2_classifier(*, seed: int = 0, std: float = 0.3, **config: Any) -> GPT2ForSequenceClassification:
    """A random GPT-2 classifier with ``num_labels`` logits."""
    return _drawn(GPT2ForSequenceClassification(gpt2_config(**config)), seed, std)


def tiny_llama_classifier(*, seed: int = 0, std: float = 0.3, **config: Any) -> LlamaForSequenceClassification:
    """A random Llama classifier with ``num_labels`` logits."""
    model = LlamaForSequenceClassification(llama_config(**config))  # type: ignore[no-untyped-call]
    return _drawn(model, seed, std)


def tiny_tokenizer(
    *, vocab_size: int = 32, words: Sequence[str] | None = None, padding: Padding = "none"
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: ``<unk>`` is 0, ``<eos>`` is 1, then ``words`` (default ``w2``, ``w3``, ...).

    ``padding``: no pad token at all, the EOS token, or a token of its own (``<pad>``, after the words).

    Raises:
        ValueError: more words than the vocabulary holds.
    """
    specials = ["<unk>", "<eos>"]
    last = ["<pad>"] if padding == "own" else []
    room = vocab_size - len(specials) - len(last)
    names = [*specials, *(words if words is not None else [f"w{i + 2}" for i in range(room)]), *last]
    if len(names) > vocab_size:
        raise ValueError(f"tiny_tokenizer: {len(names)} tokens with specials, but vocab_size is {vocab_size}")
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad = {"none": {}, "eos": {"pad_token": "<eos>"}, "own": {"pad_token": "<pad>"}}[padding]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", **pad
    )


def save_tiny(
    folder: str | Path,
    family: Family = "gpt2",
    *,
    head: Head = "lm",
    padding: Padding = "none",
    words: Sequence[str] | None = None,
    **settings: Any,
) -> str:
    """Write a loadable transformers folder with model and tokenizer, and return its path.

    ``family``: "gpt2" or "llama". ``head``: "lm" for a policy, "classifier" for a reward model. ``padding`` and
    ``words`` as in :func:`tiny_tokenizer`. ``settings`` are those of :func:`tiny_gpt2` and :func:`tiny_llama`
    (``vocab_size``, ``seed``, ``std``, ``dropout``, ...); the config's pad id follows ``padding`` unless given.

    Raises:
        ValueError: more ``words`` than the vocabulary holds.
    """
    tokenizer = tiny_tokenizer(vocab_size=settings.get("vocab_size", 32), words=words, padding=padding)
    settings.setdefault("pad_id", tokenizer.pad_token_id)
    build = {
        ("gpt2", "lm"): tiny_gpt2,
        ("gpt2", "classifier"): tiny_gpt2_classifier,
        ("llama", "lm"): tiny_llama,
        ("llama", "classifier"): tiny_llama_classifier,
    }[family, head]
    save_without_bars(build(**settings), folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _labels(num_labels: int) -> dict[str, Any]:
    """An argument that configs take but do not declare."""
    return {"num_labels": num_labels}


def _drawn(model: Model, seed: int, std: float) -> Model:
    """Every parameter from a normal distribution, norms around 1, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(around + std * torch.randn(parameter.shape, generator=generator))
    model.tie_weights()
    model.eval()  # type: ignore[no-untyped-call]
    return model
