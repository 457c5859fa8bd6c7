"""A policy on the hub: only when asked, only what loading it needs, and nothing of this machine."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from stub_hub import serving

from models import LoraSettings, load_policy, push_to_hub
from models.policy.publishing import FOLDER, policy_files, require_name, require_ready, require_shared_base
from models.tiny import save_tiny
from rlhf_core.run.model_card import write_model_card

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of huggingface_hub's own upload
STRANGERS = ("optimizer.pt", "pytorch_model.bin", "trainer.safetensors", "state.json", "training_args.bin", "notes.txt")


@pytest.fixture
def hub(monkeypatch):
    with serving(monkeypatch) as one:
        yield one


def saved(tmp_path: Path, name: str = "policy", **options) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    load_policy(save_tiny(tmp_path / "secret home" / "my-base", "llama"), **options).save(str(folder))
    write_model_card(folder, state={"steps_done": 7}, metrics={"score": 1.0})
    return folder


def fetched(hub, folder: Path) -> Path:
    folder.mkdir()
    for name, content in hub.files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_whole_model_arrives_as_it_is_and_nothing_else_does(tmp_path, hub):
    folder = saved(tmp_path)
    first = load_policy(str(folder))
    for name in STRANGERS:
        (folder / name).write_bytes(b"\x80\x04.")
    pushed = push_to_hub(folder, "me/mine")
    assert pushed.url == f"{hub.url}/me/mine"
    assert set(pushed.files) == set(hub.files)
    assert set(pushed.left_out) == set(STRANGERS)
    assert all(content == (folder / name).read_bytes() for name, content in hub.files.items())
    assert {"config.json", "model.safetensors", "value_head.safetensors", "tokenizer.json"} < set(hub.files)
    assert str(tmp_path).encode() not in b"".join(hub.files.values())
    assert hub.made == [{"name": "mine", "organization": "me", "visibility": "private"}]
    assert hub.tokens == {"Bearer hf_of_the_test", None}  # no token to where large files go
    again = load_policy(str(fetched(hub, tmp_path / "again")))
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(again.language_model(ids).logits, first.language_model(ids).logits)


def test_an_adapter_arrives_with_the_name_that_its_base_has_on_the_hub(tmp_path, hub):
    folder = saved(tmp_path, lora=LoraSettings(rank=2))
    with pytest.raises(ValueError, match=r"adapter on '.*my-base': that is a local folder.*base='OWNER/BASE'"):
        push_to_hub(folder, "me/mine")
    with pytest.raises(ValueError, match="that is a local folder"):
        push_to_hub(folder, "me/mine", base=str(tmp_path))
    assert hub.requests == []
    pushed = push_to_hub(folder, "me/mine", base="them/their-base", private=False)
    assert pushed.left_out == ("base_model.json",)
    assert hub.made[0]["visibility"] == "public"
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "them/their-base"
    card = hub.files["README.md"].decode()
    for words in (
        'base_model: "them/their-base"\n',
        'from_pretrained("them/their-base")',
        "adapter on them/their-base;",
    ):
        assert words in card
    assert b"my-base" not in b"".join(hub.files.values())
    assert "my-base" in (folder / "README.md").read_text()  # the folder itself stays as it is


def test_files_of_an_earlier_push_of_another_kind_are_deleted(tmp_path, hub):
    hub.files = {
        "adapter_config.json": b"{}",
        "model-00001-of-00002.safetensors": b"",
        ".gitattributes": b"",
        "me.png": b"",
    }
    folder = saved(tmp_path)
    push_to_hub(folder, "me/mine")
    assert "adapter_config.json" not in hub.files
    assert "model-00001-of-00002.safetensors" not in hub.files
    assert {".gitattributes", "me.png", "config.json"} < set(hub.files)


@pytest.mark.parametrize(
    "name", ["mine", "me/", "/mine", "me/mine/more", "me/my mine", "me/a--b", "me/a..b", "me/mine.git", "./mine", ""]
)
def test_a_name_that_the_hub_refuses_is_refused_here(name):
    with pytest.raises(ValueError, match="is no name of a hub repository; give USER/NAME"):
        require_name(name)


def test_without_a_token_or_offline_nothing_is_tried(monkeypatch, hub):
    require_ready("me/mine")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(
        ValueError, match=r"no token of the Hugging Face hub; log in with `hf auth login`, or set HF_TOKEN"
    ):
        require_ready("me/mine")
    require_ready("me/mine", token="hf_another")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set; unset it"):
        require_ready("me/mine", token="hf_another")
    assert hub.requests == []


def test_a_folder_that_is_no_policy_or_names_this_machine_is_refused(tmp_path):
    folder = saved(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"holds no saved policy; name a folder such as RUN/checkpoint-60/policy"
    ):
        policy_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no saved policy"):
        policy_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a whole model, not an adapter on 'a/b'; leave out base"):
        policy_files(folder, "a/b")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"parts": [{"_name_or_path": "/home/me/models/x"}]}))
    with pytest.raises(ValueError, match=r"names a folder of this machine, _name_or_path='/home/me/models/x'"):
        policy_files(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is a link"):
        policy_files(folder)


@pytest.mark.parametrize(
    ("text", "is_folder"),
    [
        *(("/home/me/x", True), ("~/runs/x", True), (r"C:\Users\me", True), (r"\\server\share\x", True)),
        *(("</s>", False), ("owner/name", False), ("/", False), ("{% if a %}/b/c", False), ("silu", False)),
    ],
)
def test_a_folder_is_told_from_other_texts(text, is_folder):
    assert bool(FOLDER.fullmatch(text)) == is_folder


def test_an_adapter_on_a_local_folder_is_refused_before_it_is_trained(tmp_path):
    base = save_tiny(tmp_path / "base", "llama")
    with pytest.raises(ValueError, match=r"adapter on the local folder .*push the result with models\.push_to_hub"):
        require_shared_base(load_policy(base, lora=LoraSettings(rank=2)))
    require_shared_base(load_policy(base))
