"""The probe of a sequence classifier: altered responses, prefixes and embedding gradients, in micro-batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.classifier_head import Head, last_hidden, pooled_logits
from models.rows import Rows, right_padded
from rlhf_core.batching import micro_batches, row_batches
from rlhf_core.evidence import HiddenTap, PrefixScores
from rlhf_core.memory import TokenBudget, run_in_parts
from rlhf_core.probe import Ability, Baseline, Cost, PathPoint, Variants
from rlhf_core.types import Sequences

NULL_TOKENS = ("mask_token_id", "pad_token_id", "unk_token_id", "eos_token_id")


@dataclass(frozen=True, eq=False, kw_only=True)
class Judge:
    """The parts of a reward model that a probe runs."""

    model: PreTrainedModel
    head: Head
    scalar: Callable[[Float[Tensor, "row label"]], Float[Tensor, " row"]]
    """The score of logits, in raw score units."""
    null_id: int | None
    """The token that stands for nothing, where the tokenizer has one."""

    @property
    def name(self) -> str:
        """The model's class."""
        return type(self.model).__name__


def null_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that replaces a token whose absence is studied: the mask token, or else padding, unknown, EOS."""
    found = (getattr(tokenizer, name, None) for name in NULL_TOKENS)
    return next((token for token in found if token is not None), None)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ClassifierProbe:
    """A ``Probe`` (see rlhf_core.probe for the contract of each method) of one classifier on one batch."""

    judge: Judge
    sequences: Sequences
    budget: TokenBudget
    cost: Cost = field(default_factory=Cost)

    @torch.no_grad()
    def scores(self, variants: Variants) -> Float[Tensor, "batch variant"]:
        """Scores of altered responses, each different one once.

        Raises:
            ValueError: ``keep`` of another shape than (batch, variant, response), or no null token to replace with.
        """
        keep = self._checked(variants.keep)
        batch, number, _ = keep.shape
        row = torch.arange(batch, device=keep.device).repeat_interleave(number)
        # what stands on padding makes no difference
        flat = (keep | ~self.sequences.response_mask[:, None]).reshape(batch * number, -1)
        distinct, which = torch.unique(torch.cat([row[:, None], flat.long()], dim=1), dim=0, return_inverse=True)
        ids, mask = ALTER[variants.absent](self, distinct[:, 0], distinct[:, 1:].bool())
        return self._score_rows(ids, mask)[which].reshape(batch, number).to(keep.device)

    @torch.no_grad()
    def prefix_scores(self) -> Float[Tensor, "batch response"]:
        """r(x, y_<t), from one pass."""
        tap = PrefixScores()
        found = torch.zeros(self.sequences.response_ids.shape, device=self.sequences.response_ids.device)

        def measure_rows(rows: Int[Tensor, " row"]) -> None:
            inputs, mask = self._inputs(rows)
            hidden = last_hidden(self.judge.model, inputs.attention_mask, input_ids=inputs.input_ids)
            answer = read_states(tap, hidden, inputs.response_positions, mask, self.judge)
            found[rows, : answer.shape[1]] = answer.to(found)

        self._run(measure_rows, "prefix scores")
        return found

    def embedding_gradients(self, alpha: float, baseline: Baseline) -> PathPoint:
        """Score and contributions at e' + alpha (e − e'), from one forward and one backward pass.

        Raises:
            ValueError: no null token to take as the baseline.
        """
        shape, device = self.sequences.response_ids.shape, self.sequences.response_ids.device
        dtype = torch.promote_types(self.judge.model.dtype, torch.float32)
        scores = torch.zeros(shape[0], device=device, dtype=dtype)
        contributions = torch.zeros(shape, device=device, dtype=dtype)

        def measure_rows(rows: Int[Tensor, " row"]) -> None:
            inputs, mask = self._inputs(rows)
            points, found = self._gradient(inputs, mask, alpha, self._baseline(baseline))
            scores[rows], contributions[rows, : found.shape[1]] = points.to(scores), found.to(scores)

        self._run(measure_rows, "embedding gradients")
        self.cost.backwards += len(self.sequences)
        return PathPoint(scores=scores, contributions=contributions)

    def _gradient(
        self, inputs: Rows, mask: Bool[Tensor, "batch response"], alpha: float, baseline: Float[Tensor, " hidden"]
    ) -> tuple[Tensor, Tensor]:
        positions = inputs.response_positions
        row = torch.arange(len(positions), device=positions.device)[:, None].expand_as(positions)
        with torch.no_grad():
            embedded = self.judge.model.get_input_embeddings()(inputs.input_ids)
            difference = torch.where(mask[..., None], embedded[row, positions] - baseline, 0)
        with torch.enable_grad():
            shift = ((alpha - 1) * difference).requires_grad_()
            moved = embedded.index_put((row[mask], positions[mask]), shift[mask], accumulate=True)
            hidden = last_hidden(self.judge.model, inputs.attention_mask, inputs_embeds=moved)
            scores = self.judge.scalar(pooled_logits(self.judge.head, hidden, inputs.attention_mask))
            (gradient,) = torch.autograd.grad(scores.sum(), shift)
        return scores.detach(), (gradient * difference).sum(-1)

    def _baseline(self, baseline: Baseline) -> Float[Tensor, " hidden"]:
        embedding = self.judge.model.get_input_embeddings()
        device = self.judge.model.device
        if baseline == "zero":
            return torch.zeros_like(embedding(torch.zeros(1, dtype=torch.long, device=device))[0])
        return cast(Tensor, embedding(torch.tensor([self._null_id()], device=device))[0]).detach()

    def _inputs(self, rows: Int[Tensor, " row"]) -> tuple[Rows, Bool[Tensor, "batch response"]]:
        """Model input of some rows, on the model's device, and where their response tokens are real."""
        part, device = self.sequences.select(rows), self.judge.model.device
        inputs = right_padded(part)
        moved = Rows(
            input_ids=inputs.input_ids.to(device),
            attention_mask=inputs.attention_mask.to(device),
            response_positions=inputs.response_positions.to(device),
        )
        return moved, part.response_mask.to(device)

    def _run(self, measure_rows: Callable[[Int[Tensor, " row"]], None], phase: str) -> None:
        lengths = self.sequences.lengths
        with self.cost.timed():
            run_in_parts(measure_rows, partial(micro_batches, self.sequences), lengths, self.budget, phase=phase)
        self.cost.forwards += len(lengths)
        self.cost.tokens += int(lengths.sum())

    def _score_rows(
        self, ids: Int[Tensor, "row position"], mask: Bool[Tensor, "row position"]
    ) -> Float[Tensor, " row"]:
        """Scores of whole right-padded rows."""
        lengths, device = mask.sum(1), self.judge.model.device
        dtype = torch.promote_types(self.judge.model.dtype, torch.float32)
        scores = torch.zeros(len(ids), device=ids.device, dtype=dtype)

        def measure_rows(rows: Int[Tensor, " row"]) -> None:
            width = int(lengths[rows].max())
            real = mask[rows, :width].to(device)
            hidden = last_hidden(self.judge.model, real, input_ids=ids[rows, :width].to(device))
            scores[rows] = self.judge.scalar(pooled_logits(self.judge.head, hidden, real)).to(scores)

        def cut(tokens: int) -> Iterator[Int[Tensor, " row"]]:
            return row_batches(lengths, tokens)

        with self.cost.timed():
            run_in_parts(measure_rows, cut, lengths, self.budget, phase="scoring variants")
        self.cost.forwards += len(ids)
        self.cost.tokens += int(lengths.sum())
        return scores

    def _checked(self, keep: Tensor) -> Bool[Tensor, "batch variant response"]:
        batch, response = self.sequences.response_ids.shape
        if keep.ndim != 3 or (keep.shape[0], keep.shape[2]) != (batch, response) or keep.shape[1] < 1:
            raise ValueError(f"variants of shape {tuple(keep.shape)} for {batch} responses of {response} tokens")
        return keep.to(self.sequences.response_ids.device)

    def _null_id(self) -> int:
        if self.judge.null_id is None:
            raise ValueError(f"{self.judge.name}: its tokenizer has no token that stands for nothing")
        return self.judge.null_id

    def _delete(self, row: Int[Tensor, " row"], keep: Bool[Tensor, "row response"]) -> tuple[Tensor, Tensor]:
        """Rows without the tokens that are not kept, closed up."""
        ids, stands = self._standing(row, keep)
        order = torch.argsort(~stands, dim=1, stable=True)
        mask = torch.arange(ids.shape[1], device=ids.device) < stands.sum(1, keepdim=True)
        return torch.where(mask, ids.gather(1, order), 0), mask

    def _replace(self, row: Int[Tensor, " row"], keep: Bool[Tensor, "row response"]) -> tuple[Tensor, Tensor]:
        """Rows with the null token in the place of those that are not kept."""
        ids, stands = self._standing(row, keep)
        mask = right_padded(self.sequences).attention_mask[row]
        return torch.where(stands, ids, torch.where(mask, self._null_id(), 0)), mask

    def _standing(self, row: Int[Tensor, " row"], keep: Bool[Tensor, "row response"]) -> tuple[Tensor, Tensor]:
        """Whole rows, and which of their tokens stand: all of the prompt, and what is kept of the response."""
        inputs, real = right_padded(self.sequences), self.sequences.response_mask[row]
        stands, positions = inputs.attention_mask[row].clone(), inputs.response_positions[row]
        which = torch.arange(len(row), device=row.device)[:, None].expand_as(positions)
        stands[which[real], positions[real]] = keep[real]
        return inputs.input_ids[row], stands


ALTER: Mapping[Ability, Callable[[ClassifierProbe, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "delete": ClassifierProbe._delete,
    "replace": ClassifierProbe._replace,
}


def read_states(
    tap: HiddenTap,
    hidden: Float[Tensor, "batch position hidden"],
    response_positions: Int[Tensor, "batch response"],
    response_mask: Bool[Tensor, "batch response"],
    judge: Judge,
) -> Float[Tensor, "batch response ..."]:
    """``tap`` answered from the states before each response token; 0 on padding."""
    row = torch.arange(len(hidden), device=hidden.device)[:, None]
    before = hidden[row, (response_positions - 1).clamp(min=0)]

    def score(states: Float[Tensor, "batch response hidden"]) -> Float[Tensor, "batch response"]:
        return judge.scalar(judge.head.apply(states.flatten(0, 1))).reshape(states.shape[:2])

    answer = tap.read(before, score)
    outside = ~response_mask.reshape(*response_mask.shape, *(1 for _ in answer.shape[2:]))
    return answer.masked_fill(outside, 0)
