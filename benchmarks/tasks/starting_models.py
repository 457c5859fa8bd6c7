"""The starting models of a preparation: a GPT-2 from scratch with its own tokenizer, or a base model; and samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from models.passes.context_length import context_length
from models.training.supervised import new_language_model
from models.weights.language_model import read_language_model
from models.weights.source import ModelSource
from models.weights.tokenizer import load_tokenizer

VOCABULARY = 2048
END, PAD = "<|endoftext|>", "<|pad|>"
SAMPLES, SAMPLE_TOKENS, SHOWN = 8, 32, 120
"""Samples written to the report, their longest response, and the characters of a prompt's end shown with them."""
GPT2_SIZES: Mapping[str, Mapping[str, int]] = {
    "micro": {"layers": 2, "width": 32, "heads": 2},
    "tiny": {"layers": 4, "width": 128, "heads": 4},
    "small": {"layers": 8, "width": 512, "heads": 8},
    "gpt2": {"layers": 12, "width": 768, "heads": 12},
}


def from_scratch(
    size: str, texts: Sequence[str], *, context: int, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model with random weights and the tokenizer made for it from ``texts``."""
    shape, tokenizer = GPT2_SIZES[size], byte_level_tokenizer(texts, VOCABULARY)
    return new_language_model(
        tokenizer, **shape, context=context, init_std=shape["width"] ** -0.5, seed=seed
    ), tokenizer


def from_base(name: str, *, context: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model from a folder or the hub, in float32, with its own tokenizer.

    Raises:
        ValueError: it reads fewer than ``context`` tokens, its tokenizer has no EOS, or its files are not safe to read.
    """
    tokenizer = base_tokenizer(name)
    model = read_language_model(ModelSource(name_or_path=name))
    if getattr(model, "is_quantized", False):
        raise ValueError(f"{name} holds 4-bit weights, which cannot be trained whole; prepare an adapter on it")
    require_context(model, name, context)
    return model, tokenizer


def base_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model; raises ValueError where it has no EOS token to end a text with."""
    tokenizer = load_tokenizer([ModelSource(name_or_path=name)])
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no EOS token, with which texts end; set eos_token in its folder")
    return tokenizer


def require_context(model: PreTrainedModel, name: str, needed: int) -> None:
    """Raise ValueError where rows of ``needed`` tokens exceed what the model reads."""
    limit = context_length(model)
    if limit is not None and limit < needed:
        raise ValueError(
            f"{name} reads at most {limit} tokens, rows of {needed} are asked for; lower the max_ settings"
        )


def require_layers(model: PreTrainedModel, kept: int | None, frozen: int) -> None:
    """Raise ValueError, before anything is trained, where the language model has too few layers for a reward model
    that keeps ``kept`` of them (None: all) and trains all but the ``frozen`` lowest."""
    layers = model.config.num_hidden_layers
    if (kept or layers) > layers or frozen > (kept or layers):
        raise ValueError(
            f"prepare: the language model has {layers} layers; reward_layers {kept or layers} and frozen_layers "
            f"{frozen} must not exceed them, nor frozen_layers reward_layers"
        )


def byte_level_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``vocabulary`` tokens, with tokens of their own for the end of a text and for padding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, eos_token=END, pad_token=PAD
    )


@torch.no_grad()
def continuations(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], *, seed: int
) -> list[str]:
    """Continuations drawn from the whole distribution, to be read; no generation setting of a folder is used."""
    eos = tokenizer.eos_token_id
    limit = context_length(getattr(model, "get_base_model", lambda: model)()) or SAMPLE_TOKENS + max(map(len, prompts))
    texts, own = [], model.generation_config
    model.eval()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            for ids in prompts[:SAMPLES]:
                given, room = torch.tensor([ids], device=model.device), min(SAMPLE_TOKENS, limit - len(ids))
                # the model's own as well: settings left unset here would come from its folder
                model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
                    do_sample=True, top_k=0, max_new_tokens=room, eos_token_id=eos, pad_token_id=eos
                )
                drawn = model.generate(given, attention_mask=torch.ones_like(given))
                texts.append(f"{tokenizer.decode(given[0])[-SHOWN:]} | {tokenizer.decode(drawn[0, len(ids) :])}")
        finally:
            model.generation_config = own
    return texts
