"""A reward model as a judge of two responses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from benchmarks.judging.judges import Scores, excerpt
from benchmarks.judging.settings import RewardSettings
from models.rewards.classifier_reward import ClassifierReward
from models.texts.prompt_encoding import encode


@final
@dataclass(frozen=True, kw_only=True)
class RewardJudge:
    """The reward model of ``settings``, loaded. ``weights`` is a fingerprint of it for the record.

    Judges see texts, so a response that was cut at its maximum gets the EOS as well.

    Raises:
        ValueError: no EOS to append.
    """

    settings: RewardSettings
    model: ClassifierReward
    weights: str
    order_sensitive = False

    def __post_init__(self) -> None:
        if self.settings.end == "eos" and self.model.tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {self.settings.model} has no EOS token; pass --reward.end nothing")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Where it is from, its weights, and how they are read."""
        how = {"score": self.model.identity["score"], "template": self.settings.template, "end": self.settings.end}
        return {"kind": "reward model", "name": self.settings.model, "weights": self.weights, **how}

    def prefer(self, instruction: str, first: str, second: str) -> Scores:
        """Both scores; raises ValueError where a text exceeds the model's context."""
        rows = [self._ids(instruction, response) for response in (first, second)]
        try:
            scores = self.model.score_ids(rows).tolist()
        except ValueError as error:
            told = f"{self.settings.model} cannot score two responses to {excerpt(instruction)!r}"
            raise ValueError(f"{told}: {error}. Leave the prompt out, or lower --sampling.max_tokens") from error
        return Scores(first=scores[0], second=scores[1])

    def _ids(self, instruction: str, response: str) -> list[int]:
        text = self.settings.template.format(instruction=instruction, response=response)
        ids = encode(self.model.tokenizer, [text])[0]
        eos = self.model.tokenizer.eos_token_id
        return [*ids, eos] if self.settings.end == "eos" and ids[-1:] != [eos] else ids
