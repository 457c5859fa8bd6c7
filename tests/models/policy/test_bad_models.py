"""Damaged model folders, tokenizers and adapters, and impossible settings of a policy: refused by the name of the
folder, file or setting, never a crash in the depths, never random or wrong weights in silence."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from fakes import sequences_of
from generated import as_users_meet_it, outcome, refused, tries
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks.tasks.starting_models import from_base
from models import LoraSettings, TrainingSettings, load_policy, load_reward_model
from models.tiny import save_tiny
from rlhf_core.types import Limits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    return {
        load_policy: Path(save_tiny(root / "policy", "llama")),
        load_reward_model: Path(save_tiny(root / "reward", "gpt2", head="classifier")),
    }


@pytest.fixture(scope="module")
def policy(folders):
    return load_policy(str(folders[load_policy]))


# -- settings


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("lora", bad) for bad in ({"rank": 4}, True, LoraSettings)),
        *(("eos_ids", bad) for bad in (3, "ab", ["a"], [1.5], [True], [-1], [10**30])),
        *(("seed", bad) for bad in ("a", 1.5, -1, 10**30)),
        *(("device", bad) for bad in ("nosuch", None, "cuda:99")),
        *(("dtype", bad) for bad in ("float9", None, torch.float32, ["float32"])),
        *((flag, "no") for flag in ("four_bit", "trust_remote_code", "gradient_checkpointing", "compile_decoding")),
        *((name, bad) for name in ("autocast", "sampling_dtype") for bad in ("float16", 3, ["bfloat16"])),
        ("revision", 3),
    ],
)
def test_settings_of_a_policy_are_refused_by_name(folders, name, bad):
    if name == "device" and bad == "cuda:99" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    spoken = "EOS" if name == "eos_ids" and isinstance(bad, list) and type(bad[0]) is int else name
    refused(lambda: load_policy(str(folders[load_policy]), **{name: bad}), spoken)


@pytest.mark.parametrize("name", [None, 3, "", b"x", ["a"]])
@pytest.mark.parametrize("load", [load_policy, lambda name: load_reward_model(name, score="single_logit")])
def test_what_cannot_name_a_model_is_refused(load, name):
    refused(lambda: load(name), f"got {name!r}")


@pytest.mark.parametrize(
    "bad",
    [
        *({"rank": bad} for bad in ("8", 2.5, True, None, -1)),
        *({"alpha": bad} for bad in (math.nan, math.inf, "x")),
        *({"target_modules": bad} for bad in (3, (), "q_proj", (1,))),
    ],
    ids=str,
)
def test_adapter_settings_are_refused_by_name(bad):
    refused(lambda: LoraSettings(**bad), *bad)


@pytest.mark.parametrize("missing", [("nosuch",), ("q_proj", "nosuch"), ("q_proj", "v_porj")])
def test_adapter_modules_that_the_model_lacks_are_refused(folders, missing):
    lora = LoraSettings(target_modules=missing)
    with pytest.raises(ValueError, match="did you mean 'v_proj'" if "v_porj" in missing else "its linear layers are"):
        load_policy(str(folders[load_policy]), lora=lora)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (LoraSettings, "r", "LoraSettings: no setting 'r'; did you mean rank?"),
        (LoraSettings, "target_moduls", "did you mean 'target_modules'?"),
        (TrainingSettings, "lr", "TrainingSettings: no setting 'lr'; did you mean learning_rate?"),
    ],
)
def test_an_unknown_setting_names_the_one_that_was_meant(make, name, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make(**{name: 8})


@pytest.mark.parametrize(("dtype", "meant"), [("bf16", "bfloat16"), ("float_32", "float32")])
def test_an_unknown_dtype_names_the_nearest(folders, dtype, meant):
    with as_users_meet_it(), pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        load_policy(str(folders[load_policy]), dtype=dtype)


# -- folders


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def removed(*names):
    return lambda folder: [file.unlink() for name in names for file in folder.glob(name)]


def settings(name, **changes):
    """Settings changed in a JSON file."""

    def damage(folder):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def weights(change):
    def damage(folder):
        file = folder / "model.safetensors"
        state = load_file(file)
        change(state)
        save_file(state, file, {"format": "pt"})

    return damage


def spoil_one(value):
    def change(state):
        embedding = next(name for name in state if "embed_tokens" in name or "wte" in name)
        state[embedding][-1, 0] = value  # of a token that no check at loading reads

    return weights(change)


def both(*damages):
    return lambda folder: [damage(folder) for damage in damages]


def kin(name, **small):
    """A config of another architecture, small: what the weights do not fill would be random."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return settings("config.json", model_type=name, **(small or sizes))


