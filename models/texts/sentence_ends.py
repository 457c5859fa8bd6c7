"""Which tokens end a sentence, judged by their own text."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def sentence_ends(
    tokenizer: PreTrainedTokenizerBase,
    ids: Int[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    marks: str,
) -> Float[Tensor, "batch response"]:
    """1 on tokens whose text holds one of ``marks``, 0 on others and on padding; special tokens have no text.

    Each token is decoded alone, so that none is judged by what follows. Where a tokenizer spells one mark with several
    tokens (bytes of "。"), none of them holds it.
    """
    found, which = torch.unique(ids.masked_fill(~mask, int(ids[mask][0])), return_inverse=True)
    texts = tokenizer.batch_decode(
        found[:, None].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    ends = torch.tensor([any(mark in text for mark in marks) for text in texts], device=ids.device)
    return (ends[which] & mask).float()
