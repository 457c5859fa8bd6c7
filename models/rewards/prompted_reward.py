"""A reward model that reads prompts in its own template, as the paper's dialogue reward model does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from models.passes.sampling import left_padded
from models.rewards.classifier_probe import ClassifierProbe
from models.rewards.classifier_reward import ClassifierReward
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import Scored, Sequences

Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptedReward:
    """``reward`` with every prompt replaced by its own rendering; responses are passed on token by token.

    So scores are those of the other template, and evidence stands on the same response tokens as before. Both models
    share a tokenizer. ``renderings`` maps a prompt's token ids, as the policy reads them, to what the reward model
    reads.
    """

    reward: ClassifierReward
    renderings: Mapping[Ids, Sequence[int]]

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The reward model's, to compare with the policy's."""
        return self.reward.vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of ids that the reward model reads."""
        return self.reward.vocab_size

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        """Raise ValueError, listing the rows, for ``prompts`` without a rendering, or else for those whose rendering
        the reward model refuses with ``max_length`` response tokens after it."""
        self.reward.validate(self._renderings(prompts), max_length)

    def provides(self, request: EvidenceRequest) -> bool:
        """Whether the reward model can answer ``request``."""
        return self.reward.provides(request)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why the reward model cannot answer ``request``; empty if it can."""
        return self.reward.why_not(request)

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """Score the responses of ``sequences`` after the reward model's own prompts, with the evidence in ``needs``.

        Raises:
            ValueError: prompts that have no rendering, naming their rows; and whatever the reward model refuses.
        """
        return self.reward.score(self._rendered(sequences), needs)

    def probe(self, sequences: Sequences) -> ClassifierProbe:
        """A probe of the responses of ``sequences`` after the reward model's own prompts."""
        return self.reward.probe(self._rendered(sequences))

    def _rendered(self, sequences: Sequences) -> Sequences:
        ids, mask = left_padded(self._renderings(sequences.prompts()), sequences.prompt_ids.device)
        return replace(sequences, prompt_ids=ids, prompt_mask=mask)

    def _renderings(self, prompts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        found = [self.renderings.get(tuple(prompt)) for prompt in prompts]
        missing = [row for row, rendering in enumerate(found) if rendering is None]
        if missing:
            first = prompts[missing[0]]
            raise ValueError(
                f"the reward model has no rendering of the prompts in rows {missing[:8]} ({len(missing)} of "
                f"{len(prompts)}; the first has {len(first)} tokens, beginning with {list(first[:8])}); it knows the "
                f"{len(self.renderings)} prompts of its task only"
            )
        return [rendering for rendering in found if rendering is not None]
