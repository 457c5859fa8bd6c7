"""The way out of a folder with pickled weights: a script outside the packages, run by whoever trusts the file."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evil import Evil
from safetensors.torch import load_file

from models import LoraSettings, load_policy, load_reward_model
from models.tiny import save_tiny

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "convert_pickled_weights.py"
IDS = torch.tensor([[2, 3, 4, 5]])


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("convert_pickled_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pickled(folder: Path, shards: int = 1, tied: tuple[str, str] | None = None) -> Path:
    """Replace the safetensors of a folder by what torch.save wrote in 2021."""
    file = folder / "model.safetensors"
    state = load_file(file)
    file.unlink()
    if tied:
        state[tied[1]] = state[tied[0]]
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    names = {key: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, key in enumerate(state)}
    for shard in set(names.values()):
        torch.save({key: state[key] for key, where in names.items() if where == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


@pytest.mark.parametrize(
    ("family", "shards", "tied"),
    [
        ("gpt2", 1, ("transformer.wte.weight", "lm_head.weight")),
        ("gpt2", 3, None),
        ("llama", 3, None),
        ("llama", 1, ("model.embed_tokens.weight", "lm_head.weight")),
    ],
)
def test_a_converted_folder_computes_the_same(tmp_path, tool, family, shards, tied):
    settings = {"tie_word_embeddings": True} if tied and family == "llama" else {}
    folder = Path(save_tiny(tmp_path / "old", family, **settings))
    wanted = load_policy(str(folder)).language_model(IDS).logits
    pickled(folder, shards, tied)
    with pytest.raises(ValueError, match=r"no safetensors weights.*tools/convert_pickled_weights\.py"):
        load_policy(str(folder))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    tool.main([str(folder), str(tmp_path / "deep" / "new"), "--trust_this_file"])
    policy = load_policy(str(tmp_path / "deep" / "new"))
    assert torch.equal(policy.language_model(IDS).logits, wanted)
    assert policy.encode(["w2 w3"]) == [[2, 3]]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert not list((tmp_path / "deep").rglob("*.bin*"))
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["new"]


def test_reward_models_and_adapters_are_converted(tmp_path, tool):
    base = save_tiny(tmp_path / "base", "llama")
    (tmp_path / "adapter").mkdir()
    policy = load_policy(base, lora=LoraSettings(rank=4))
    policy.save(str(tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    torch.save(weights, tmp_path / "adapter" / "adapter_model.bin")
    file.unlink()
    with pytest.raises(ValueError, match=r"adapter without.*tools/convert_pickled_weights\.py"):
        load_policy(str(tmp_path / "adapter"))
    tool.convert(tmp_path / "adapter", tmp_path / "new")
    found = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    load_policy(str(tmp_path / "new"))

    save_tiny(tmp_path / "reward", "gpt2", head="classifier")
    tool.convert(pickled(tmp_path / "reward"), tmp_path / "new reward")
    load_reward_model(str(tmp_path / "new reward"), score="single_logit")


def test_nothing_is_read_without_the_flag_and_nothing_is_overwritten(tmp_path, tool, capsys, monkeypatch):
    folder = pickled(Path(save_tiny(tmp_path / "old")))
    with monkeypatch.context() as never:
        never.setattr(torch, "load", lambda *_, **__: pytest.fail("read"))
        with pytest.raises(SystemExit):
            tool.main([str(folder), str(tmp_path / "new")])
        assert "can run code on your machine" in capsys.readouterr().err
        (tmp_path / "taken").mkdir()
        with pytest.raises(SystemExit):
            tool.main([str(folder), str(tmp_path / "taken"), "--trust_this_file"])
        assert "name a folder that does not" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_code_in_the_pickle_does_not_run_and_nothing_is_left(tmp_path):
    """The real command, in its own process."""
    folder = Path(save_tiny(tmp_path / "old"))
    (folder / "model.safetensors").unlink()
    Evil(tmp_path / "ran").plant(folder / "pytorch_model.bin")
    command = [sys.executable, str(SCRIPT), str(folder), str(tmp_path / "new"), "--trust_this_file"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "holds more than weights, and is better left alone" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "pytorch_model.bin").unlink(), "nothing to convert"),
        (lambda folder: torch.save({"state_dict": {}}, folder / "pytorch_model.bin"), "no state dict of weights"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path, tool, change, said):
    folder = pickled(Path(save_tiny(tmp_path / "old")))
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        tool.convert(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_shards_outside_the_folder_are_refused(tmp_path, tool):
    folder = pickled(Path(save_tiny(tmp_path / "old")), shards=2)
    index = folder / "pytorch_model.bin.index.json"
    shutil.move(folder / "pytorch_model-00001-of-00002.bin", tmp_path / "elsewhere.bin")
    index.write_text(index.read_text().replace("pytorch_model-00001-of-00002.bin", "../elsewhere.bin"))
    with pytest.raises(ValueError, match=r"'\.\./elsewhere\.bin', which lies outside"):
        tool.convert(folder, tmp_path / "new")
