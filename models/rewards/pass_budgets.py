"""How much one pass of a reward model may hold, by what it keeps."""

from dataclasses import dataclass

from rlhf_core.batching import TokenBudget

SETTING = "the reward model's micro_batch_tokens"


@dataclass(frozen=True, eq=False, kw_only=True)
class PassBudgets:
    """A budget a kind of pass, as a token costs each another amount of memory: where one runs out, others go on."""

    scoring: TokenBudget
    """Scores and what rides on them, altered responses included."""
    gradients: TokenBudget
    """Forward and backward passes to the input embeddings."""
    maps: TokenBudget
    """Whole attention maps, with gradients or without."""

    @classmethod
    def of(cls, tokens: int) -> "PassBudgets":
        """All the same to begin with."""
        return cls(
            scoring=TokenBudget(setting=SETTING, tokens=tokens),
            gradients=TokenBudget(setting=f"{SETTING}, from which its gradient passes start,", tokens=tokens),
            maps=TokenBudget(setting=f"{SETTING}, from which its passes with attention maps start,", tokens=tokens),
        )

    def put(self, tokens: int) -> None:
        """All the same again."""
        for budget in (self.scoring, self.gradients, self.maps):
            budget.tokens = tokens
