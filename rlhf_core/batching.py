"""Cut rows into batches within a budget of tokens. If memory runs out, repeat the work in smaller parts, with the same
result."""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.config import PPOConfig
from rlhf_core.types import Sequences

# A micro-batch takes a row as long as it pads it by no more than a quarter of the longest row, or is still small.
SIMILAR = 0.75
SMALL = 1 / 8
Part = TypeVar("Part")


# Where torch has no exception for it, its words: its CPU allocator's on Linux and on Windows, cuBLAS's, those of
# memory asked of CUDA directly, and C++'s own.
SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "std::bad_alloc",
)


def micro_batches(sequences: Sequences, token_budget: int) -> Iterator[Int[Tensor, " row"]]:
    """Row indices of each micro-batch, longest rows first, every row in exactly one.

    A micro-batch of n rows costs n x (its longest prompt + response) tokens, padding included, and never more than
    ``token_budget`` unless it is a single row. It ends early, at a row below three quarters of its longest, once it
    holds an eighth of the budget: padding costs as much as text. Longest first, so that running out of memory happens
    at once.
    """
    lengths = sequences.counts.total
    order = torch.argsort(lengths, descending=True, stable=True)
    ordered, start = lengths[order].tolist(), 0
    while start < len(ordered):
        longest = ordered[start]
        similar = sum(length >= SIMILAR * longest for length in ordered[start:])
        enough = -int(-SMALL * token_budget // longest)
        rows = max(1, min(token_budget // longest, max(similar, enough)))
        yield order[start : start + rows]
        start += rows


def row_batches(lengths: Int[Tensor, " row"], token_budget: int) -> Iterator[Int[Tensor, " row"]]:
    """Row indices, longest first, as many at a time as n x longest tokens within ``token_budget`` allow, and at least
    one: for rows that leave their batch when they are done, so that similar lengths save nothing."""
    order = torch.argsort(lengths, descending=True, stable=True)
    start = 0
    while start < len(order):
        rows = max(1, token_budget // int(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


class SmallerParts(RuntimeWarning):
    """Memory ran out; the same work continues in smaller parts."""


@dataclass(kw_only=True)
class TokenBudget:
    """How many tokens one pass may hold, padding included: the value of ``setting``, or less after memory has run
    out."""

    setting: str
    tokens: int
    lowered: bool = False
    """Whether memory ran out with this budget."""


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The two budgets of a run: one for sampling, one for every other pass of the policy."""

    sampling: TokenBudget
    micro_batch: TokenBudget

    @classmethod
    def of(cls, config: PPOConfig) -> "Budgets":
        """The budgets that the config sets."""
        return cls(
            sampling=TokenBudget(setting="PPOConfig.sampling_tokens", tokens=config.sampling_tokens),
            micro_batch=TokenBudget(setting="PPOConfig.micro_batch_tokens", tokens=config.micro_batch_tokens),
        )

    def state(self) -> dict[str, int]:
        """The budgets that were lowered when memory ran out. A resumed run needs them to cut, and so to round, the same
        way."""
        held = {"sampling": self.sampling, "micro_batch": self.micro_batch}
        return {name: budget.tokens for name, budget in held.items() if budget.lowered}

    def restore(self, state: Mapping[str, int]) -> None:
        """Lower the budgets again, unless the config now sets lower ones."""
        for name, budget in (("sampling", self.sampling), ("micro_batch", self.micro_batch)):
            if state.get(name, budget.tokens) < budget.tokens:
                budget.tokens, budget.lowered = state[name], True


def run_in_parts(
    run: Callable[[Int[Tensor, " row"]], Part],
    cut: Callable[[int], Iterable[Int[Tensor, " row"]]],
    lengths: Int[Tensor, " row"],
    budget: TokenBudget,
    *,
    phase: str,
    begin: Callable[[], None] = lambda: None,
) -> list[Part]:
    """Apply ``run`` to each part into which ``cut`` divides rows of ``lengths`` tokens under the budget.

    If a part runs out of memory, the budget falls to half of what that part held and stays there, a warning says so,
    and all parts are cut and run again, after ``begin``. The result must not depend on how rows are cut.

    Raises:
        MemoryError: a part of a single row ran out of memory.
    """
    tokens = lengths.tolist()  # here, as a full device may not even index them
    while True:
        begin()
        done: list[Part] = []
        for rows in cut(budget.tokens):
            try:
                done.append(run(rows))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                held = [tokens[row] for row in rows.tolist()]
                if len(held) == 1:
                    raise MemoryError(_too_long(phase, *held)) from error
                break
        else:
            return done
            # After the handler: its error kept everything alive that the failed pass had allocated.
        done.clear()
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use
        _shrink(budget, len(held), max(held), phase)


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out, on any device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def _shrink(budget: TokenBudget, rows: int, longest: int, phase: str) -> None:
    before, budget.tokens, budget.lowered = budget.tokens, rows * longest // 2, True
    warnings.warn(
        f"{phase}: out of memory with {rows} rows of up to {longest} tokens in one pass; repeating it with at most "
        f"{budget.tokens} tokens in a pass (so far {before}), and so for the rest of the run. Results stay the same; "
        f"set {budget.setting} to {budget.tokens} next time",
        SmallerParts,
        stacklevel=3,
    )


def _too_long(phase: str, tokens: int) -> str:
    return (
        f"{phase}: out of memory with a single row of {tokens} tokens, prompt and response, in the pass, which cannot "
        "be made smaller. Lower PPOConfig.max_length or shorten the prompts; load the models with four_bit=True or "
        'dtype="bfloat16", the policy with lora or gradient_checkpointing=True; or free memory that others hold'
    )
