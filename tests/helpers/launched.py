"""A user's script, as it is for one process: ``python launched.py OUT STEPS [KILLED_AT]``.

With KILLED_AT, the process of rank 1, where there is one, kills itself in the middle of that step.
"""

import os
import signal
import sys

import torch
from fakes import TablePolicy
from resumable import CONFIG, PROMPTS, share_of_threes

from redistributors import Uniform
from rlhf_core import PPOTrainer, TokenReward


class Dies(TablePolicy):
    """Dies in the update of one step."""

    def evaluate(self, sequences, needs, **settings):
        if torch.is_grad_enabled() and os.environ.get("RANK") == "1" and trainer.steps_done + 1 == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(sequences, needs, **settings)


torch.set_num_threads(1)
out, steps, killed_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else None
trainer = PPOTrainer(Dies(), TokenReward(share_of_threes), Uniform(), CONFIG)
trainer.fit(PROMPTS, steps, out=out, eval_every=3, save_every=1, resume=True)