ADAPTER = put("adapter_config.json", b'{"peft_type": "LORA", "base_model_name_or_path": "./none"}')
DAMAGES = {
    "an empty folder": removed("*"),
    **{
        f"{name} {word}": put(name, content)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
        for word, content in (
            ("empty", b""),
            ("cut", b'{"a": '),
            ("a list", b"[1]"),
            ("null", b"null"),
            ("bytes", b"\xff\xfe"),
        )
    },
    "no config": removed("config.json"),
    "config of nothing": put("config.json", b"{}"),
    "config of a list of types": settings("config.json", model_type=["gpt2"]),
    "config of an unknown type": settings("config.json", model_type="nosuch"),
    "config of T5": kin("t5", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    "config of BERT": kin("bert"),
    "config of ViT": kin("vit"),
    "fewer layers": settings("config.json", n_layer=1, num_hidden_layers=1),
    "more layers": settings("config.json", n_layer=3, num_hidden_layers=3),
    "negative layers": settings("config.json", n_layer=-1, num_hidden_layers=-1),
    "no heads": settings("config.json", n_head=0, num_attention_heads=0),
    "heads that do not divide": settings("config.json", n_head=3, num_attention_heads=3),
    "a width in words": settings("config.json", n_embd="wide", hidden_size="wide"),
    "another vocabulary": settings("config.json", vocab_size=31),
    "a negative vocabulary": settings("config.json", vocab_size=-5),
    "an unknown dtype": settings("config.json", dtype="float9"),
    "no weights": removed("model.safetensors"),
    "empty weights": put("model.safetensors", b""),
    "garbage weights": put("model.safetensors", b"\x08garbage" * 99),
    "a pickle named safetensors": lambda folder: torch.save({"a": torch.ones(1)}, folder / "model.safetensors"),
    "only .bin": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "a folder for weights": both(removed("model.safetensors"), lambda folder: (folder / "model.safetensors").mkdir()),
    "a missing tensor": weights(lambda state: state.pop(sorted(state)[0])),
    "no tensors": weights(lambda state: state.clear()),
    "a tensor of another shape": weights(lambda state: state.update({sorted(state)[0]: torch.ones(3)})),
    "a tensor renamed": weights(lambda state: state.update({"other": state.pop(sorted(state)[0])})),
    "NaN": spoil_one(math.nan),
    "infinity": spoil_one(math.inf),
    "whole numbers for weights": weights(lambda state: state.update({name: x.long() for name, x in state.items()})),
    "truth values for weights": weights(lambda state: state.update({name: x > 0 for name, x in state.items()})),
    "an index that is cut": both(removed("model.safetensors"), put("model.safetensors.index.json", b"{")),
    "an index without a map": both(removed("model.safetensors"), put("model.safetensors.index.json", b"{}")),
    "an index of a missing shard": both(
        removed("model.safetensors"),
        put("model.safetensors.index.json", b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}'),
    ),
    "no tokenizer": removed("tokenizer*"),
    "no tokenizer.json": removed("tokenizer.json"),
    "a tokenizer of nothing": put("tokenizer.json", b"{}"),
    "a tokenizer without model": settings("tokenizer.json", model=None),
    "a tokenizer without words": settings(
        "tokenizer.json", model={"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"}
    ),
    "a number for a special token": settings("tokenizer_config.json", eos_token=7),
    "an adapter that is cut": put("adapter_config.json", b"{"),
    "an adapter that is a list": put("adapter_config.json", b"[]"),
    "an adapter without weights": ADAPTER,
    "an adapter of garbage": both(ADAPTER, put("adapter_model.safetensors", b"x" * 99)),
    "an adapter of another kind": both(
        put("adapter_config.json", b'{"peft_type": "NOSUCH"}'), put("adapter_model.safetensors", b"x" * 99)
    ),
}
OF_A_POLICY = {
    "EOS beyond the vocabulary": settings("config.json", eos_token_id=999),
    "EOS in words": settings("config.json", eos_token_id="end"),
    "a new EOS token": settings("tokenizer_config.json", eos_token="<new>"),
    "EOS in words in the generation config": settings("generation_config.json", eos_token_id="end"),
    "a value head of garbage": put("value_head.safetensors", b"x" * 99),
    "an empty value head": put("value_head.safetensors", b""),
    **{
        f"a value head of {sorted(state)} {word}": lambda folder, state=state: save_file(
            state, folder / "value_head.safetensors"
        )
        for word, state in (
            ("alone", {"other": torch.ones(1)}),
            ("without bias", {"weight": torch.ones(1, 32)}),
            ("too wide", {"weight": torch.ones(1, 32), "bias": torch.ones(7)}),
            ("not finite", {"weight": torch.full((1, 32), math.nan), "bias": torch.ones(1)}),
            ("whole", {"weight": torch.ones(1, 32).long(), "bias": torch.ones(1).long()}),
        )
    },
}
LOADERS = {load_policy: load_policy, load_reward_model: lambda name: load_reward_model(name, score="single_logit")}


@pytest.fixture
def damaged(folders, tmp_path):
    """A function that copies a good folder, damages the copy, and loads it."""

    def load(loader, damage):
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folders[loader], folder)
        damage(folder)
        return lambda: LOADERS[loader](str(folder))

    return load


