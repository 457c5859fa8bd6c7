"""Load-time check of a model that is to decode in steps of fixed shapes: whether it can, and whether it still says the
same."""

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache, StaticLayer

from models.passes.fixed_decoder import FixedSteps
from models.passes.rotary import TableARow
from models.passes.sampling import CachedDecoder, Decoder, left_padded

# What a model's own code raises where it meets a cache that it was not written for.
OWN_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
WITHOUT = "load the policy without compile_decoding"


def check_fixed_steps(lm: PreTrainedModel, vocab_size: int) -> None:
    """Refuse a model that keeps more than the keys and values of all tokens, or whose steps of fixed shapes differ from
    its ordinary ones. Nothing is compiled.

    Raises:
        ValueError: naming the architecture, the reason, and the way out.
    """
    if reason := _reason(lm) or _difference(lm, vocab_size):
        raise ValueError(f"{type(lm).__name__} cannot decode in steps of fixed shapes: {reason}; {WITHOUT}")


def _reason(lm: PreTrainedModel) -> str:
    """Why the model cannot, by what it says of itself; empty if it can."""
    if getattr(lm, "_is_stateful", False):
        return "it keeps a recurrent state"
    if any(isinstance(module, TableARow) for module in lm.modules()):
        return "its rotary tables depend on each row's length (LongRoPE or dynamic NTK)"
    if not getattr(lm, "_can_compile_fullgraph", False):
        return "transformers does not name it as a model that compiles to one graph (_can_compile_fullgraph)"
    layers = StaticCache(lm.config, max_cache_len=1).layers
    others = sorted({type(layer).__name__ for layer in layers if type(layer) is not StaticLayer})
    if others:
        return f"some of its layers do not keep the keys and values of all tokens ({', '.join(others)})"
    return ""


@torch.no_grad()
def _difference(lm: PreTrainedModel, vocab_size: int) -> str:
    """How its steps of fixed shapes differ from its ordinary ones; empty if they do not."""
    prompts = [[(7 * i + 3 * row + 1) % vocab_size for i in range(length)] for row, length in enumerate((3, 1, 2))]
    room = torch.full((3,), 4)
    lm.train(False)
    ordinary = CachedDecoder(lm, room)
    wanted = _walked(ordinary, prompts, vocab_size, lm.device)
    cache, _ = ordinary.filled
    if type(cache) is not DynamicCache or not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return f"its cache is a {type(cache).__name__}, not a DynamicCache of keys and values"
    try:
        found = _walked(FixedSteps(lm, lm).decoder(room), prompts, vocab_size, lm.device)
    except OWN_ERRORS as error:
        return f"it fails with transformers' StaticCache ({type(error).__name__}: {error})"
    gap = float((found.float().log_softmax(-1) - wanted.float().log_softmax(-1)).abs().mean())
    exact = lm.dtype == torch.float32 and not getattr(lm, "is_quantized", False)
    allowed = 1e-4 if exact else 0.1
    if gap <= allowed:
        return ""
    return f"they differ from its ordinary ones by {gap:.2g} nats (mean over the vocabulary; allowed: {allowed:.0e})"


def _walked(decoder: Decoder, prompts: list[list[int]], vocab_size: int, device: torch.device) -> Tensor:
    """Logits of three steps; a row leaves after the first."""
    logits = [decoder.start(*left_padded(prompts, torch.device("cpu")))]
    for step, rows in enumerate(([0, 1, 2], [1, 2], [1, 2])):
        if step == 1:
            decoder.keep(torch.tensor(rows))
        tokens = torch.tensor([(5 * row + step + 1) % vocab_size for row in rows], device=device)
        logits.append(decoder.advance(tokens))
    return torch.cat(logits)
