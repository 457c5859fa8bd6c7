"""A run that a fresh process can begin, or take up: ``python resumable.py OUT KIND METHOD STEPS SAVE_EVERY [how]``.

``how``: "new", "resume", or "kills N": fork N children that resume, and kill each at a random moment.
"""

import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import torch
from fakes import TablePolicy
from safetensors.torch import load_file
from tqdm import tqdm

from redistributors import REDISTRIBUTORS
from rlhf_core import KLConfig, PPOConfig, PPOTrainer, ScoreConfig, TokenReward
from rlhf_core.run.stopping import AGAIN

PROMPTS = [[1], [2, 3], [4, 5, 1], [5], [3, 3, 1]]
CONFIG = PPOConfig.from_paper(
    "positive_generation",
    rollout_batch_size=8,
    minibatch_size=4,
    epochs=2,
    learning_rate=0.01,
    min_length=2,
    max_length=(4, 8),
    optimizer="adamw",
    weight_decay=0.1,
    schedule="linear",
    schedule_steps=1000,
    warmup_steps=3,
    kl=KLConfig(horizon=100.0),
    score=ScoreConfig(centring="running_mean", scaling="running_std"),
    spike_factor=50.0,
    seed=5,
)
EVAL_EVERY = 3
RUN_TIME = ("seconds", "tokens_per_second")


class Slow(TablePolicy):
    """Sends itself a second signal within the step that the first one waits for, and not at once."""

    def evaluate(self, sequences, needs, **settings):
        if torch.is_grad_enabled():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(AGAIN + 0.1)
            os.kill(os.getpid(), signal.SIGINT)
        return super().evaluate(sequences, needs, **settings)


def share_of_threes(prompts, responses):
    """More of token 3 is better."""
    return [row.count(3) / len(row) for row in responses]


def trainer(kind: str, method: str, folder: Path) -> PPOTrainer:
    """A trainer as at first: on a table, on a whole GPT-2, or on an adapter of a Llama, there or on a card."""
    redistributor = REDISTRIBUTORS[method]()
    if kind == "table":
        return PPOTrainer(TablePolicy(), TokenReward(share_of_threes), redistributor, CONFIG)
    from models import LoraSettings, load_policy, load_reward_model
    from models.tiny import save_tiny

    adapter = LoraSettings(rank=2, alpha=4)
    family, lora = {"gpt2": ("gpt2", None), "llama-lora": ("llama", adapter), "cuda": ("llama", adapter)}[kind]
    device = "cuda" if kind == "cuda" else "cpu"
    paths = {name: str(folder.with_name(f"{folder.name}-{name}")) for name in ("policy", "reward", "dpo")}
    if not Path(paths["reward"]).exists():
        save_tiny(paths["policy"], family=family, seed=1)
        save_tiny(paths["dpo"], family=family, seed=3)
        save_tiny(paths["reward"], family=family, head="classifier", num_labels=2, seed=2)
    reward = load_reward_model(paths["reward"], score="logit_difference", device=device)
    policy = load_policy(paths["policy"], lora=lora, device=device, auxiliaries={"dpo": paths["dpo"]})
    return PPOTrainer(policy, reward, redistributor, CONFIG)


def fit(out: Path, kind: str, method: str, steps: int, save_every: int, *, resume: bool) -> None:
    """Begin or take up the run in ``out``."""
    trainer(kind, method, out).fit(PROMPTS, steps, out=out, eval_every=EVAL_EVERY, save_every=save_every, resume=resume)


def left_behind(out: Path, step: int) -> tuple[dict[str, torch.Tensor], str, list[str]]:
    """All tensors of a checkpoint, its state, and the records, without what depends on the clock and without the
    samples that a run writes where it ends for now."""
    folder = out / f"checkpoint-{step}"
    tensors = {
        f"{path.relative_to(folder)} {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    records = []
    for name in ("metrics.jsonl", "samples.jsonl"):
        for line in (out / name).read_text().splitlines():
            taken = json.loads(line)["step"]
            if name == "samples.jsonl" and taken % EVAL_EVERY and taken != step:
                continue
            parts = [part for part in line.split(", ") if not any(f'"{clock}"' in part for clock in RUN_TIME)]
            records.append(", ".join(parts).rstrip("}"))
    return tensors, (folder / "state.json").read_text(), records


def kill(times: int, run, span: float) -> int:
    """Fork ``times`` children that call ``run``, and kill each within ``span`` seconds; how many were alive then."""
    rng, killed = random.Random(0), 0
    for _ in range(times):
        child = os.fork()
        if child == 0:
            tqdm.set_lock(threading.RLock())  # the parent's is between processes: one that was killed may hold it
            try:
                run()
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.0, span))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
    return killed


def main() -> None:
    """The command line."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # a CPU is so anyway
    warnings.simplefilter("ignore")
    out, kind, method, steps, save_every, how = sys.argv[1:7]
    asked = (Path(out), kind, method, int(steps), int(save_every))
    if how == "kills":
        fit(asked[0].with_name("warm-up"), kind, method, 1, 1, resume=False)
        started = time.monotonic()
        fit(asked[0].with_name("rehearsal"), kind, method, 6, 1, resume=False)
        span = time.monotonic() - started  # enough for some steps, whatever else the machine does
        print(kill(int(sys.argv[7]), lambda: fit(*asked, resume=True), span))
    else:
        fit(*asked, resume=how == "resume")


if __name__ == "__main__":
    main()
