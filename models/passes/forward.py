"""One forward pass of any transformers language model, with its head applied only where a prediction is wanted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from models.passes.layout import PaddedRows, token_places
from models.passes.padding_known import padding_known
from models.passes.rotary import grows_to

Select = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelPass:
    """Logits and head inputs (the last hidden state) of the selected positions, and the model's whole output."""

    logits: Float[Tensor, "... vocab"]
    hidden: Float[Tensor, "... hidden"]
    raw: Any


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """What predicts each response token, row after row, padding left out."""

    logits: Float[Tensor, "token vocab"]
    hidden: Float[Tensor, "token hidden"]


def language_model_pass(lm: PreTrainedModel, inputs: Mapping[str, Any], select: Select) -> ModelPass:
    """Run the model's own forward, but hand its output embedding ``select(hidden)`` instead of every position.

    Whatever the model does to logits afterwards (soft-capping, scaling) is thereby kept, and no logits of prompt
    tokens or padding are ever computed.

    Raises:
        ValueError: the output embedding does not exist or is not called exactly once.
    """
    head: torch.nn.Module | None = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise ValueError(f"{type(lm).__name__} has no output embedding, so it is not a language model")
    taken: list[Tensor] = []

    def narrow(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        taken.append(select(arguments[0]))
        return (taken[-1], *arguments[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        output = lm(**inputs, return_dict=True)
    finally:
        handle.remove()
    if len(taken) != 1:
        raise ValueError(
            f"{type(lm).__name__} called its output embedding {len(taken)} times in a forward pass, not once"
        )
    return ModelPass(logits=output.logits, hidden=taken[0], raw=output)


def response_hidden(
    lm: PreTrainedModel, rows: PaddedRows, response_mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "token hidden"]:
    """The last hidden state that predicts each response token, from the pass of :func:`response_predictions` without
    the head."""
    with grows_to(rows.longest), padding_known(False):
        output = lm.base_model(**hiding_nothing(rows.input_ids), use_cache=False, return_dict=True)
    hidden: Tensor = output.last_hidden_state[_predicting(rows, response_mask)]
    return hidden


@torch.no_grad()
def head_ends_it(lm: PreTrainedModel) -> bool:
    """Whether logits are the output embedding of the trunk's last hidden state, with nothing done before or after
    (a projection, a cast, scaling, soft-capping)."""
    ids = torch.arange(2, device=lm.device)[None]
    output = lm.base_model(**hiding_nothing(ids), use_cache=False, return_dict=True)
    hidden, taken = getattr(output, "last_hidden_state", None), []
    head: Any = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    handle = head.register_forward_hook(lambda _, inputs, logits: taken.append((inputs[0], logits)))
    try:
        logits = lm(**hiding_nothing(ids), use_cache=False, return_dict=True).logits
    finally:
        handle.remove()
    if hidden is None or len(taken) != 1:
        return False
    return all(
        mine.dtype == theirs.dtype and torch.equal(mine, theirs)
        for mine, theirs in ((hidden, taken[0][0]), (logits, taken[0][1]))
    )


def response_predictions(
    lm: PreTrainedModel, rows: PaddedRows, response_mask: Bool[Tensor, "batch response"]
) -> Predictions:
    """Teacher-forced pass over right-padded rows, none of it hidden: a causal model never sees padding on its right."""
    where = _predicting(rows, response_mask)
    inputs = {**hiding_nothing(rows.input_ids), "use_cache": False}
    with grows_to(rows.longest), padding_known(False):
        output = language_model_pass(lm, inputs, lambda hidden: hidden[where][None])
    return Predictions(logits=output.logits[0], hidden=output.hidden[0])


def hiding_nothing(input_ids: Int[Tensor, "row position"]) -> dict[str, Tensor]:
    """``input_ids`` with a mask that hides none of them: without any mask, transformers warns wherever a row begins or
    ends with the pad token, which is EOS for many a policy."""
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _predicting(rows: PaddedRows, response_mask: Bool[Tensor, "batch response"]) -> tuple[Tensor, Tensor]:
    """Row and column of the position that predicts each response token."""
    row, step = token_places(response_mask, rows.response_tokens)
    return row, rows.response_positions[row, step] - 1
