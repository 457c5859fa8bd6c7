"""Folders of runs as ``fit`` leaves them, made up: hostile texts, gaps, long names."""

import json
from pathlib import Path
from typing import Any

COMMAND = "python train.py --ppo.rollout_batch_size 64 --ppo.learning_rate 1e-5"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e&amp;"


def run_folder(folder: Path, *, seed: int = 0, steps: int = 12, shift: float = 0.0, **settings: Any) -> Path:
    """A run of so many steps, evaluated every third and at the end; its scores rise from ``shift``."""
    folder.mkdir(parents=True)
    config = {
        "seed": seed, "lam": 0.95, "ratio_threshold": 10.0, "rollout_batch_size": 64,
        "kl": {"adaptive": True, "target": 6.0},
    }  # fmt: skip
    given = {"redistributor": "RewardAttention(beta=0.8, layer=-1)", "eval_every": 3, "first_step": 0, **settings}
    (folder / "settings.json").write_text(json.dumps({**given, "trained": False, "models": {}, "config": config}))
    lines = [metrics(step, seed, shift, evaluated=step % 3 == 0 or step == steps) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = [sample(step, row) for step in (0, steps) for row in range(2)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    (folder / "report.json").write_text(json.dumps(report(steps)))
    return folder


def metrics(step: int, seed: int, shift: float, *, evaluated: bool) -> dict[str, Any]:
    noise = ((step * 7 + seed * 3) % 5 - 2) / 20
    figures = {
        "score": shift + step / 10 + noise,
        "kl": 0.3 * step,
        "length": 40.0 + step,
        "length_q10": 20.0,
        "length_q90": 60.0,
        "finished": 0.9,
        "policy_loss": -0.01,
        "value_loss": "nan" if step == 4 else 0.5 + noise,
        "value_loss_normalised": 0.5,
        "explained_variance": 0.1 * noise,
        "explained_variance_over_position": noise,
        "entropy": 2.0 - 0.1 * step,
        "clip_fraction": 0.1,
        "value_clip_fraction": 0.0,
        "ratio_max": 1.5,
        "skipped_minibatches": 0.0,
        "refused_minibatches": 0.0,
        "conservation_error": 1e-7,
    }
    held_out = {"eval_score": shift + step / 9, "eval_kl": 0.3 * step, "eval_length": 41.0}
    return {"step": step, **figures, **(held_out if evaluated else {})}


def sample(step: int, row: int) -> dict[str, Any]:
    text = f" response {row} of step {step}: {HOSTILE if row else 'a plain one.'}"
    return {
        "step": step, "prompt": f"prompt {row} {HOSTILE}", "response": text, "score": 0.1 * step, "length": 30,
        "finished": row == 0,
    }  # fmt: skip


def report(steps: int) -> dict[str, Any]:
    tokens = [" A", " fine", "<b>", " film", "⟨eos⟩"] * 6
    even = [0.6 / len(tokens)] * len(tokens)
    credit = {
        "prompt": f"prompt 0 {HOSTILE}", "tokens": tokens, "score": 0.6,
        "rows": {"abc": even, "sparse": [*[0.0] * (len(tokens) - 1), 0.6]}, "reference_rows": {},
    }  # fmt: skip
    return {
        "written": "2026-01-02 03:04 UTC", "last_step": 20, "command": f"{COMMAND} --name '{HOSTILE}'",
        "versions": {"torch": "2.13"}, "conserving": True, "credit_step": steps, "credit": [credit],
    }  # fmt: skip
