"""Process reward models: token classifiers that score the steps of a response, each at a token that marks its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from models.passes.cache import without_cache
from models.passes.context_length import context_length
from models.passes.rotary import read_rows_alone
from models.passes.rounding import rounds_coarsely
from models.rewards.classifier_head import require_same_alone, why_later_tokens_count
from models.rewards.score_kinds import SEPARATE, Label, Score, label_index, listed_labels
from models.rewards.steps import EARNED, Aggregate, cut_steps
from models.texts.prompt_encoding import prompt_problems
from rlhf_core.batching import TokenBudget, row_batches, run_in_parts
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.names import nearest
from rlhf_core.prompts import listed
from rlhf_core.scorers.callables import texts
from rlhf_core.scorers.token_scorer import score_parts, token_scorer_why_not, token_spans
from rlhf_core.step_guard import UnusableRollout
from rlhf_core.types import Scored, Sequences

StepScore = Literal["probability", "log_odds"]
"""What a step's score is: the probability that it is good, between 0 and 1, or its log-odds, log p / (1 − p)."""
PAIRS = (["label_0", "label_1"], ["negative", "positive"])
"""Names of two labels of which the second means a good step: those of who names none, as TRL's PRMTrainer, and plain
words."""


@dataclass(frozen=True, kw_only=True)
class MarkedRow:
    """What the model reads of a response: ``ids``, and of each step the column of its marker, and the response token
    at which it ends."""

    ids: list[int]
    markers: list[int]
    ends: list[int]


