"""A reward model that reads prompts in a rendering of its own, as the paper's dialogue reward model does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from models.reward import ClassifierReward
from models.sampling import left_padded
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import Scored, Sequences

Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptedReward:
    """``reward`` with every prompt exchanged for its own rendering of it; responses are handed on token by token.

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

    def provides(self, request: EvidenceRequest) -> bool:
        """What the reward model provides."""
        return self.reward.provides(request)

    def why_not(self, request: EvidenceRequest) -> str:
        """The reward model's reason."""
        return self.reward.why_not(request)

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """Score the responses after the reward model's own prompts.

        Raises:
            ValueError: a prompt that has no rendering, naming its row; and whatever the reward model refuses.
        """
        prompts = [self._rendering(row, prompt) for row, prompt in enumerate(sequences.prompts())]
        ids, mask = left_padded(prompts, sequences.prompt_ids.device)
        return self.reward.score(replace(sequences, prompt_ids=ids, prompt_mask=mask), needs)

    def _rendering(self, row: int, prompt: Sequence[int]) -> Sequence[int]:
        found = self.renderings.get(tuple(prompt))
        if found is None:
            raise ValueError(
                f"the reward model has no rendering of the prompt in row {row} ({len(prompt)} tokens, beginning with "
                f"{list(prompt[:8])}); it knows the {len(self.renderings)} prompts of its task only"
            )
        return found
