"""A checkpoint that a stranger altered and sealed again: refused by the name of the file, and nothing has changed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from resumable import CONFIG, PROMPTS, share_of_threes
from safetensors.torch import load_file, save_file

from models import LoraSettings, load_policy, load_reward_model
from models.tiny import save_tiny
from redistributors import REDISTRIBUTORS
from rlhf_core import PPOTrainer, TokenReward
from rlhf_core.run import manifest
from rlhf_core.run.checkpoint import STATE, TENSOR_FILE, _forms


def trainer(root: Path, kind: str) -> PPOTrainer:
    policy = load_policy(str(root / "policy"), lora=LoraSettings(rank=2) if kind == "adapter" else None)
    reward = load_reward_model(str(root / "reward"), score="single_logit") if kind == "adapter" else None
    method = REDISTRIBUTORS["potential-projection" if kind == "adapter" else "uniform"]()
    return PPOTrainer(policy, reward or TokenReward(share_of_threes), method, CONFIG)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    save_tiny(root / "policy", "llama", hidden_size=16, n_layers=1)
    save_tiny(root / "reward", "llama", head="classifier", hidden_size=16, n_layers=1)
    for kind in ("whole", "adapter"):
        trainer(root, kind).fit(PROMPTS, 1, out=root / kind)
    return root


def reseal(folder: Path) -> None:
    """A stranger makes all that says what a checkpoint holds fit what it does hold."""
    state = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(json.dumps(state | {"tensors": _forms(folder / TENSOR_FILE)}))
    (folder / manifest.NAME).unlink()
    manifest.seal(folder)


def tensors(name: str, change):
    def damage(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name, {"format": "pt"})

    return damage


def spoilt(part: str, value: float = float("nan")):
    """The first fraction of the first tensor with ``part`` in its name."""

    def change(state: dict[str, torch.Tensor]) -> None:
        key = next(key for key in sorted(state) if part in key)
        state[key].view(-1)[0] = value

    return change


def indexed(target: str):
    def damage(folder: Path) -> None:
        weights = folder / "policy" / "model.safetensors"
        names = load_file(weights)
        if not target.startswith("/"):
            (folder / "policy" / target).resolve().write_bytes(weights.read_bytes())
        weights.unlink()
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, target)}
        (folder / "policy" / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def twice(folder: Path) -> None:
    """A second shard with a tensor of the first: the last one read would win."""
    policy = folder / "policy"
    state = load_file(policy / "model.safetensors")
    save_file(state, policy / "a.safetensors", {"format": "pt"})
    save_file({"lm_head.weight": state["lm_head.weight"]}, policy / "b.safetensors", {"format": "pt"})
    index = {"weight_map": {**dict.fromkeys(state, "a.safetensors"), "lm_head.weight": "b.safetensors"}}
    (policy / "model.safetensors").unlink()
    (policy / "model.safetensors.index.json").write_text(json.dumps(index))


def named_elsewhere(folder: Path) -> None:
    """The config names one file, which is good, and the index, which nothing asks for, another."""
    file = folder / "policy" / "config.json"
    shutil.copy(folder / "policy" / "model.safetensors", folder / "policy" / "good.safetensors")
    indexed("stranger.bin")(folder)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"transformers_weights": "good.safetensors"}))


MODEL, HEAD, ADAPTER = "policy/model.safetensors", "policy/value_head.safetensors", "policy/adapter_model.safetensors"
TRAINER = "trainer.safetensors"
ALTERED = {
    "an index of a pickle": ("whole", indexed("stranger.bin"), "not safetensors files of its folder"),
    "an index of an absolute path": ("whole", indexed("/stranger.safetensors"), "not safetensors files of its"),
    "an index of a file above": ("whole", indexed("../../../stranger.safetensors"), "not safetensors files of its"),
    "an index that is not asked for": ("whole", named_elsewhere, "not safetensors files of its folder"),
    "a tensor in two shards": ("whole", twice, "holds 'lm_head.weight' twice"),
    "NaN weights": ("whole", tensors(MODEL, spoilt("embed")), "embed_tokens.weight holds values that are not finite"),
    "an infinite weight": ("whole", tensors(MODEL, spoilt("norm", float("inf"))), "holds values that are not finite"),
    "a missing weight": ("whole", tensors(MODEL, lambda state: state.pop("model.norm.weight")), "model.norm.weight"),
    "a weight too many": ("whole", tensors(MODEL, lambda state: state.update({"model.x": torch.ones(1)})), "model.x"),
    "a NaN value head": ("whole", tensors(HEAD, spoilt("weight")), "weight holds values that are not finite"),
    "a NaN adapter": ("adapter", tensors(ADAPTER, spoilt("lora_A")), "lora_A.weight holds values that are not finite"),
    "half an adapter": ("adapter", tensors(ADAPTER, lambda state: state.pop(sorted(state)[0])), "tensors differ"),
    "a NaN moment": ("whole", tensors(TRAINER, spoilt("exp_avg")), "exp_avg holds values that are not finite"),
    "a negative moment": ("whole", tensors(TRAINER, spoilt("0/exp_avg_sq", -1.0)), "exp_avg_sq of parameter 0 is neg"),
    "a missing moment": ("whole", tensors(TRAINER, lambda state: state.pop("optimizer.0/exp_avg")), "of parameter 0"),
    "a strange tensor": ("whole", tensors(TRAINER, lambda state: state.update(x=torch.ones(1))), "'x'. belong to no"),
    "tensors of another method": (
        "whole", tensors(TRAINER, lambda state: state.update({"redistributor.gram": torch.ones(1)})), "belong to no"
    ),
    "a NaN fit": ("adapter", tensors(TRAINER, spoilt("gram")), "gram holds values that are not finite"),
    "a fit of another dtype": (
        "adapter", tensors(TRAINER, lambda state: state.update({"redistributor.weight": torch.ones(())})), "float64"
    ),
    "half a fit": ("adapter", tensors(TRAINER, lambda state: state.pop("redistributor.product")), "product is missing"),
}  # fmt: skip


def state_of(made: PPOTrainer):
    state = made.state()
    held = {**state.tensors, **{f"policy {place}": weight for place, weight in enumerate(made.policy.parameters())}}
    return json.dumps(state.numbers, default=str), {name: tensor.detach().clone() for name, tensor in held.items()}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_checkpoint_changes_nothing(runs, tmp_path, name):
    kind, damage, said = ALTERED[name]
    folder = tmp_path / "run" / "checkpoint-1"
    shutil.copytree(runs / kind / "checkpoint-1", folder)
    made = trainer(runs, kind)
    damage(folder)
    reseal(folder)
    assert manifest.why_not_whole(folder) == ""
    numbers, before = state_of(made)
    with pytest.raises(ValueError, match=said) as refused:
        made.restore(folder)
    assert str(folder) in str(refused.value)
    after_numbers, after = state_of(made)
    assert after_numbers == numbers
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_an_honest_copy_is_restored_whatever_code_its_config_asks_for(runs, tmp_path, kind):
    folder = tmp_path / "checkpoint-1"
    shutil.copytree(runs / kind / "checkpoint-1", folder)
    if kind == "whole":
        file = folder / "policy" / "config.json"
        asked = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, "hidden_act": "relu"}
        file.write_text(json.dumps(json.loads(file.read_text()) | asked))
        (folder / "policy" / "evil.py").write_text("raise RuntimeError('ran')")
    reseal(folder)
    made = trainer(runs, kind)
    made.restore(folder)
    assert made.steps_done == 1
    saved = load_file(folder / "policy" / "value_head.safetensors")
    assert torch.equal(made.policy.value_head.linear.weight, saved["weight"])


def test_a_file_that_is_a_link_out_of_its_folder_is_not_read(runs, tmp_path):
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        folder = tmp_path / file / "policy"
        shutil.copytree(runs / "policy", folder)
        (folder / file).rename(folder.parent / file)
        (folder / file).symlink_to(Path("..") / file)
        with pytest.raises(ValueError, match=rf"{file} is a link to .*, outside of its folder; put a copy"):
            load_policy(str(folder))
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)  # as the hub's cache lays files out
    shutil.copytree(runs / "policy", snapshot)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot / "config.json").rename(snapshot.parents[1] / "blobs" / "b")
    (snapshot / "config.json").symlink_to("../../blobs/b")
    assert load_policy(str(snapshot)).vocab_size == 32


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # PEFT's, of what is refused here
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop(sorted(state)[0]), "lacks .*lora_A.*, which the adapter needs"),
        (lambda state: state.update({"base_model.model.other.lora_A.weight": torch.ones(2, 2)}), "has no place"),
        (spoilt("lora_B", float("inf")), "lora_B.weight holds values that are not finite"),
    ],
)
def test_an_adapter_must_be_whole(runs, tmp_path, change, said):
    folder = tmp_path / "adapter"
    shutil.copytree(runs / "adapter" / "checkpoint-1" / "policy", folder)
    tensors("adapter_model.safetensors", change)(folder)
    with pytest.raises(ValueError, match=said) as refused:
        load_policy(str(folder))
    assert str(folder) in str(refused.value)
