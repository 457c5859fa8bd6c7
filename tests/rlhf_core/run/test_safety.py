"""No code from files, no pickles, no network unasked, no secrets written. SECURITY.md names these tests."""

import ast
import configparser
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from evil import Evil
from safetensors import SafetensorError
from safetensors.torch import load_file

from benchmarks.tasks.starting_models import from_base
from models import LoraSettings, load_policy, load_reward_model
from models.rewards.trunk import load_trunk
from models.tiny import save_tiny
from models.training.finetuning import adapted_reward_model
from models.weights.source import ModelSource

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("rlhf_core", "redistributors", "models", "benchmarks")
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
READERS = {"torch.load", "torch.save", "torch.jit.load", "torch.jit.save", "accelerator.save_state"}
UNSAFE = {"weights_only": "False", "use_safetensors": "False", "safe_serialization": "False", "allow_pickle": "True"}
REMOTE = "a" * 40


def pickling(source: str) -> list[str]:
    """What in a module reads or writes pickles."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names, keywords = [], []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Call):
            keywords = [(keyword.arg, ast.unparse(keyword.value)) for keyword in node.keywords]
            names = [str(word.value) for word in node.args if isinstance(word, ast.Constant)]  # import_module("pickle")
        found += [name for name in names if name.split(".")[0] in PICKLERS or name in READERS]
        found += [name for name in names if name.endswith((".read_pickle", ".to_pickle"))]
        found += [f"{name}={value}" for name, value in keywords if UNSAFE.get(name) == value]
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import joblib.numpy_pickle as fast",
        "from dill import loads",
        "from torch import load",
        "torch.save(state, path)",
        "read = torch.load",
        "numpy.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, use_safetensors=False)",
        "importlib.import_module('pickle')",
        "frame.to_pickle(path)",
    ],
)
def test_the_search_for_pickles_finds_one(line):
    assert pickling(line)


def test_no_module_reads_or_writes_a_pickle():
    """By syntax, so that a comment or a message may name one."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    assert {str(file): found for file in files if (found := pickling(file.read_text()))} == {}


