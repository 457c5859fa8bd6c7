"""A prepared folder of the positive-generation task with tiny random models: everything a script needs, in seconds."""

import json

from benchmarks.tasks.prepared_folder import MADE_BY
from models.tiny import save_tiny


def prepared(folder):
    """policy/, reward/, prompts.jsonl and a record that asks for a small task's PPO settings."""
    for name in ("policy", "reward"):
        (folder / name).mkdir(parents=True)
    save_tiny(folder / "policy", std=0.3, seed=1)
    save_tiny(folder / "reward", head="classifier", num_labels=2, std=0.3, seed=2)
    splits = ["train"] * 16 + ["held_out"] * 8
    rows = [{"ids": [2 + i % 20, 3 + i % 7], "split": split} for i, split in enumerate(splits)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"made_by": MADE_BY, "settings": {"size": "tiny"}}))
    return folder
