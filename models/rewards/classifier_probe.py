"""The probe of a sequence classifier: altered responses, prefixes and embedding gradients, in micro-batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar, cast, final

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.attention.maps import attention_maps, map_gradients
from models.passes.layout import PaddedRows, right_padded
from models.rewards.classifier import Classifier, Setting, require_null
from models.rewards.classifier_head import last_hidden
from models.rewards.pass_budgets import PassBudgets
from rlhf_core.batching import TokenBudget, micro_batches, row_batches, run_in_parts
from rlhf_core.evidence import Layout, PrefixScores
from rlhf_core.probe import Absence, AttentionMaps, Baseline, Cost, MapGradients, PathPoint, Variants
from rlhf_core.types import Sequences

Part = TypeVar("Part")
GONE: Mapping[Absence, Callable[[Bool[Tensor, "row response"]], Int[Tensor, " row"]]] = {
    "delete": lambda keep: (~keep).sum(1),
    "replace": lambda keep: torch.zeros_like(keep[:, 0], dtype=torch.long),
}


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ClassifierProbe:
    """A ``Probe`` (see rlhf_core.probe for the contract of each method) of one classifier on one batch."""

    classifier: Classifier
    sequences: Sequences
    budgets: PassBudgets
    cost: Cost = field(default_factory=Cost)

    def select(self, rows: Int[Tensor, " row"]) -> "ClassifierProbe":
        """A probe of the same model for some of the rows."""
        return replace(self, sequences=self.sequences.select(rows))

    @torch.no_grad()
    def scores(self, variants: Variants) -> Float[Tensor, "batch variant"]:
        """Scores of altered responses; equal ones are scored once.

        Raises:
            ValueError: ``keep`` of another shape than (batch, variant, response), or no null token to replace with.
        """
        keep = self._checked(variants.keep)
        batch, number, _ = keep.shape
        row = torch.arange(batch, device=keep.device).repeat_interleave(number)
        # values on padding make no difference
        standing = keep | ~self.sequences.response_mask[:, None]
        flat = rearrange(standing, "batch variant response -> (batch variant) response")
        distinct, which = torch.unique(torch.cat([row[:, None], flat.long()], dim=1), dim=0, return_inverse=True)
        scores = self._score_altered(distinct[:, 0], distinct[:, 1:].bool(), variants.absent)
        found: Tensor = rearrange(scores[which], "(batch variant) -> batch variant", variant=number)
        return found.to(keep.device)

    @torch.no_grad()
    def prefix_scores(self) -> Float[Tensor, "batch response"]:
        """r(x, y_<t), from one pass."""
        tap = PrefixScores()
        found = torch.zeros(self.sequences.response_ids.shape, device=self.sequences.response_ids.device)

        def measure_rows(rows: Int[Tensor, " row"]) -> None:
            inputs, mask = self._inputs(rows)
            hidden = last_hidden(self.classifier.model, inputs.attention_mask, input_ids=inputs.input_ids)
            answer = self.classifier.read_states(tap, hidden, inputs.input_ids, inputs.response_positions, mask)
            found[rows, : answer.shape[1]] = answer.to(found)

        self._run(measure_rows, "prefix scores", self.budgets.scoring)
        return found

    def embedding_gradients(self, alpha: float, baseline: Baseline) -> PathPoint:
        """Score and contributions at e' + alpha (e − e'), from one forward and one backward pass.

        Raises:
            ValueError: no null token to take as the baseline.
        """
        shape, device = self.sequences.response_ids.shape, self.sequences.response_ids.device
        dtype = torch.promote_types(self.classifier.model.dtype, torch.float32)
        scores = torch.zeros(shape[0], device=device, dtype=dtype)
        contributions = torch.zeros(shape, device=device, dtype=dtype)

        def measure_rows(rows: Int[Tensor, " row"]) -> None:
            inputs, mask = self._inputs(rows)
            points, found = self._gradient(inputs, mask, alpha, self._baseline(baseline))
            scores[rows], contributions[rows, : found.shape[1]] = points.to(scores), found.to(scores)

        self._run(measure_rows, "embedding gradients", self.budgets.gradients)
        self.cost.backwards += len(self.sequences)
        return PathPoint(scores=scores, contributions=contributions)

    def attention(
        self, reduce: Callable[[AttentionMaps], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """``reduce`` applied to the maps of one pass under eager attention.

        Raises:
            UnsupportedAttention: the model returns no maps.
        """

        def read(inputs: PaddedRows, mask: Bool[Tensor, "batch response"]) -> Float[Tensor, "batch response ..."]:
            weights = attention_maps(self.classifier.model, inputs.input_ids, inputs.attention_mask)
            return reduce(AttentionMaps(weights=weights, layout=self._layout(inputs, mask)))

        return self._reduced(read, "attention maps")

    def attention_gradients(
        self, reduce: Callable[[MapGradients], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """``reduce`` applied to maps and gradients of one forward and one backward pass under eager attention.

        Raises:
            UnsupportedAttention: the model returns no maps, or maps that its score does not depend on.
        """

        def read(inputs: PaddedRows, mask: Bool[Tensor, "batch response"]) -> Float[Tensor, "batch response ..."]:
            read_part, real = self._read_part(inputs), inputs.attention_mask
            weights, gradients = map_gradients(
                self.classifier.model, inputs.input_ids, real, lambda hidden: self.classifier.scores(hidden, read_part)
            )
            maps = AttentionMaps(weights=weights, layout=self._layout(inputs, mask))
            return reduce(MapGradients(maps=maps, gradients=gradients))

        found = self._reduced(read, "attention gradients")
        self.cost.backwards += len(self.sequences)
        return found

    def _layout(self, inputs: PaddedRows, mask: Bool[Tensor, "batch response"]) -> Layout:
        return Layout(
            response_positions=inputs.response_positions,
            response_mask=mask,
            read_positions=self.classifier.head.positions(self._read_part(inputs)),
        )

    def _read_part(self, inputs: PaddedRows) -> Bool[Tensor, "batch position"]:
        return self.classifier.head.read_part(inputs.input_ids, inputs.attention_mask)

    @torch.no_grad()
    def _reduced(
        self, read: Callable[[PaddedRows, Bool[Tensor, "batch response"]], Tensor], phase: str
    ) -> Float[Tensor, "batch response ..."]:
        """One answer of the micro-batches' answers, 0 on padding."""

        def measure_rows(rows: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
            return rows, read(*self._inputs(rows))

        parts = self._run(measure_rows, phase, self.budgets.maps)
        mask = self.sequences.response_mask
        found = parts[0][1].new_zeros(*mask.shape, *parts[0][1].shape[2:], device=mask.device)
        for rows, answer in parts:
            found[rows, : answer.shape[1]] = answer.to(found)
        return found.masked_fill(~mask.reshape(*mask.shape, *(1 for _ in found.shape[2:])), 0)

    def _gradient(
        self, inputs: PaddedRows, mask: Bool[Tensor, "batch response"], alpha: float, baseline: Float[Tensor, " hidden"]
    ) -> tuple[Tensor, Tensor]:
        positions = inputs.response_positions
        row = torch.arange(len(positions), device=positions.device)[:, None].expand_as(positions)
        with torch.no_grad():
            embedded = self.classifier.model.get_input_embeddings()(inputs.input_ids)
            difference = torch.where(mask[..., None], embedded[row, positions] - baseline, 0)
        with torch.enable_grad():
            shift = ((alpha - 1) * difference).requires_grad_()
            moved = embedded.index_put((row[mask], positions[mask]), shift[mask], accumulate=True)
            hidden = last_hidden(self.classifier.model, inputs.attention_mask, inputs_embeds=moved)
            scores = self.classifier.scores(hidden, self._read_part(inputs))
            (gradient,) = torch.autograd.grad(scores.sum(), shift)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        return scores.detach(), (gradient.to(wide) * difference.to(wide)).sum(-1)

    def _baseline(self, baseline: Baseline) -> Float[Tensor, " hidden"]:
        embedding = self.classifier.model.get_input_embeddings()
        device = self.classifier.model.device
        if baseline == "zero":
            return torch.zeros_like(embedding(torch.zeros(1, dtype=torch.long, device=device))[0])
        return cast(Tensor, embedding(torch.tensor([self._null_id("baseline")], device=device))[0]).detach()

    def _inputs(self, rows: Int[Tensor, " row"]) -> tuple[PaddedRows, Bool[Tensor, "batch response"]]:
        """Model input of some rows, on the model's device, and where their response tokens are real."""
        part, device = self.sequences.select(rows), self.classifier.model.device
        inputs = right_padded(part)
        moved = PaddedRows(
            input_ids=inputs.input_ids.to(device),
            attention_mask=inputs.attention_mask.to(device),
            response_positions=inputs.response_positions.to(device),
            response_tokens=inputs.response_tokens,
            longest=inputs.longest.to(device),
        )
        return moved, part.response_mask.to(device)

    def _run(self, measure_rows: Callable[[Int[Tensor, " row"]], Part], phase: str, budget: TokenBudget) -> list[Part]:
        lengths = self.sequences.lengths
        with self.cost.timed():
            cut = partial(micro_batches, self.sequences)
            parts = run_in_parts(measure_rows, cut, lengths, budget, phase=phase)
        self.cost.forwards += len(lengths)
        self.cost.tokens += int(lengths.sum())
        return parts

    def _score_altered(
        self, row: Int[Tensor, " row"], keep: Bool[Tensor, "row response"], absent: Absence
    ) -> Float[Tensor, " row"]:
        """Scores of altered rows, padding counted as kept. A part's rows exist while it is scored only: there may be
        thousands of variants of every response."""
        inputs, device = right_padded(self.sequences), self.classifier.model.device
        lengths = self.sequences.lengths[row] - GONE[absent](keep)
        dtype = torch.promote_types(self.classifier.model.dtype, torch.float32)
        scores = torch.zeros(len(row), device=row.device, dtype=dtype)

        def measure_rows(rows: Int[Tensor, " row"]) -> None:
            ids, mask = ALTER[absent](self, inputs, row[rows], keep[rows])
            width = int(lengths[rows].max())
            real = mask[:, :width].to(device)
            input_ids = ids[:, :width].to(device)
            hidden = last_hidden(self.classifier.model, real, input_ids=input_ids)
            scores[rows] = self.classifier.scores(hidden, self.classifier.head.read_part(input_ids, real)).to(scores)

        def cut(tokens: int) -> Iterator[Int[Tensor, " row"]]:
            return row_batches(lengths, tokens)

        with self.cost.timed():
            run_in_parts(measure_rows, cut, lengths, self.budgets.scoring, phase="scoring variants")
        self.cost.forwards += len(row)
        self.cost.tokens += int(lengths.sum())
        return scores

    def _checked(self, keep: Tensor) -> Bool[Tensor, "batch variant response"]:
        batch, response = self.sequences.response_ids.shape
        if keep.ndim != 3 or (keep.shape[0], keep.shape[2]) != (batch, response) or keep.shape[1] < 1:
            raise ValueError(f"variants of shape {tuple(keep.shape)} for {batch} responses of {response} tokens")
        return keep.to(self.sequences.response_ids.device)

    def _null_id(self, setting: Setting) -> int:
        return require_null(self.classifier.name, self.classifier.null_id, setting)

    def _delete(
        self, inputs: PaddedRows, row: Int[Tensor, " row"], keep: Bool[Tensor, "row response"]
    ) -> tuple[Tensor, Tensor]:
        """Rows without the tokens that are not kept, closed up."""
        ids, stands = self._standing(inputs, row, keep)
        order = torch.argsort(~stands, dim=1, stable=True)
        mask = torch.arange(ids.shape[1], device=ids.device) < stands.sum(1, keepdim=True)
        return torch.where(mask, ids.gather(1, order), 0), mask

    def _replace(
        self, inputs: PaddedRows, row: Int[Tensor, " row"], keep: Bool[Tensor, "row response"]
    ) -> tuple[Tensor, Tensor]:
        """Rows with the null token in the place of those that are not kept."""
        ids, stands = self._standing(inputs, row, keep)
        mask = inputs.attention_mask[row]
        return torch.where(stands, ids, torch.where(mask, self._null_id("absent"), 0)), mask

    def _standing(
        self, inputs: PaddedRows, row: Int[Tensor, " row"], keep: Bool[Tensor, "row response"]
    ) -> tuple[Tensor, Tensor]:
        """Whole rows, and which of their tokens are kept: all of the prompt, and some of the response."""
        real = self.sequences.response_mask[row]
        stands, positions = inputs.attention_mask[row].clone(), inputs.response_positions[row]
        which = torch.arange(len(row), device=row.device)[:, None].expand_as(positions)
        stands[which[real], positions[real]] = keep[real]
        return inputs.input_ids[row], stands


ALTER: Mapping[Absence, Callable[[ClassifierProbe, PaddedRows, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "delete": ClassifierProbe._delete,
    "replace": ClassifierProbe._replace,
}
