"""The README.md beside a saved model."""

import json
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from models import LoraSettings, load_policy
from models.tiny import save_tiny
from rlhf_core import PPOConfig
from rlhf_core.run.model_card import write_model_card

STATE = {"steps_done": 7, "kl_coef": 0.2, "config": asdict(PPOConfig(seed=41, learning_rate=3e-4))}
METRICS = {"score": 1.23456789, "kl": math.nan}


def saved(tmp_path: Path, **options) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    load_policy(save_tiny(tmp_path / "secret home" / "my-base", "llama"), **options).save(str(folder))
    return folder


def card(folder: Path, state=STATE, metrics=METRICS) -> ModelCard:
    write_model_card(folder, state=state, metrics=metrics)
    return ModelCard.load(folder / "README.md")


def named(folder: Path, base: str) -> None:
    file = folder / "adapter_config.json"
    written = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(written | {"base_model_name_or_path": base}))


@pytest.mark.parametrize(
    ("options", "library"), [({}, "transformers"), ({"lora": LoraSettings(rank=2)}, "peft")], ids=["full", "lora"]
)
def test_the_card_says_what_was_trained_and_how(tmp_path, options, library):
    folder = saved(tmp_path, **options)
    made = card(folder)
    assert made.data.library_name == library
    assert made.data.base_model is None  # a local folder is not a name that the hub could link to
    assert {"dense-rlhf", "ppo"} <= set(made.data.tags)
    for row in ("| seed | 41 |", "| learning_rate | 0.0003 |", "| kl.kind | k1 |", "| steps_done | 7 |",
                "| score | 1.23457 |", "| kl | nan |", f"| torch | {version('torch')} |",
                f"| dense-rlhf | {version('dense-rlhf')} |"):  # fmt: skip
        assert row in made.text
    assert "Model Card for Model ID" not in made.text  # PEFT's own
    assert (folder / "README.md").read_text().count("\n---\n") == 1
    assert str(tmp_path) not in str(made)
    assert "secret home" not in str(made)
    assert ("my-base (a local folder)" in made.text) == (library == "peft")


@pytest.mark.parametrize("options", [{}, {"lora": LoraSettings(rank=2)}], ids=["full", "lora"])
def test_the_code_on_the_card_loads_the_model(tmp_path, monkeypatch, options):
    folder = saved(tmp_path, **options)
    code = card(folder).text.split("```python")[1].split("```")[0]
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(code.replace("path/to/my-base", str(tmp_path / "secret home" / "my-base")), found)
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(found["model"](ids).logits, found["policy"].language_model(ids).logits)
    assert found["tokenizer"]("w2")["input_ids"] == [2]


def test_a_base_on_the_hub_is_named_for_the_hub_unless_a_folder_has_that_name(tmp_path, monkeypatch):
    named(tmp_path, "owner/some-model")
    made = card(tmp_path)
    assert made.data.base_model == "owner/some-model"
    assert 'from_pretrained("owner/some-model")' in made.text
    monkeypatch.chdir(tmp_path)
    Path("owner/some-model").mkdir(parents=True)
    made = card(tmp_path)
    assert made.data.base_model is None
    assert "on some-model (a local folder)" in made.text


HOSTILE = (
    "evil\n---\nlicense: mit",
    'x"\nlibrary_name: other',
    "<script>alert(1)</script>",
    "a|b|c",
    "![x](https://example.org/track)",
    "```\nimport os\n```",
    '");import os;("',
    "{imports}{0}",
    "\x1b[31mred\u202e",
    "x" * 5000,
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(tmp_path, text):
    """As a base model's name, a setting's name and value, and a metric's name."""
    named(tmp_path, text)
    plain = card(tmp_path, {"config": {"one": 1, "two": 2}}, {"three": 3.0})
    made = card(tmp_path, {"config": {text: 1, "two": text}}, {text: 3.0})
    assert made.data.to_dict() == plain.data.to_dict()
    assert set(made.data.to_dict()) == {"library_name", "tags"}
    assert made.text.count("\n") == plain.text.count("\n")
    assert [line for line in made.text.splitlines() if line.startswith("```")] == ["```python", "```"]
    assert "<script" not in made.text
    assert "![" not in made.text.replace("\\!\\[", "")
    assert not [char for char in made.text if not (char.isprintable() or char == "\n")]
    for line in made.text.splitlines():
        assert not line.startswith("|") or line.replace("\\|", "").count("|") == 3
    code = made.text.split("```python\n")[1].split("\n```\n")[0]
    assert [type(node).__name__ for node in compile(code, "card", "exec", 0x400).body].count("Import") == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/someone/data/rows.jsonl", "rows.jsonl"),
        ("~/private/rows.jsonl", "rows.jsonl"),
        (r"C:\Users\someone\rows.jsonl", "rows.jsonl"),
        ("Reader(path='/home/someone/rows.jsonl', n=3)", "Reader(path='rows.jsonl', n=3)"),
        ("1/2 or owner/name at https://example.org/a/b", "1/2 or owner/name at https://example.org/a/b"),
    ],
)
def test_folders_of_this_machine_are_left_out(tmp_path, value, shown):
    assert f"| data | {shown} |" in card(tmp_path, {"config": {"data": value}}).text


def test_a_folder_of_another_kind_of_policy_gets_a_card_as_well(tmp_path):
    made = card(tmp_path)
    assert made.data.library_name is None
    assert "| seed | 41 |" in made.text


def test_a_config_that_is_no_object_is_named(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds a list, not a JSON object"):
        write_model_card(tmp_path, state={}, metrics={})
