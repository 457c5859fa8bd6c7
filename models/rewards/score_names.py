"""The scores that a classifier can give, by name; this file imports no model library, so a command line is quick."""

from typing import Literal

Pooling = Literal["last", "hf"]
"""At which token of a row a decoder's score is read: see ``models.rewards.classifier_head.Head``."""
ScoreKind = Literal["single_logit", "logit_difference", "log_odds", "label_logit"]
"""Which number of a classifier's logits is the reward: see ``models.rewards.score_kinds``."""