@pytest.mark.parametrize("loader", LOADERS, ids=["policy", "reward"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_folder_is_refused_by_name(damaged, loader, damage):
    refused(damaged(loader, damage), "case")


@pytest.mark.parametrize("damage", OF_A_POLICY.values(), ids=OF_A_POLICY)
def test_what_only_a_policy_reads_is_refused_by_name(damaged, damage):
    refused(damaged(load_policy, damage), "case")


def test_masks_that_older_versions_saved_and_other_heads_are_not_missed(damaged):
    extra = {"model.layers.0.attn.masked_bias": torch.ones(1), "score.weight": torch.ones(1, 32)}
    assert damaged(load_policy, weights(lambda state: state.update(extra)))().vocab_size == 32


def test_a_base_to_fine_tune_is_checked_alike(damaged, tmp_path):
    for damage in (DAMAGES["a missing tensor"], DAMAGES["NaN"], DAMAGES["empty weights"]):
        damaged(load_policy, damage)
        refused(lambda: from_base(str(tmp_path / "case"), context=16), "case")


FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


@pytest.mark.parametrize("loader", LOADERS, ids=["policy", "reward"])
@tries(25)
@given(change=st.tuples(st.sampled_from(FILES), st.floats(0, 1), st.one_of(st.none(), st.integers(0, 255))))
def test_a_file_cut_or_changed_anywhere_is_refused_or_gives_a_model_that_counts(damaged, loader, change):
    """Where one byte of a number or a name changes, nothing may show; then what the model gives is at least finite."""
    name, where, byte = change

    def damage(folder):
        file = folder / name
        if not file.exists():
            return
        content = bytearray(file.read_bytes())
        # in the header, where a file of weights has one: nine in ten bytes are numbers
        at = int(where * (len(content) - 1 if name != "model.safetensors" else 2000))
        if byte is None:
            del content[at:]
        else:
            content[at] = byte
        file.write_bytes(content)

    model, refusal = outcome(damaged(loader, damage), "case")
    if refusal:
        return
    sequences = sequences_of([[2, 3], [4]], [[5, 6, 7], [8]])
    with as_users_meet_it(), torch.no_grad():
        numbers = (
            model.evaluate(sequences, frozenset()).logprobs
            if loader is load_policy
            else model.score(sequences, frozenset()).scores
        )
    assert numbers.isfinite().all()


@tries(40)
@given(
    prompts=st.lists(st.lists(st.integers(-1, 40), min_size=1, max_size=4), min_size=1, max_size=3),
    low=st.integers(0, 3),
    high=st.integers(0, 6),
)
def test_a_policy_samples_within_limits_or_names_the_row(policy, prompts, low, high):
    rows = len(prompts)
    limits = Limits(min_lengths=torch.full((rows,), low), max_lengths=torch.full((rows,), high))
    uniforms = torch.full((rows, max(high, 1)), 0.5, dtype=torch.float64)
    found, refusal = outcome(lambda: policy.sample(prompts, limits, uniforms), "row", "lengths", "limits")
    if not refusal:
        assert found.prompts() == prompts
        assert (found.response_lengths <= high).all()
