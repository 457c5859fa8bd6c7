"""Floating-point operations of several responses to one prompt: the prompt read once, and once for every response.

The last line is of a pass over prompts and responses, as log-probabilities take it. There the engine repeats the prompt
in every row. The other number is that of one row with the prompt and all responses, under a mask.

``PYTHONPATH=. python tests/helpers/sampling_flops.py``: GPT-2's size, random weights.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.cost.gpt2_sizes import SIZES
from benchmarks.cost.lever_timing import model_of
from benchmarks.cost.machine_floor import flop_counter
from models.passes.forward import language_model_pass
from models.passes.repeated_prompts import every_copy_read
from models.passes.sampling import CachedDecoder, left_padded, sample_responses
from rlhf_core.types import Limits

CPU = torch.device("cpu")
PROMPT, RESPONSE, TIMES = 256, 48, 4


@dataclass(frozen=True)
class Flops:
    """Of the prefill alone, and of prefill and all sampled tokens."""

    prefill: int
    whole: int


def sampling_flops(model: PreTrainedModel, prompt: list[int], *, response: int, times: int) -> Flops:
    """What it takes to draw ``times`` responses of ``response`` tokens to a prompt."""
    prompts, lengths = [prompt] * times, torch.full((times,), response)
    uniforms = torch.rand(times, response, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    limits = Limits(min_lengths=lengths, max_lengths=lengths)
    settings: dict[str, Any] = {"eos_ids": (1,), "temperature": 1.0, "device": CPU}
    with torch.no_grad(), flop_counter() as prefill:
        CachedDecoder(model, room=lengths).start(*left_padded(prompts, CPU))
    with flop_counter() as whole:
        sample_responses(CachedDecoder(model, room=lengths), prompts, limits, uniforms, **settings)
    return Flops(prefill.get_total_flops(), whole.get_total_flops())


@torch.no_grad()
def pass_flops(model: PreTrainedModel, rows: int, columns: int, *, predictions: int) -> int:
    """What a pass over such a batch takes, with the head on so many positions."""
    inputs = {"input_ids": torch.full((rows, columns), 2), "use_cache": False}
    with flop_counter() as whole:
        language_model_pass(model, inputs, lambda hidden: hidden.flatten(0, 1)[:predictions])
    return whole.get_total_flops()


def main() -> None:
    """Print them."""
    torch.set_num_threads(1)
    model, prompt = model_of(**SIZES["gpt2"]), [2 + place % 1000 for place in range(PROMPT)]
    once = sampling_flops(model, prompt, response=RESPONSE, times=TIMES)
    with every_copy_read():
        each = sampling_flops(model, prompt, response=RESPONSE, times=TIMES)
    responses = TIMES * RESPONSE
    rows = pass_flops(model, TIMES, PROMPT + RESPONSE, predictions=responses)
    one_row = pass_flops(model, 1, PROMPT + responses, predictions=responses)
    for name, repeated, shared in (
        ("prefill", each.prefill, once.prefill),
        ("sampling", each.whole, once.whole),
        ("pass", rows, one_row),
    ):
        ratio = repeated / shared
        print(f"{name}: {repeated / 1e9:.1f} GFLOP with repeated prompts, {shared / 1e9:.1f} with one, {ratio:.2f} x")


if __name__ == "__main__":
    main()