def test_every_model_is_loaded_from_safetensors():
    """One call reads whole models, and says use_safetensors; the others of that name read adapters, configs, words. The
    published stack, a process of its own for timing, reads what the benchmark has just written."""
    found = {}
    for file in (
        file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if "published_stack" not in file.parts
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            reader, _, method = name.rpartition(".")
            if method == "from_pretrained" and reader not in ("PeftModel", "PeftConfig", "AutoTokenizer", "AutoConfig"):
                found[file.name] = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    assert found.keys() == {"language_model.py"}
    assert found["language_model.py"]["use_safetensors"] == "True"


# -- planted pickles


PLANTED = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt",
           "rng_state.pth", "tokenizer.pkl", "value_head.bin", "value_head.pt")  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Folders as the loaders expect them: a policy and a reward model, whole and as adapters."""
    root = tmp_path_factory.mktemp("good")
    base = save_tiny(root / "policy", "llama")
    save_tiny(root / "reward", "llama", head="classifier")
    (root / "adapter").mkdir()
    load_policy(base, lora=LoraSettings(rank=2)).save(str(root / "adapter"))
    load_policy(base).value_head.save(base)
    (root / "reward-adapter").mkdir()
    adapted = adapted_reward_model(ModelSource(name_or_path=base), LoraSettings(rank=2), seed=0, checkpointing=False)
    adapted.save(str(root / "reward-adapter"))
    return root


def reward(folder: str):
    return load_reward_model(folder, score="single_logit")


LOADERS = {
    "policy": load_policy,
    "adapter": load_policy,
    "reward": reward,
    "reward-adapter": reward,
}


@pytest.fixture
def planted(good, tmp_path) -> Path:
    """The same folders, adapters on the copied base, with a pickle that runs code under every usual name."""
    root = tmp_path / "planted"
    shutil.copytree(good, root)
    for config in root.glob("*/adapter_config.json"):
        config.write_text(config.read_text().replace(str(good), str(root)))
    for folder in root.iterdir():
        for name in PLANTED:
            Evil(tmp_path / "ran").plant(folder / name)
    return root


def test_a_planted_pickle_would_run(tmp_path):
    Evil(tmp_path / "ran").plant(tmp_path / "file.bin")
    pickle.loads((tmp_path / "file.bin").read_bytes())
    assert (tmp_path / "ran").exists()


def test_pickles_beside_good_files_are_never_read(planted, tmp_path):
    def never(*_, **__):
        raise AssertionError("a pickle was opened")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", never)  # its restricted reader would not run it, but is not to be asked either
        for folder, load in LOADERS.items():
            load(str(planted / folder))
        load_trunk(ModelSource(name_or_path=str(planted / "policy")), labels=1)
        from_base(str(planted / "policy"), context=8)
    assert not (tmp_path / "ran").exists()


def only_pickles(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def named_in_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))


def named_in_index(name: str):
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        only_pickles(folder)
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def disguised(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        shutil.copy(folder / "pytorch_model.bin", file)


TRICKS = {
    "no safetensors": (only_pickles, r"tools/convert_pickled_weights\.py"),
    "config": (named_in_config, r"names 'adapter_model\.bin'.*convert_pickled"),
    "index": (named_in_index("pytorch_model.bin"), r"\['pytorch_model\.bin'\], which are not safetensors"),
    "parent": (named_in_index("../reward/model.safetensors"), "not safetensors files of its folder"),
    "absolute": (named_in_index("/etc/model.safetensors"), "not safetensors files of its folder"),
    "disguised": (disguised, "header|Header"),
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("folder", ["policy", "reward", "adapter", "reward-adapter"])
def test_a_folder_that_asks_for_its_pickle_is_refused(planted, tmp_path, folder, trick):
    """Through its config, its index, or under a safe file's name; for an adapter, its base asks."""
    change, said = TRICKS[trick]
    change(planted / ("policy" if "adapter" in folder else folder))
    with pytest.raises((ValueError, SafetensorError), match=said):
        LOADERS[folder](str(planted / folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", ["adapter", "reward-adapter"])
@pytest.mark.parametrize(("change", "said"), [(only_pickles, "convert_pickled"), (disguised, "eader")])
def test_an_adapter_of_pickles_is_refused(planted, tmp_path, folder, change, said):
    change(planted / folder)
    with pytest.raises((ValueError, SafetensorError), match=said):
        LOADERS[folder](str(planted / folder))
    assert not (tmp_path / "ran").exists()


def test_a_value_head_that_is_a_pickle_is_refused(planted, tmp_path):
    Evil(tmp_path / "ran").plant(planted / "policy" / "value_head.safetensors")
    with pytest.raises(ValueError, match="policy cannot be read: SafetensorError"):
        load_policy(str(planted / "policy"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("written", ["[]", "{", '{"weight_map": 3}', "{}"])
def test_a_damaged_index_is_named(planted, written):
    only_pickles(planted / "policy")
    (planted / "policy" / "model.safetensors.index.json").write_text(written)
    with pytest.raises(
        ValueError,
        match=r"of .*policy|policy holds no safetensors|policy/model.safetensors.index.json (must|is damaged)",
    ):
        load_policy(str(planted / "policy"))


@pytest.mark.parametrize(
    "asked",
    [
        {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": "flash_attention_2"},
        {"text_config": {"attn_implementation": {"": "owner/kernel@main"}}},
        {"_experts_implementation": "owner/kernel"},
    ],
)
@pytest.mark.parametrize("folder", LOADERS)
def test_a_config_that_asks_for_code_from_the_hub_is_refused(planted, folder, asked):
    file = planted / ("policy" if "adapter" in folder else folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | asked))
    with pytest.raises(ValueError, match=r"compute kernels .*take these keys out"):
        LOADERS[folder](str(planted / folder))


def test_a_hub_model_without_safetensors_is_refused_before_transformers_looks_for_a_proposed_conversion(monkeypatch):
    monkeypatch.setattr("models.weights.adapters.cached_file", lambda *_, **__: None)
    monkeypatch.setattr("models.weights.safe_files.cached_file", lambda *_, **__: None)
    monkeypatch.setattr("models.weights.source._why_unreachable", lambda: "")
    for load in (load_policy, reward):
        with pytest.raises(ValueError, match=r"owner/old-model holds no safetensors weights.*convert_pickled"):
            load("owner/old-model")


# -- code that comes with a model


@pytest.mark.parametrize("folder", LOADERS)
def test_code_of_a_folder_runs_only_when_asked_for_with_a_commit(planted, tmp_path, folder):
    where = planted / ("policy" if "adapter" in folder else folder)
    config = json.loads((where / "config.json").read_text())
    code = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification"), "evil.Thing")
    (where / "config.json").write_text(json.dumps(config | {"model_type": "strange", "auto_map": code}))
    (where / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        LOADERS[folder](str(planted / folder))
    for revision in (None, "main", "v1.0", REMOTE[:39]):
        options = {"score": "single_logit"} if "reward" in folder else {}
        load = load_reward_model if "reward" in folder else load_policy
        with pytest.raises(ValueError, match="40 hex digits"):
            load(str(planted / folder), trust_remote_code=True, revision=revision, **options)
    assert not (tmp_path / "ran").exists()


def test_the_base_of_an_adapter_needs_a_commit_of_its_own(planted):
    for load in (load_policy, partial(load_reward_model, score="single_logit")):
        folder = planted / ("adapter" if load is load_policy else "reward-adapter")
        with pytest.raises(ValueError, match=r"trust_remote_code runs code that comes with '.*policy'.*revision=None"):
            load(str(folder), trust_remote_code=True, revision=REMOTE)


class Asked(BaseException):
    """What a loader of transformers was asked for; not an error that anything on the way out may word anew."""


@pytest.mark.parametrize("folder", ["policy", "reward"])
def test_the_commit_pins_code_that_lives_in_another_repository_too(good, folder, monkeypatch):
    def stop(name, **options):
        raise Asked(options)

    kind = "CausalLM" if folder == "policy" else "SequenceClassification"
    home = {"policy": "models.weights.language_model", "reward": "models.rewards.loading"}[folder]
    monkeypatch.setattr(f"{home}.AutoModelFor{kind}.from_pretrained", stop)
    options = {"score": "single_logit"} if folder == "reward" else {}
    load = load_reward_model if folder == "reward" else load_policy
    with pytest.raises(Asked) as asked:
        load(str(good / folder), trust_remote_code=True, revision=REMOTE, **options)
    found = asked.value.args[0]
    assert (found["trust_remote_code"], found["revision"], found["code_revision"]) == (True, REMOTE, REMOTE)
    with pytest.raises(Asked) as asked:
        load(str(good / folder), **options)
    assert asked.value.args[0]["trust_remote_code"] is False


# -- network and secrets


SECRETS = {
    "HF_TOKEN": "hf_planted0Token1For2Tests3",
    "OPENAI_API_KEY": "sk-planted-key-for-tests-4711",
    "WANDB_API_KEY": "0123456789abcdefplanted0123456789abcdef0",
}
RUN = """
import socket, sys
from pathlib import Path

asked = []
def refuse(*where, **__):
    asked.append(str(where))
    raise OSError("no network in this test")
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse

from benchmarks.base.run_folder import claim_folder, run_record
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.judging.chat_endpoint import EndpointJudge
from benchmarks.judging.settings import EndpointSettings
from models import LoraSettings, load_policy, load_reward_model
from redistributors import RewardAttention
from rlhf_core import PPOConfig, PPOTrainer

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
endpoint = EndpointSettings(url="https://example.org/v1", model="judge", api_key_env="OPENAI_API_KEY")
judge = EndpointJudge(settings=endpoint)
claim_folder(out, run_record(ComparisonSettings(), {"judge": str(judge.identity)}, made_by="test"), overwrite=False)
reward = load_reward_model(str(folder / "reward"), score="single_logit")
load_reward_model(str(folder / "reward-adapter"), score="single_logit")
config = PPOConfig(rollout_batch_size=2, minibatch_size=1, min_length=2, max_length=(3, 4))
for name, options in {"policy": {}, "lora": {"lora": LoraSettings(rank=2)}, "adapter": {}}.items():
    policy = load_policy(str(folder / ("policy" if name == "lora" else name)), **options)
    PPOTrainer(policy, reward, RewardAttention(), config).fit(["w2 w3", "w4"], 1, out=str(out / name))
    load_policy(str(out / name / "checkpoint-1" / "policy"))
try:
    socket.create_connection(("example.org", 443))
except OSError:
    print("asked:", len(asked), asked[:-1])
"""


@pytest.mark.slow
def test_a_run_from_local_folders_asks_no_network_and_writes_no_secret(good, tmp_path):
    """Hub online, tokens set: a fresh process loads, trains, records, saves and loads again without one connection."""
    online = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    homes = {"HF_HOME": str(tmp_path / "hub"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", RUN, str(good), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=online | homes | SECRETS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("asked: 1 []")  # its own attempt, which shows that attempts are counted
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"run.json", "metrics.jsonl", "samples.jsonl", "state.json", "tokenizer_config.json"} <= {
        file.name for file in written
    }
    leaks = [
        (str(file), name) for file in written for name, key in SECRETS.items() if key.encode() in file.read_bytes()
    ]
    assert leaks == []
    assert not [name for name, key in SECRETS.items() if key in done.stdout + done.stderr]
    assert not [file for file in written if file.suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle"}]


FAKES = {
    "kernels/__init__.py": """
import pathlib
def get_kernel(*_, **__):
    pathlib.Path(__file__).with_name("fetched").touch()
    raise ImportError("a kernel was asked for")
""",
    "bitsandbytes/__init__.py": """
import os, pathlib
from huggingface_hub import is_offline_mode
found = pathlib.Path(__file__).with_name("found")
found.write_text(f"{os.environ.get('HF_HUB_OFFLINE')} {is_offline_mode()}")
try:
    from kernels import get_kernel
    get_kernel("kernels-community/quantization-bitsandbytes", version=1)
except ImportError:
    pass
""",
}


@pytest.mark.parametrize(
    ("statement", "fetched", "found"),
    [
        ("import bitsandbytes", True, "None False"),
        pytest.param(
            "import benchmarks.cost.memory_measurement", False, "1 True", marks=pytest.mark.slow
        ),  # which imports models, and uses PEFT itself
        pytest.param(
            "import models.training.supervised", False, "1 True", marks=pytest.mark.slow
        ),  # which imports Trainer, and Trainer PEFT
    ],
)
def test_bitsandbytes_cannot_fetch_code_while_it_is_imported(tmp_path, statement, fetched, found):
    """As it does on CPUs with AVX512-BF16 where ``kernels`` is installed; afterwards everything is as it was."""
    for name, source in FAKES.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(source)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {statement}; import os, kernels, huggingface_hub as hub;"
        "print(os.environ.get('HF_HUB_OFFLINE'), hub.is_offline_mode(), callable(kernels.get_kernel))"
    )
    online = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=online, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None False True"
    assert (tmp_path / "bitsandbytes" / "found").read_text() == found
    assert (tmp_path / "kernels" / "fetched").exists() == fetched


def test_kernels_is_no_dependency():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extras = dict(settings["options.extras_require"]).values()
    listed = "\n".join([settings["options"]["install_requires"], *extras, (ROOT / "constraints.txt").read_text()])
    assert "bitsandbytes" in listed
    assert not re.search(r"^\s*kernels\b", listed, re.MULTILINE)
