"""What is saved is what was trained: the plain libraries read it, in a fresh process, to the last bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import LoraSettings, load_policy
from models.policy.value_head import FILE
from models.tiny import save_tiny
from rlhf_core.types import Limits, Sequences

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("full", "fresh adapter", "continued adapter", "4-bit adapter")
CASES = [(family, kind) for family in ("gpt2", "llama") for kind in KINDS]
TEXTS = ["w2 w3", "w4 unknown w6", "w7"]
CHILD = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
import models.weights.four_bit  # before anything imports PEFT
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

root = Path(sys.argv[1])
found, tokens = {}, {}
for case in json.loads(sys.argv[2]):
    folder = root / case["name"] / "policy"
    options = {}
    if case["kind"] == "4-bit adapter":
        config = models.weights.four_bit.four_bit_config(torch.float32)
        options = {"quantization_config": config, "device_map": {"": "cpu"}}
    plain = AutoModelForCausalLM.from_pretrained(folder if case["kind"] == "full" else case["base"], **options)
    models.weights.four_bit.keep_unpacked(plain)
    if case["kind"] != "full":
        plain = PeftModel.from_pretrained(plain, folder)
    ids = load_file(root / case["name"] / "ids.safetensors")["ids"]
    with torch.no_grad():
        found[case["name"]] = plain.eval()(input_ids=ids).logits.contiguous()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens[case["name"]] = tokenizer(case["texts"])["input_ids"]
save_file(found, root / "found.safetensors")
(root / "tokens.json").write_text(json.dumps(tokens))
"""


def moved(policy):
    """A policy whose every trained weight, the value head's too, is another than at the start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def trained(root: Path, family: str, kind: str):
    """The policy and its base; saved in ``root/policy``."""
    base, four_bit = save_tiny(root / "base", family, hidden_size=64, std=0.15), kind == "4-bit adapter"
    lora = None if kind == "full" else LoraSettings(rank=4)
    policy = moved(load_policy(base, lora=lora, four_bit=four_bit))
    if kind == "continued adapter":
        (root / "sft").mkdir()
        policy.save(str(root / "sft"))
        policy = moved(load_policy(str(root / "sft")))
    (root / "policy").mkdir()
    policy.save(str(root / "policy"))
    return policy, base


def drawn(policy) -> Sequences:
    """Responses without any padding, so that plain passes have the same shapes."""
    limits = Limits(min_lengths=torch.full((4,), 5), max_lengths=torch.full((4,), 5))
    uniforms = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return policy.sample([[2, 3], [4, 5], [6, 7], [8, 9]], limits, uniforms)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every case trained and saved here, then read by the plain libraries in one process that starts afresh."""
    root, made, asked = tmp_path_factory.mktemp("saved"), {}, []
    for family, kind in CASES:
        name = f"{family} {kind}"
        policy, base = trained(root / name, family, kind)
        s = drawn(policy)
        ids = torch.cat([s.prompt_ids, s.response_ids], dim=1)
        save_file({"ids": ids}, root / name / "ids.safetensors")
        with torch.no_grad():
            made[name] = (policy, s, policy.evaluate(s, frozenset()), policy.language_model.eval()(ids).logits)
        asked.append({"name": name, "kind": kind, "base": base, "texts": TEXTS})
    command = [sys.executable, "-c", CHILD, str(root), json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return root, made, load_file(root / "found.safetensors"), json.loads((root / "tokens.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_plain_libraries_in_a_fresh_process_compute_the_same(saved, family, kind):
    root, made, logits, tokens = saved
    name = f"{family} {kind}"
    policy, s, evaluation, own = made[name]
    if family == "gpt2":  # whose activation is one operation here and several there
        torch.testing.assert_close(logits[name], own, atol=1e-5, rtol=0)
    else:
        assert torch.equal(logits[name], own)
    predicting = logits[name][:, s.prompt_ids.shape[1] - 1 : -1].clone()
    predicting[:, :5, list(policy.eos_ids)] = -torch.inf  # banned: every response is five tokens at least
    logprobs = predicting.log_softmax(-1).gather(-1, s.response_ids[..., None])[..., 0]
    torch.testing.assert_close(logprobs, evaluation.logprobs, atol=1e-5, rtol=0)
    assert tokens[name] == policy.tokenizer(TEXTS)["input_ids"]
    again = load_policy(str(root / name / "policy"), four_bit=kind == "4-bit adapter")
    with torch.no_grad():
        found = again.evaluate(s, frozenset())
    assert torch.equal(found.logprobs, evaluation.logprobs)
    assert torch.equal(found.values, evaluation.values)
    assert evaluation.values.abs().max() > 0
    assert (root / name / "policy" / FILE).is_file()
