"""How many tokens one pass of a reward model may hold, by kind of pass."""

from dataclasses import dataclass

from rlhf_core.batching import TokenBudget

SETTING = "the reward model's micro_batch_tokens"


@dataclass(frozen=True, eq=False, kw_only=True)
class PassBudgets:
    """A budget for each kind of pass, as their memory per token differs: one running out does not limit the others."""

    scoring: TokenBudget
    """Scores and what rides on them, altered responses included."""
    gradients: TokenBudget
    """Forward and backward passes to the input embeddings."""
    maps: TokenBudget
    """Whole attention maps, with gradients or without."""

    @classmethod
    def of(cls, tokens: int) -> "PassBudgets":
        """Start with the same budget for all kinds."""
        return cls(
            scoring=TokenBudget(setting=SETTING, tokens=tokens),
            gradients=TokenBudget(setting=f"{SETTING}, from which its gradient passes start,", tokens=tokens),
            maps=TokenBudget(setting=f"{SETTING}, from which its passes with attention maps start,", tokens=tokens),
        )

    def put(self, tokens: int) -> None:
        """Set the same budget for all kinds again."""
        for budget in (self.scoring, self.gradients, self.maps):
            budget.tokens = tokens
