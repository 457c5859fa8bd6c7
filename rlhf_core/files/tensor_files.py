"""Tensors from a file that others may have written: read from its own folder, and compared with what is expected."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from rlhf_core.files.file_errors import reading


def require_own_file(file: Path) -> None:
    """Refuse a file that lies outside its folder: a link could expose other files, a pipe would block.

    Raises:
        ValueError: naming it, and where a link leads.
    """
    home, place = file.parent.resolve(), file.resolve()
    # the hub's cache keeps what a snapshot holds beside it
    homes = (home, home.parents[1] / "blobs") if home.parent.name == "snapshots" else (home,)
    if file.is_symlink() and not any(place.is_relative_to(home) for home in homes):
        raise ValueError(f"{file} is a link to {place}, outside of its folder; put a copy of the file in its place")
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is not a regular file; move it away")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; raises ValueError naming the file where it cannot be read."""
    require_own_file(file)
    with reading(str(file)):
        return load_file(file)


def require_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first tensor of ``name`` that holds NaN or infinity."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: {key} holds values that are not finite; it is damaged or diverged")


def require_same_tensors(name: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors whose names, shapes or dtypes differ from those they replace, or that are not finite.

    Raises:
        ValueError: naming the first few that differ.
    """
    kinds = [
        {key: f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for key, tensor in some.items()}
        for some in (found, wanted)
    ]
    differing = sorted(key for key in kinds[0].keys() | kinds[1].keys() if kinds[0].get(key) != kinds[1].get(key))
    if differing:
        told = "; ".join(
            f"{key} is {kinds[0].get(key, 'missing')}, expected: {kinds[1].get(key, 'none of that name')}"
            for key in differing[:3]
        )
        raise ValueError(f"{name} belongs to something else, as {len(differing)} of its tensors differ: {told}")
    require_finite(name, found)
