"""Information: a sentence's credit is what it told the reward model."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import evidence_of
from redistributors.parts.typed_name import as_typed
from redistributors.prefix_difference import PrefixDifference
from redistributors.segment import Place, Segment, Sentences
from rlhf_core.evidence import EvidenceRequest, SentenceEnds
from rlhf_core.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Information:
    """token_score_t = r(x, y up to and with sentence j) − r(x, y before sentence j) on the last token of sentence j, 0
    on its others. The first sentence counts from 0, and the last ends with the score itself, so a row sums to the
    score; centring and clipping of the score show in the last sentence.

    Where the score is a log-odds (a head of two labels, or one logit trained with a logistic loss), this is the change
    of the reward model's log-odds that the sentence brings, in nats: its weight of evidence (Good 1985, "Weight of
    evidence: A brief survey"). The difference of any other score is taken as it is, in the score's units.

    A sentence ends with a token that holds one of ``marks``, as for :class:`Sentences`; the last token ends one too. A
    control for prefix differences: what single tokens add to them within a sentence is thrown away. It equals
    ``Segment(inner=PrefixDifference(), boundaries=Sentences(), place="end")``, so it is potential-based shaping, with
    a potential that stands still within a sentence. ``place="spread"`` gives each of the sentence's tokens an equal
    part; that knows the whole sentence, so it is not causal.

    No further pass: prefix scores ride on the pass that scores (T passes across tokenizers). A reward model that reads
    on before it scores (BERT) has none, nor has a function, and the trainer refuses both.

    Raises:
        ValueError: no ``marks``, or another ``place``.
    """

    marks: str = SentenceEnds.marks
    place: Place = "end"
    conserving: ClassVar[bool] = True
    __str__ = as_typed

    def __post_init__(self) -> None:
        if self.place not in get_args(Place):
            raise ValueError(f"Information: place must be one of {', '.join(get_args(Place))}, got {self.place!r}")
        Sentences(marks=self.marks)  # raises for what are no marks

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """Prefix scores of the reward model, and what the policy's tokenizer says of each token."""
        return self._segments.needs

    @property
    def causal(self) -> bool:
        """Where a sentence's credit is on its last token."""
        return self.place == "end"

    @property
    def shaping(self) -> bool:
        """The same."""
        return self.causal

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        self._require_evidence(rollout)
        return self._segments(rollout)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``segments``: mean number of sentences per response."""
        self._require_evidence(rollout)
        return self._segments.metrics(rollout)

    @property
    def _segments(self) -> Segment:
        return Segment(boundaries=Sentences(marks=self.marks), inner=PrefixDifference(), place=self.place)

    def _require_evidence(self, rollout: Rollout) -> None:
        for request in self.needs:
            evidence_of(rollout, request, "Information")
