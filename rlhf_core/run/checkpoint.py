"""Save the state of a run: a checkpoint is complete under its final name, or absent."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_core.files.plain_files import flush, read_object
from rlhf_core.files.tensor_files import read_tensors
from rlhf_core.run import manifest
from rlhf_core.run.model_card import write_model_card
from rlhf_core.sharding import trained_bytes
from rlhf_core.types import Policy

POLICY, STATE, TENSOR_FILE = "policy", "state.json", "trainer.safetensors"
FULL = (errno.ENOSPC, errno.EDQUOT)
ON_CARD = ("steps_done", "redistributor", "config")
CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainerState:
    """The state of a trainer besides its policy, as JSON and tensors."""

    numbers: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def save_checkpoint(folder: Path, policy: Policy, state: TrainerState, metrics: Mapping[str, float]) -> None:
    """Write ``folder/policy`` with a card that shows ``metrics``, ``trainer.safetensors``, ``state.json`` and, last,
    ``manifest.json``: beside the final name first, flushed to the disk, then renamed.

    Raises:
        FileExistsError: ``folder`` exists.
        OSError: with ENOSPC and how much is needed, where the disk is full; nothing is left of the attempt.
    """
    if folder.exists():
        raise FileExistsError(f"checkpoint {folder} exists; move it away to save here")
    unfinished = _unfinished(folder)
    if unfinished.exists():
        shutil.rmtree(unfinished)
    try:
        (unfinished / POLICY).mkdir(parents=True)
        policy.save(str(unfinished / POLICY))
        told = {name: state.numbers[name] for name in ON_CARD if name in state.numbers}
        write_model_card(unfinished / POLICY, state=told, metrics=metrics)
        save_file(_apart(state.tensors), unfinished / TENSOR_FILE)
        numbers = {**state.numbers, "tensors": _forms(unfinished / TENSOR_FILE)}
        (unfinished / STATE).write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        manifest.seal(unfinished)
    except Exception as error:  # libraries raise errors of their own for a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        if not _disk_is_full(error):
            raise
        raise OSError(errno.ENOSPC, _needed(folder, policy, state), str(folder)) from error
    os.replace(unfinished, folder)
    flush(folder.parent)


def load_state(folder: Path) -> TrainerState:
    """What ``save_checkpoint`` wrote beside the policy; the folder must have been found usable."""
    return TrainerState(numbers=read_object(folder / STATE), tensors=read_tensors(folder / TENSOR_FILE))


def why_not_usable(folder: Path) -> str:
    """Why no trainer can use a checkpoint: it was changed after it was written, its files do not belong together, or it
    has the name of another checkpoint. Empty if nothing is wrong."""
    wrong = manifest.why_not_whole(folder)
    if wrong:
        return wrong
    try:
        numbers, tensors = read_object(folder / STATE), _forms(folder / TENSOR_FILE)
    except (OSError, ValueError) as error:
        return str(error)
    if numbers.get("tensors") != tensors:
        return f"{TENSOR_FILE} holds other tensors than its {STATE} lists{_parting(numbers.get('tensors'), tensors)}"
    named, done = CHECKPOINT.fullmatch(folder.name), numbers.get("steps_done")
    if named and int(named[1]) != done:
        return f"it is named after step {named[1]}, and {STATE} says steps_done {done!r}: a copy of another checkpoint"
    return ""


def _forms(file: Path) -> dict[str, list[Any]]:
    """Kind and shape of each tensor, as JSON holds them; raises ValueError where the file is damaged."""
    try:
        with safe_open(file, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in sorted(stored.keys())}
            return {name: [part.get_dtype(), *part.get_shape()] for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error


def _parting(listed: object, found: Mapping[str, Any]) -> str:
    if not isinstance(listed, dict):
        return ", which lists none"
    first = min(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
    return f": {first} is {found.get(first, 'missing')}, where {listed.get(first, 'no such tensor')} is expected"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints under a run's folder, newest (most steps) first; complete or not."""
    found = {int(match[1]): path for path in run.iterdir() if (match := CHECKPOINT.fullmatch(path.name))}
    return [found[steps] for steps in sorted(found, reverse=True)]


def newest_complete(run: Path, why_not: Callable[[Path], str] = why_not_usable) -> tuple[Path | None, list[str]]:
    """The newest checkpoint for which ``why_not`` gives no reason; and for each newer one, why it was skipped."""
    passed_over: list[str] = []
    for folder in checkpoints(run):
        wrong = why_not(folder)
        if not wrong:
            return folder, passed_over
        passed_over.append(f"{folder.name}: {wrong}")
    return None, passed_over


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` complete checkpoints, once the newest of all has been verified. One that does
    not verify is left for its owner to look at."""
    found = checkpoints(run)
    if len(found) <= keep or why_not_usable(found[0]):
        return
    complete = [folder for folder in found if not why_not_usable(folder)]
    for folder in complete[keep:]:
        os.replace(folder, _unfinished(folder))
        shutil.rmtree(_unfinished(folder))


def sweep(run: Path) -> None:
    """Delete the remains of a save or prune that was killed."""
    for leftover in run.glob(".checkpoint-*.unfinished"):
        shutil.rmtree(leftover)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.unfinished")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, none in the memory of another, which safetensors refuses."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        apart[name] = own.clone() if own.untyped_storage().data_ptr() in seen else own
        seen.add(own.untyped_storage().data_ptr())
    return apart


def _disk_is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL)


def _needed(folder: Path, policy: Policy, state: TrainerState) -> str:
    needed = trained_bytes(policy) + sum(tensor.nbytes for tensor in state.tensors.values())
    free = shutil.disk_usage(folder.parent).free
    return (
        f"the disk is full: a checkpoint needs about {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free; "
        "nothing was written, and earlier checkpoints are intact. Make room, and go on with fit(..., resume=True)"
    )
