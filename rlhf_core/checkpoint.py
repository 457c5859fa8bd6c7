"""Saving what a run has learned: complete under its final name, or not there at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rlhf_core.types import Policy


def save_checkpoint(folder: Path, policy: Policy, state: Mapping[str, object]) -> None:
    """Write ``folder/policy`` (safetensors) and ``folder/state.json``, beside the final name first, then rename.

    Raises:
        FileExistsError: ``folder`` exists.
    """
    if folder.exists():
        raise FileExistsError(f"checkpoint {folder} exists; move it away to save here")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    (unfinished / "policy").mkdir(parents=True)
    policy.save(str(unfinished / "policy"))
    (unfinished / "state.json").write_text(json.dumps(state, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, folder)
