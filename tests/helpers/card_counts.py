"""What a step asks of a card, counted on a pretended one.

``PYTHONPATH=. python tests/helpers/card_counts.py``; with ``--lines``, every line at which the host waits.
"""

import argparse
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import transformers
from pretended_card import PretendedCard

from models import load_policy, load_reward_model
from models.policy import loading
from models.tiny import save_tiny
from redistributors import RewardAttention
from rlhf_core import KLConfig, PPOConfig, PPOTrainer

TOKENS, MINIBATCHES = 64, 8
CONFIG = PPOConfig(
    seed=1,
    rollout_batch_size=8,
    minibatch_size=2,
    epochs=2,
    min_length=TOKENS,
    max_length=(TOKENS, TOKENS),
    micro_batch_tokens=80,  # a row of 64 tokens and its prompt: two micro-batches in a minibatch
    kl=KLConfig(init_coef=0.05),
    first_step_checks="warn",
    max_grad_norm=1.0,
)
PROMPTS = [[5 + row % 7] * (1 + row % 4) for row in range(8)]


@dataclass(frozen=True)
class Counted:
    """Launches and waits of one part of a step, by line and operation, and in how many units it was done."""

    launches: Counter
    waits: Counter
    units: int


def counted_step(family: str, folder: Path, card: PretendedCard, **settings) -> dict[str, Counted]:
    """Sampling (by sampled position) and the update (by minibatch) of a second step, when all states exist. The policy
    is loaded with ``settings``."""
    policy = load_policy(save_tiny(folder / "policy", family, seed=1, context=128), device="cuda", **settings)
    classifier = save_tiny(folder / "reward", family, head="classifier", num_labels=2, seed=2, context=128)
    reward = load_reward_model(classifier, score="logit_difference", device="cuda")
    trainer, found = PPOTrainer(policy, reward, RewardAttention(), CONFIG), {}

    def counted(name, units, run):
        card.reset()
        result = run()
        found[name] = Counted(Counter(card.launches), Counter(card.waits), units)
        return result

    trainer.step(PROMPTS)
    sample = policy.sample
    policy.sample = lambda *args, **settings: counted("sampled token", TOKENS, lambda: sample(*args, **settings))
    rollout = trainer.collect(PROMPTS)
    experience = trainer.estimate_returns(rollout, trainer.redistribute(rollout))
    counted("minibatch", MINIBATCHES, lambda: trainer.update(experience))
    return found


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", action="store_true", help="each line of the project at which the host waits")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    loading.compiled = lambda lm: lm  # nothing is compiled for a pretended card: steps of fixed shapes as they are
    for family, fixed in product(("gpt2", "llama"), (False, True)):
        with tempfile.TemporaryDirectory() as folder, PretendedCard() as card:
            for name, counted in counted_step(family, Path(folder), card, compile_decoding=fixed).items():
                launches, waits = (sum(c.values()) / counted.units for c in (counted.launches, counted.waits))
                kind = f"{family}, fixed shapes" if fixed else family
                print(f"{kind}, per {name}: {waits:g} waits of the host, {launches:g} launches")
                for (place, operation), times in counted.waits.most_common() if asked.lines else ():
                    print(f"    {times / counted.units:g} {place} {operation}")


if __name__ == "__main__":
    main()
