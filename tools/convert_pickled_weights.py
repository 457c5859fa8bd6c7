"""Convert pickled weights (pytorch_model.bin, its shards, or adapter_model.bin) to safetensors, in a new folder.

    python tools/convert_pickled_weights.py FOLDER NEW_FOLDER --trust_this_file

This project reads no pickles: they are programs, and reading one runs it. This script does read one, with PyTorch's
restricted reader (weights_only=True), which refuses code but has had holes. So run it only on files whose origin you
trust, best on a machine that holds nothing of value. It is no part of the packages and is called by none of them.

All weights are in memory once. Config, tokenizer and other text files are copied; nothing that exists is overwritten.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file, save_file

INDEX = "pytorch_model.bin.index.json"
WRITTEN_AS = {"pytorch_model.bin": "model.safetensors", "adapter_model.bin": "adapter_model.safetensors"}
COPIED = {".json", ".txt", ".model", ".jinja", ".md"}


def convert(folder: Path, new_folder: Path) -> Path:
    """Write ``new_folder`` (complete, or not at all) and return the file of its weights.

    Raises:
        FileExistsError: ``new_folder`` exists.
        FileNotFoundError: no pickled weights, or a shard is missing.
        ValueError: a shard outside the folder, two shards with the same weight, or something that is no tensor.
    """
    if new_folder.exists():
        raise FileExistsError(f"{new_folder} exists; name a folder that does not")
    sources = list(_pickles(folder))
    weights = _weights(sources)
    name = WRITTEN_AS.get(sources[0].name, "model.safetensors")
    new_folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=new_folder.parent, prefix=f".{new_folder.name}.") as scratch:
        unfinished = Path(scratch, new_folder.name)
        unfinished.mkdir()
        save_file(weights, unfinished / name, metadata={"format": "pt"})
        _require_same(weights, load_file(unfinished / name))
        for file in sorted(folder.iterdir()):
            if file.suffix in COPIED and file.is_file() and file.name != INDEX:
                shutil.copyfile(file, unfinished / file.name)
        unfinished.rename(new_folder)
    return new_folder / name


def _pickles(folder: Path) -> Iterator[Path]:
    """The one file of weights, or the shards that the index names."""
    index = folder / INDEX
    whole = [folder / name for name in WRITTEN_AS if (folder / name).is_file()]
    if not whole and not index.is_file():
        raise FileNotFoundError(
            f"{folder} holds none of {', '.join((*WRITTEN_AS, INDEX))}; there is nothing to convert"
        )
    if whole:
        yield whole[0]
        return
    for shard in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
        if Path(shard).name != shard:
            raise ValueError(f"{index} names {shard!r}, which lies outside the folder")
        yield folder / shard


def _weights(sources: list[Path]) -> dict[str, torch.Tensor]:
    """Every weight on its own: tied ones are written twice, which is right whether or not the model ties them."""
    weights: dict[str, torch.Tensor] = {}
    for source in sources:
        state = torch.load(source, map_location="cpu", weights_only=True)
        odd = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
        if odd or weights.keys() & state.keys():
            raise ValueError(
                f"{source} is no state dict of weights: {(odd or sorted(weights.keys() & state.keys()))[:3]}"
            )
        weights |= {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    return weights


def _require_same(written: dict[str, torch.Tensor], read: dict[str, torch.Tensor]) -> None:
    same = written.keys() == read.keys() and all(
        value.dtype == read[name].dtype
        and torch.equal(value.view(-1).view(torch.uint8), read[name].view(-1).view(torch.uint8))
        for name, value in written.items()
    )
    if not same:
        raise RuntimeError("what was written is not what was read; the disk or its memory is faulty")


def main(argv: list[str] | None = None) -> None:
    """Command line; without the flag it says what it would do, and ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a local folder with pickled weights")
    parser.add_argument("new_folder", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--trust_this_file", action="store_true", help="you know where the weights come from")
    chosen = parser.parse_args(argv)
    if not chosen.trust_this_file:
        parser.error(
            f"this reads a pickle in {chosen.folder}, which can run code on your machine. If you trust whoever made "
            "it, pass --trust_this_file"
        )
    try:
        print(f"written to {convert(chosen.folder, chosen.new_folder)}")
    except (OSError, ValueError) as reason:
        parser.error(str(reason))
    except UnpicklingError as reason:
        parser.error(f"{chosen.folder} holds more than weights, and is better left alone: {reason}")


if __name__ == "__main__":
    main()
