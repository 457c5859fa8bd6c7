"""Load-time check of a language model: every kind of pass a policy makes, against its plain forward pass."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from models.passes.context_length import context_length
from models.passes.forward import hiding_nothing, response_predictions
from models.passes.layout import PaddedRows
from models.passes.length_switches import NEAR, SWITCHES, beside_switches, past_switches, within_reach
from models.passes.rounding import rounds_coarsely
from models.passes.sampling import CachedDecoder, left_padded

ROUGHLY = 0.1
"""Nats by which log-probabilities may differ, on average over the vocabulary, where passes round to bfloat16."""


@torch.no_grad()
def check_language_model(lm: PreTrainedModel, vocab_size: int) -> int:
    """Run ragged batches through every kind of pass a policy makes and compare with the model's plain forward on each
    row alone; the size of the head's input.

    Catches architectures that see future tokens, ignore position ids under left padding, keep their cache elsewhere,
    compute logits from something other than their output embedding, still use dropout in train mode, or give a row
    other numbers in another batch: rows lie on both sides of the switches that the config names (see
    :mod:`models.passes.length_switches`).

    Raises:
        ValueError: naming the architecture, the pass, and the mean difference of log-probabilities in nats.
    """
    for lengths in beside_switches(lm, context_length(lm)):
        hidden = _check_passes(lm, _ragged(lengths, vocab_size), "")
    with within_reach(lm):
        past = (
            f" past its switches ({', '.join(SWITCHES)}, put at {NEAR} tokens; one beyond twice "
            "max_position_embeddings, which you may lower in its config.json, is never reached)"
        )
        _check_passes(lm, _ragged(past_switches(context_length(lm)), vocab_size), past)
    return hidden


@torch.no_grad()
def check_sampled_from(sampled: PreTrainedModel, lm: PreTrainedModel, vocab_size: int) -> None:
    """Compare the sampling pass of ``sampled``, which holds the weights of ``lm`` otherwise, with the plain forward
    pass of ``lm``.

    Raises:
        ValueError: they differ by more than rounding explains, in nats.
    """
    for lengths in beside_switches(lm, context_length(lm)):
        ids = _ragged(lengths, vocab_size)
        _, ends = _plain(lm, ids)
        _compare(sampled, "sampling pass through a copy of the weights", _sampled(sampled, ids), ends, ROUGHLY)


def _ragged(lengths: tuple[int, int], vocab_size: int) -> list[list[int]]:
    return [[(7 * i + 3 * row + 1) % vocab_size for i in range(length)] for row, length in enumerate(lengths)]


def _check_passes(lm: PreTrainedModel, ids: list[list[int]], where: str) -> int:
    lm.train(False)
    wanted, ends = _plain(lm, ids)
    evaluated, hidden = _evaluated(lm, ids)
    lm.train()
    trained, _ = _evaluated(lm, ids)
    lm.train(False)
    tolerance = ROUGHLY if rounds_coarsely(lm) else 1e-4
    _compare(lm, f"teacher-forced pass (right padding, head on response tokens){where}", evaluated, wanted, tolerance)
    _compare(lm, f"pass in train mode (dropout at 0){where}", trained, evaluated, 1e-5)
    _compare(lm, f"sampling pass (left padding, cache){where}", _sampled(lm, ids), ends, tolerance)
    return hidden


def _plain(lm: PreTrainedModel, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Logits of each row alone: those that predict every token but the first, and those of :func:`_sampled`."""
    rows = [hiding_nothing(torch.tensor([row], device=lm.device)) for row in ids]
    plain = [lm(**row, use_cache=False).logits[0] for row in rows]
    ends = torch.stack([plain[0][-2], plain[1][-2], plain[1][-1]])
    return torch.cat([logits[:-1] for logits in plain]), ends


def _evaluated(lm: PreTrainedModel, ids: list[list[int]]) -> tuple[Tensor, int]:
    """Logits that predict every token but the first of each row."""
    lengths = torch.tensor([len(row) for row in ids], device=lm.device)
    width = int(lengths.max())
    columns = torch.arange(width, device=lm.device)
    rows = PaddedRows(
        input_ids=torch.tensor([row + [0] * (width - len(row)) for row in ids], device=lm.device),
        attention_mask=columns < lengths[:, None],
        response_positions=columns[1:].expand(len(ids), -1),
        response_tokens=sum(map(len, ids)) - len(ids),
        longest=lengths,
    )
    predictions = response_predictions(lm, rows, rows.attention_mask[:, 1:])
    return predictions.logits, predictions.hidden.shape[-1]


def _sampled(lm: PreTrainedModel, ids: list[list[int]]) -> Tensor:
    """Logits at the last column but one of both rows, and, from a cached step of a copy of the second alone, its
    last."""
    prompts = [row[:-1] for row in (*ids, ids[1])]
    decoder = CachedDecoder(lm, room=torch.ones(len(prompts), dtype=torch.long))
    first = decoder.start(*left_padded(prompts, torch.device("cpu")))
    decoder.keep(torch.tensor([2]))
    return torch.cat([first[[0, 2]], decoder.advance(torch.tensor([ids[1][-1]], device=lm.device))])


def _compare(
    lm: PreTrainedModel,
    what: str,
    found: Float[Tensor, "token vocab"],
    wanted: Float[Tensor, "token vocab"],
    tol: float,
) -> None:
    if found.shape != wanted.shape:
        raise ValueError(f"{type(lm).__name__} cannot be a policy: its {what} gives logits {tuple(found.shape)}")
    gap = float((found.float().log_softmax(-1) - wanted.float().log_softmax(-1)).abs().mean())
    if not gap <= tol:
        raise ValueError(
            f"{type(lm).__name__} cannot be a policy: its {what} differs from its plain forward pass by {gap:.2g} nats "
            f"(mean over the vocabulary; allowed: {tol:.0e})"
        )
