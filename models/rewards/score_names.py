"""The scores that a classifier can give, by name; this file imports no model library, so a command line is quick."""

from typing import Literal

ScoreKind = Literal["single_logit", "logit_difference", "log_odds", "label_logit"]
"""Which number of a classifier's logits is the reward: see ``models.rewards.score_kinds``."""
