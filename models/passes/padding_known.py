"""What transformers asks of a mask in every pass, answered from what is known without looking.

It asks whether a mask hides anything, and whether a row is several texts packed together. To look at a tensor on a card
makes the host wait for it: once a pass, and so once for every sampled token.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import masking_utils


@contextmanager
def padding_known(padded: bool) -> Iterator[None]:
    """Inside the block, ``padded`` says whether the masks of a pass hide anything. No row is several texts."""
    answers = {"fast_all": lambda _: not padded, "find_packed_sequence_indices": lambda _: None}
    asked = {name: getattr(masking_utils, name) for name in answers if hasattr(masking_utils, name)}
    try:
        for name in asked:
            setattr(masking_utils, name, answers[name])
        yield
    finally:
        for name, question in asked.items():
            setattr(masking_utils, name, question)