@final
class ProcessReward:
    """A token classifier, ``model``, with its ``tokenizer`` as a scorer of steps: frozen for good, in eval mode. It
    answers ``OwnTokenRewards``, so the method ``OwnRewards`` puts credit where the model saw it.

    ``separator`` parts the text of a response into steps; the default, a line's end, is that of TRL's PRMTrainer.
    ``marker`` is the text that was written after each step where the model was trained, and at whose last token it is
    read; None: the separator. (The Qwen2.5-Math models were trained with steps parted by an empty line and with the
    marker ``<extra_0>``.) The model reads the prompt's ids as the policy does, then each step, encoded by itself, and
    its marker. EOS is left out. So policy and model must share a tokenizer. PRMTrainer labels the last token of the
    separator that it appends to every step, and puts BOS before the prompt if the tokenizer has one; here BOS stands
    there only if the prompt has it.

    ``score`` of a step: "probability" that it is good, or its "log_odds". ``label`` means a good step, a name or index
    of the configuration's ``id2label``; where there are two and nobody named them, it is the second, as PRMTrainer
    trains it. Of a head of one label, its logit is the log-odds.

    ``aggregate``, "sum", "mean", "min" or "last", makes the response's score of the steps' scores, and says what each
    step earns of it (see ``models.rewards.steps``). A step's part stands at the token that ends its separator; that of
    a last step without one, at the response's last token. A response without a step scores 0.

    ``micro_batch_tokens``: tokens of one pass, padding included.

    Raises:
        ValueError: an unknown ``score`` or ``aggregate``, a separator that is empty, a marker without a token, several
            labels of which none is named, a model that is not causal, or one that reads a row by its company.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        separator: str = "\n",
        marker: str | None = None,
        score: StepScore = "probability",
        label: Label | None = None,
        aggregate: Aggregate = "sum",
        micro_batch_tokens: int = 4096,
    ) -> None:
        require_step_settings(separator, score, aggregate, micro_batch_tokens)
        self.model, self.tokenizer, self.name = model, tokenizer, type(model).__name__
        self.separator, self.marker = separator, separator if marker is None else marker
        self.kind, self.aggregate = score, aggregate
        self._score = step_score(self.name, model.config, label)
        self._marker_ids = marker_ids(tokenizer, self.marker, self.name)
        self._budget = TokenBudget(setting="the process reward model's micro_batch_tokens", tokens=micro_batch_tokens)
        nn.Module.eval(model).requires_grad_(False)
        read_rows_alone(model)
        if reason := why_later_tokens_count(model):
            raise ValueError(f"{self.name} cannot score steps as they are written: {reason}")
        some = [token % self.vocab_size for token in range(7)]
        require_same_alone(model, partial(_last_logits, model), some, 5e-2 if rounds_coarsely(model) else 1e-4)

    @property
    def identity(self) -> Mapping[str, object]:
        """Settings that decide its scores."""
        steps = {"separator": self.separator, "marker": self.marker, "aggregate": self.aggregate}
        held = {"dtype": self.model.dtype, "four_bit": bool(getattr(self.model, "is_quantized", False))}
        return {"model": self.name, "score": self._score_in_words, **steps, **held}

    @property
    def _score_in_words(self) -> str:
        return self.kind if self._score.label < 0 else f"{self.kind} of label {self._score.label}"

    def __repr__(self) -> str:
        return (
            f"ProcessReward({self.name}, score={self._score_in_words}, aggregate={self.aggregate}, "
            f"separator={self.separator!r}, marker={self.marker!r})"
        )

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of a pass at most, padding included; less than was set once memory has run out."""
        return self._budget.tokens

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table: every token id must be below."""
        return int(cast(nn.Embedding, self.model.get_input_embeddings()).weight.shape[0])

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Which token each id stands for."""
        tokens: dict[str, int] = self.tokenizer.get_vocab()
        return tokens

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """Raise ValueError, listing every bad row of ``prompts``: empty, ids outside the vocabulary, no room in the
        context for ``max_length`` tokens and a marker. A response of many steps may take more, which scoring finds
        out."""
        lengths = [max_length + len(self._marker_ids)] * len(prompts)
        context = context_length(self.model)
        problems = list(prompt_problems(prompts, lengths, vocab_size=self.vocab_size, context=context))
        if problems:
            raise ValueError(f"prompts that {self.name} cannot score: {listed(problems)}")

    def provides(self, request: EvidenceRequest) -> bool:
        """Whether ``score`` can answer ``request``."""
        return not self.why_not(request)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why ``request`` cannot be answered, in words; empty where it can."""
        return token_scorer_why_not(request)

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """The score of each response, and what of it each token has where that is asked for; raises as ``rewards``
        does, and ValueError for another need."""
        return score_parts(self, sequences, needs)

    @torch.no_grad()
    def rewards(self, sequences: Sequences) -> Float[Tensor, "batch response"]:
        """What each response token of ``sequences`` earned, (batch, response) in float64: 0 but where a step ends.

        Raises:
            MemoryError: a single row ran out of memory.
            UnusableRollout: responses that take more tokens, with their markers, than the context holds.
            ValueError: a prompt or step with a token that the model has no embedding for.
        """
        rows = self._marked(sequences)
        self._require_readable(rows)
        scores = self._step_scores(rows)
        rewards = torch.zeros(sequences.response_mask.shape, dtype=torch.float64)
        for row, (marked, of_steps) in enumerate(zip(rows, scores, strict=True)):
            if marked.ends:
                earned = EARNED[self.aggregate](of_steps.double())
                rewards[row].index_add_(0, torch.tensor(marked.ends), earned)
        return rewards

    def step_scores(self, sequences: Sequences) -> list[list[float]]:
        """The score of every step of every response of ``sequences``, before they are made one; raises as ``rewards``
        does."""
        rows = self._marked(sequences)
        self._require_readable(rows)
        with torch.no_grad():
            return [scores.tolist() for scores in self._step_scores(rows)]

    def _marked(self, sequences: Sequences) -> list[MarkedRow]:
        prompts, responses = sequences.prompts(), sequences.responses()
        before, written = texts(self._decode, prompts, responses)
        return [
            self._marked_row(prompt, response, before[row], written[row])
            for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]

    def _marked_row(self, prompt: list[int], response: list[int], before: str, text: str) -> MarkedRow:
        steps, ids, markers = list(cut_steps(text, self.separator)), list(prompt), []
        if not steps:
            return MarkedRow(ids=ids, markers=[], ends=[])
        for step in self.tokenizer([step.text for step in steps], add_special_tokens=False)["input_ids"]:
            ids += [*step, *self._marker_ids]
            markers.append(len(ids) - 1)
        token_ends = token_spans(self._decode, prompt, response, before, text)[:, 1]
        ends = [int((token_ends < len(text[: step.end].encode())).sum()) for step in steps]
        if not steps[-1].separated:
            ends[-1] = len(response) - 1  # what ended it is the end of the response, EOS where there is one
        return MarkedRow(ids=ids, markers=markers, ends=ends)

    def _step_scores(self, rows: Sequence[MarkedRow]) -> list[Float[Tensor, " step"]]:
        """Of the steps of each row, on the CPU."""
        found = [torch.zeros(0)] * len(rows)
        with_steps = [row for row, marked in enumerate(rows) if marked.markers]
        lengths = torch.tensor([len(rows[row].ids) for row in with_steps], dtype=torch.long)

        def score_rows(chosen: Int[Tensor, " row"]) -> None:
            which = [with_steps[index] for index in chosen.tolist()]
            logits = _logits(self.model, *_padded([rows[row].ids for row in which], self.model.device))
            for index, row in enumerate(which):
                odds = self._score.of(logits[index, rows[row].markers])
                found[row] = (odds.sigmoid() if self.kind == "probability" else odds).cpu()

        run_in_parts(score_rows, partial(row_batches, lengths), lengths, self._budget, phase="scoring steps")
        return found

    def _decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        decoded: list[str] = self.tokenizer.batch_decode(
            [list(row) for row in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded

    def _require_readable(self, rows: Sequence[MarkedRow]) -> None:
        limit, size = context_length(self.model), self.vocab_size
        long = [
            f"row {row} takes {len(one.ids)} tokens with its {len(one.markers)} markers; {self.name} reads at most "
            f"{limit}"
            for row, one in enumerate(rows)
            if limit is not None and len(one.ids) > limit
        ]
        if long:
            raise UnusableRollout(f"responses: {listed(long)}")
        unknown = [(row, token) for row, one in enumerate(rows) for token in one.ids if not 0 <= token < size]
        if unknown:
            row, token = unknown[0]
            raise ValueError(f"row {row} holds token id {token}; {self.name} knows ids 0 to {size - 1}")


def require_step_settings(separator: str, score: StepScore, aggregate: Aggregate, micro_batch_tokens: int) -> None:
    """Raise ValueError for settings that cannot be, whatever the model."""
    for setting, value, known in (("score", score, get_args(StepScore)), ("aggregate", aggregate, tuple(EARNED))):
        if value not in list(known):
            raise ValueError(f"{setting} must be one of {', '.join(known)}, got {value!r}{nearest(value, known)}")
    if not separator:
        raise ValueError("separator is empty; give the text that parts two steps, such as '\\n'")
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens must be at least 1, got {micro_batch_tokens}")


def step_score(name: str, config: PreTrainedConfig, label: Label | None) -> Score:
    """How a step's log-odds of being good come from the logits of a model with this configuration.

    Raises:
        ValueError: several labels of which none is named, or an unknown one; ``name`` is the model's, for the message.
    """
    labels: Any = config.id2label
    names = [str(labels[index]) for index in sorted(labels)]
    if label is None and [each.casefold() for each in names] in PAIRS:
        label = 1
    if label is None and len(names) > 1:
        raise ValueError(
            f"{name} has {len(names)} labels, and nothing says which means a good step. Give label, one of "
            f"{listed_labels(names)}"
        )
    if len(names) == 1:
        return Score(kind="single_logit")
    kind: Any = "label_logit" if config.problem_type in SEPARATE else "log_odds"
    return Score(kind=kind, label=label_index(name, names, cast(Label, label)))


def marker_ids(tokenizer: PreTrainedTokenizerBase, marker: str, name: str) -> list[int]:
    """The tokens of the text that marks the end of a step.

    Raises:
        ValueError: it has none, or the unknown token among them; ``name`` is the model's, for the message.
    """
    ids: list[int] = tokenizer.encode(marker, add_special_tokens=False)
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(
            f"{name}: its tokenizer has no token for {marker!r}, at which a step would be read. Give as marker the "
            "text that stood after each step where the model was trained, such as '<extra_0>'"
        )
    return ids


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids, padded on the right, and where they are real."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids.to(device), (torch.arange(width) < lengths[:, None]).to(device)


def _logits(
    model: PreTrainedModel, input_ids: Int[Tensor, "row position"], real: Bool[Tensor, "row position"]
) -> Float[Tensor, "row position label"]:
    """What the model's own forward pass gives each token."""
    output = model(input_ids=input_ids, attention_mask=real.long(), return_dict=True, **without_cache(model))
    logits: Tensor = output.logits
    return logits


def _last_logits(
    model: PreTrainedModel, input_ids: Int[Tensor, "row position"], real: Bool[Tensor, "row position"]
) -> Float[Tensor, "row label"]:
    rows = torch.arange(len(real), device=real.device)
    return _logits(model, input_ids, real)[rows, real.sum(1) - 1]
