"""Read only safetensors and JSON from a model folder, whatever its own files ask for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils.hub import cached_file

from rlhf_core.files.file_errors import reading

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SAFE_NAME = re.compile(r"\w[\w.-]*\.safetensors")
WAY_OUT = (
    "pickled weights can run code when read, so they are not. Where you trust them, convert them: "
    "python tools/convert_pickled_weights.py FOLDER NEW_FOLDER (in the project's repository), and load the new folder"
)
KERNEL_SETTINGS = ("attn_implementation", "experts_implementation")
KNOWN_KERNELS = ("eager", "sdpa", "", None)


def require_safe_files(name: str, revision: str | None) -> None:
    """Refuse a whole model, a folder or a hub name, whose loading would read a pickle or fetch code.

    Checked here because transformers follows the folder: its config may name the file of its weights, its index may
    name shards of any kind, and an attention implementation may be code on the hub. For a hub name without
    safetensors, transformers would look for ones that somebody proposed in a pull request.

    Raises:
        ValueError: weights that are not safetensors, an index that leaves the folder, a file that is not a JSON object,
            or a config that asks for compute kernels from elsewhere.
    """
    config = read_settings(name, "config.json", revision)
    foreign = [f"{key}={value!r}" for key, value in _kernels(config) if value not in KNOWN_KERNELS]
    if foreign:
        raise ValueError(
            f"the config.json of {name} asks for compute kernels that may be fetched and run ({', '.join(foreign)}); "
            "take these keys out of it"
        )
    named = config.get("transformers_weights")
    indices = [file for file in {INDEX, str(named)} if file.endswith(".index.json")]
    sharded = {file: index for file in indices if (index := read_settings(name, file, revision))}
    for file, index in sharded.items():  # whichever of them transformers may come to read
        _require_names(name, file, index.get("weight_map"))
    for file in (WEIGHTS, INDEX) if named is None else (str(named),):
        if file in sharded or (SAFE_NAME.fullmatch(file) and _stored(name, file, revision)):
            return
    where = "" if named is None else f" (its config.json names {named!r})"
    raise ValueError(f"{name} holds no safetensors weights{where}; {WAY_OUT}")


def _stored(name: str, file: str, revision: str | None) -> str | None:
    """Local path of a file of the folder or hub repository, None if it has none of that name."""
    path: str | None = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return path


def read_settings(name: str, file: str, revision: str | None) -> dict[str, Any]:
    """The JSON object in a file of a folder or hub repository; empty if the file is missing."""
    path = _stored(name, file, revision)
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as text:
            found = json.load(text)
    except ValueError as reason:
        raise ValueError(f"{file} of {name} is not JSON: {reason}") from reason
    if not isinstance(found, dict):
        raise ValueError(f"{file} of {name} holds a {type(found).__name__}, not a JSON object")
    return found


def _kernels(config: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Every implementation named in a config or in a part of it."""
    for key, value in config.items():
        if key.lstrip("_").removesuffix("_internal") in KERNEL_SETTINGS:
            yield from ((key, named) for named in (value.values() if isinstance(value, dict) else (value,)))
        elif isinstance(value, dict):
            yield from _kernels(value)


def _require_names(name: str, file: str, shards: object) -> None:
    if not isinstance(shards, dict):
        raise ValueError(f"{file} of {name} has no weight_map, which says where each weight is")
    outside = sorted({shard for shard in map(str, shards.values()) if not SAFE_NAME.fullmatch(shard)})
    if outside:
        raise ValueError(
            f"{file} of {name} names {outside[:3]}, which are not safetensors files of its folder; {WAY_OUT}"
        )
    _require_truth(name, file, shards)


def _require_truth(name: str, file: str, shards: dict[str, str]) -> None:
    """Refuse an index that contradicts the folder's files: of two tensors with one name, the last one read would win.
    Models on the hub are not checked, as their files are not downloaded yet."""
    if not Path(name).is_dir():
        return
    found: dict[str, str] = {}
    for shard in sorted(set(shards.values())):
        if not Path(name, shard).is_file():
            raise ValueError(f"{file} of {name} names {shard!r}, which is missing; get the whole folder again")
        with reading(str(Path(name, shard))), safe_open(Path(name, shard), framework="pt") as stored:
            names = list(stored.keys())
        twice = sorted(found.keys() & names)
        if twice:
            raise ValueError(f"{name} holds {twice[0]!r} twice, in {found[twice[0]]} and in {shard}; save it again")
        found |= dict.fromkeys(names, shard)
    wrong = sorted(key for key in shards.keys() | found.keys() if shards.get(key) != found.get(key))
    if wrong:
        raise ValueError(
            f"{file} of {name} says that {wrong[0]!r} is in {shards.get(wrong[0], 'no file')}, but it is in "
            f"{found.get(wrong[0], 'none')}; save the model again"
        )
