"""Reward models: sequence classifiers whose score and attention evidence come from one forward pass."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.attention.maps import why_not_gradients
from models.attention.reader import AttentionReader, UnreadableAttention, checked_reader
from models.passes.context_length import context_length
from models.passes.layout import PaddedRows, right_padded
from models.passes.rotary import read_rows_alone
from models.passes.rounding import rounds_coarsely
from models.rewards.classifier import Classifier, Setting, null_token, why_not_null
from models.rewards.classifier_head import find_head, last_hidden, require_own_logits, why_not_causal
from models.rewards.classifier_probe import ClassifierProbe
from models.rewards.pass_budgets import PassBudgets
from models.rewards.score_kinds import Label, find_score
from models.rewards.score_names import Pooling, ScoreKind
from models.texts.prompt_encoding import prompt_problems
from rlhf_core.batching import micro_batches, run_in_parts
from rlhf_core.evidence import AttentionTap, EvidenceRequest, HiddenTap, Layout
from rlhf_core.probe import Ability, Experiment, measured
from rlhf_core.prompts import listed
from rlhf_core.types import Scored, Sequences

ABILITIES: tuple[Ability, ...] = (
    "delete",
    "replace",
    "prefix_scores",
    "embedding_gradients",
    "attention",
    "attention_gradients",
)


@final
class ClassifierReward:
    """A sequence classifier, ``model``, with its ``tokenizer`` as a reward model: frozen for good, in eval mode, read
    by explicit index. ``micro_batch_tokens``: prompt and response tokens of one pass, padding included.

    ``score`` is the number that is the reward:

    - "single_logit": the logit of a head of one label;
    - "logit_difference": logit of label 1 (positive) minus label 0 (negative) of a head of two;
    - "log_odds" of ``label`` against all the others: its logit minus the log-sum-exp of theirs, the logarithm of
      p / (1 - p); of two labels it is the difference of their logits;
    - "label_logit": the logit of ``label`` alone, for heads whose labels are answers of their own (regression, several
      labels at once), where it is what ``label`` stands for.

    ``pooling`` is the token that a decoder's score is read at: "last" is the last, EOS included, whatever the pad token
    is; "hf" the last that is not the pad token of its configuration, as ``AutoModelForSequenceClassification`` pools.
    The two differ where pad and EOS share an id: a model that was trained so never read the EOS, and wants "hf".

    ``label`` is a name or an index of the configuration's ``id2label``, and alone it means "log_odds". With neither,
    the score is inferred where there is no choice. A row is the prompt followed by the response, token ids as given: it
    must include whatever the classifier was trained to see at either end (EOS, [CLS]).

    Raises:
        ValueError: there is a choice and none is made, the labels do not fit it, or the head is of an unsupported form;
            ``pooling="hf"`` of an encoder, or of a decoder whose configuration names no pad token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        score: ScoreKind | None = None,
        label: Label | None = None,
        pooling: Pooling = "last",
        micro_batch_tokens: int = 4096,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        nn.Module.eval(model).requires_grad_(False)
        read_rows_alone(model)
        self.name = type(model).__name__
        found = find_score(self.name, model.config, score, label)
        if micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens must be at least 1, got {micro_batch_tokens}")
        self._budgets = PassBudgets.of(micro_batch_tokens)
        self.head = find_head(model, pooling)
        self._classifier = Classifier(model=model, head=self.head, score=found, null_id=null_token(tokenizer))
        if self.head.reads == "first" and tokenizer.cls_token_id is None:
            raise ValueError(f"{self.name} reads its score at [CLS], but its tokenizer has no cls token")
        require_own_logits(model, self.head, tolerance=5e-2 if rounds_coarsely(model) else 1e-4)

    @property
    def identity(self) -> Mapping[str, object]:
        """Settings that determine its scores."""
        four_bit = bool(getattr(self.model, "is_quantized", False))
        return {
            "model": self.name,
            "score": self._score_in_words,
            "dtype": self.model.dtype,
            "four_bit": four_bit,
        }

    @property
    def _score_in_words(self) -> str:
        """The score, and beside it the pooling where that is not our own."""
        read = "" if self.head.skips is None else f" (pooling='hf', which skips token {self.head.skips} at the end)"
        return f"{self._classifier.score}{read}"

    def __repr__(self) -> str:
        return f"ClassifierReward({self.name}, score={self._score_in_words})"

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of a scoring pass at most, padding included; less than was set, for passes of every kind, once memory
        has run out."""
        return self._budgets.scoring.tokens

    @micro_batch_tokens.setter
    def micro_batch_tokens(self, tokens: int) -> None:
        self._budgets.put(tokens)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table: every token id must be below."""
        return int(cast(nn.Embedding, self.model.get_input_embeddings()).weight.shape[0])

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Which token each id stands for."""
        tokens: dict[str, int] = self.tokenizer.get_vocab()
        return tokens

    def provides(self, request: EvidenceRequest) -> bool:
        """Whether ``score`` can answer ``request``."""
        return not self.why_not(request)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why ``request`` cannot be answered, in words; empty if it can."""
        if request.source != "reward":
            return f"{request} is asked of the {request.source}, not of a reward model"
        if isinstance(request, AttentionTap):
            return self._why_not_attention(request)
        if isinstance(request, HiddenTap):
            return self._why_not_causal
        if isinstance(request, Experiment):
            reasons = [self._why_not_able(ability, request) for ability in sorted(request.uses)]
            return "; ".join(dict.fromkeys(filter(None, reasons)))
        return f"a classifier answers AttentionTap, HiddenTap and Experiment requests, not {type(request).__name__}"

    def _why_not_attention(self, request: EvidenceRequest) -> str:
        if self.head.reads == "several":
            return f"{self.name} reads its score at several tokens, so no row of attention is the one it is read from"
        return self._attention.why_not(request)

    def _why_not_able(self, ability: str, request: Experiment) -> str:
        """Why its probe cannot do what an experiment uses; empty if it can."""
        if ability in ("attention", "attention_gradients"):
            # a reader was compared with the maps, so where there is one, there are those of as many layers
            unread = self._why_not_attention(request)
            return unread if unread or ability == "attention" else self._why_not_map_gradients
        if ability == "prefix_scores":
            return self._why_not_causal
        if ability == "replace":
            setting: Setting = "baseline" if "embedding_gradients" in request.uses else "absent"
            return why_not_null(self.name, self._classifier.null_id, setting)
        return "" if ability in ABILITIES else f"a classifier's probe knows {', '.join(ABILITIES)}, not {ability}"

    @cached_property
    def _why_not_causal(self) -> str:
        """Why no hidden state depends only on a prefix; empty if the model is causal."""
        reason = why_not_causal(self.model, self.head)
        return reason and f"{self.name} cannot score beginnings: {reason}"

    @cached_property
    def _why_not_map_gradients(self) -> str:
        """Why the score has no gradient with respect to attention maps; empty if it has."""
        every = torch.ones(1, 5, dtype=torch.bool, device=self.model.device)
        return why_not_gradients(self.model, lambda hidden: self._classifier.scores(hidden, every))

    @cached_property
    def _attention(self) -> AttentionReader | UnreadableAttention:
        """The attention reader, built on first use, so that methods without attention evidence cost nothing."""
        return checked_reader(self.model, self.vocab_size)

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """Raise ValueError, listing every bad row of ``prompts``: empty, ids outside the vocabulary, no room for a
        response of ``max_length`` tokens in the context, or, where the score is read at [CLS], another first token."""
        lengths, context, cls = [max_length] * len(prompts), context_length(self.model), self.tokenizer.cls_token_id
        problems = list(prompt_problems(prompts, lengths, vocab_size=self.vocab_size, context=context))
        if self.head.reads == "first":
            headless = [row for row, ids in enumerate(prompts) if list(ids[:1]) != [cls]]
            problems += [f"row {row} does not start with {cls}" for row in headless]
        if problems:
            raise ValueError(f"prompts that {self.name} cannot score: {listed(problems)}")

    @torch.no_grad()
    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """Score every row of ``sequences``, and answer the taps among ``needs``, in one pass per micro-batch; then each
        experiment, with a probe of its own. Where a pass runs out of memory, all are made smaller, and
        ``micro_batch_tokens`` stays at what fitted.

        Raises:
            MemoryError: a single row ran out of memory.
            ValueError: a row exceeds the context or holds an id outside the vocabulary; a need this model cannot
                answer, with the reason.
        """
        for request in needs:
            if reason := self.why_not(request):
                raise ValueError(f"{request} cannot be measured: {reason}")
        self._require_readable(sequences)
        experiments = [request for request in needs if isinstance(request, Experiment)]
        scored = self._scored(sequences, needs - frozenset(experiments))
        evidence = dict(scored.evidence)
        evidence |= {request: measured(request, self.probe(sequences)) for request in experiments}
        return Scored(scores=scored.scores, evidence=evidence)

    def probe(self, sequences: Sequences) -> ClassifierProbe:
        """A probe of these ``sequences``, to measure an experiment alone and see what it costs; raises ValueError for
        rows that ``score`` would refuse."""
        self._require_readable(sequences)
        return ClassifierProbe(classifier=self._classifier, sequences=sequences, budgets=self._budgets)

    def _scored(self, sequences: Sequences, taps: frozenset[EvidenceRequest]) -> Scored:
        home, device = sequences.response_ids.device, self.model.device
        scores = torch.zeros(len(sequences), device=home)
        evidence = {tap: torch.zeros(tap.shape(*sequences.response_ids.shape), device=home) for tap in taps}

        def score_rows(chosen: Int[Tensor, " row"]) -> None:
            part = sequences.select(chosen)
            rows, mask = right_padded(part), part.response_mask.to(device)
            ids, real = rows.input_ids.to(device), rows.attention_mask.to(device)
            read = self.head.read_part(ids, real)
            layout = Layout(
                response_positions=rows.response_positions.to(device),
                response_mask=mask,
                read_positions=self.head.positions(read),
            )
            batch_scores, answers = self._forward(ids, real, taps, layout)
            scores[chosen] = batch_scores.to(home, scores.dtype)
            for request, answer in answers.items():
                evidence[request][chosen, : answer.shape[1]] = answer.to(home, scores.dtype)

        cut, budget = partial(micro_batches, sequences), self._budgets.scoring
        run_in_parts(score_rows, cut, sequences.lengths, budget, phase="scoring")
        return Scored(scores=scores, evidence=evidence)

    def score_ids(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, " row"]:
        """Score ``rows`` of token ids, each at least two tokens long, exactly as ``score`` does.

        Raises:
            ValueError: as ``score``; or a row of fewer than two tokens.
        """
        if not rows:
            return torch.zeros(0)
        for index, row in enumerate(rows):
            if len(row) < 2:
                raise ValueError(f"row {index} has {len(row)} tokens; a prompt and a response need at least two")
        return self.score(_last_token_as_response(rows), frozenset()).scores

    def _forward(
        self, input_ids: Tensor, attention_mask: Tensor, taps: frozenset[EvidenceRequest], layout: Layout
    ) -> tuple[Tensor, dict[EvidenceRequest, Tensor]]:
        attention = [request for request in taps if isinstance(request, AttentionTap)]
        run = partial(last_hidden, self.model, attention_mask, input_ids=input_ids)
        found: dict[EvidenceRequest, Tensor] = {}
        if attention:
            hidden, answers = self._attention.read(attention, layout, run)
            found = dict(answers.items())
        else:
            hidden = run()
        for request in taps:
            if isinstance(request, HiddenTap):
                positions, mask = layout.response_positions, layout.response_mask
                found[request] = self._classifier.read_states(request, hidden, input_ids, positions, mask)
        return self._classifier.scores(hidden, self.head.read_part(input_ids, attention_mask)), found

    def _require_readable(self, sequences: Sequences) -> None:
        """Refuse rows on which the model would crash, or which it would score without being able to read them."""
        rows = right_padded(sequences)
        lengths, limit = rows.attention_mask.sum(1), context_length(self.model)
        if limit is not None and bool((lengths > limit).any()):
            row = int((lengths > limit).nonzero()[0])
            raise ValueError(
                f"row {row} has {int(lengths[row])} tokens, prompt and response; {self.name} reads at most {limit}"
            )
        self._require_known(rows)
        if self.head.reads == "first" and bool((rows.input_ids[:, 0] != self.tokenizer.cls_token_id).any()):
            row = int((rows.input_ids[:, 0] != self.tokenizer.cls_token_id).nonzero()[0])
            raise ValueError(
                f"row {row} starts with token {int(rows.input_ids[row, 0])}; {self.name} reads its score at the first "
                f"token, which must be {self.tokenizer.cls_token!r} ({self.tokenizer.cls_token_id})"
            )

    def _require_known(self, rows: PaddedRows) -> None:
        unknown = (rows.input_ids < 0) | (rows.input_ids >= self.vocab_size)
        if bool(unknown.any()):
            row, column = unknown.nonzero()[0].tolist()
            raise ValueError(
                f"row {row} holds token id {int(rows.input_ids[row, column])} at position {column}; "
                f"{self.name} knows ids 0 to {self.vocab_size - 1}"
            )


def _last_token_as_response(rows: Sequence[Sequence[int]]) -> Sequences:
    """Sequences whose prompt and response, side by side, are ``rows``."""
    width = max(len(row) for row in rows) - 1
    lengths = torch.tensor([len(row) - 1 for row in rows])
    ones = torch.ones(len(rows), dtype=torch.long)
    return Sequences(
        prompt_ids=torch.tensor([[0] * (width - len(row) + 1) + list(row[:-1]) for row in rows]),
        prompt_mask=torch.arange(width) >= (width - lengths)[:, None],
        response_ids=torch.tensor([[row[-1]] for row in rows]),
        response_mask=torch.ones(len(rows), 1, dtype=torch.bool),
        min_lengths=ones,
        max_lengths=ones,
        finished=torch.ones(len(rows), dtype=torch.bool),
    )
