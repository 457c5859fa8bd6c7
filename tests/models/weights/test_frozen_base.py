"""Under LoRA, the base weights and the reference adapter never move: not by updates, sampling, evaluation or saving."""

import json
from pathlib import Path

import pytest
import torch
from hashing import frozen_hashes

from models import LoraSettings, load_policy
from models.tiny import save_tiny
from redistributors.sparse import Sparse
from rlhf_core import PPOConfig, PPOTrainer

PROMPTS = ["w2 w3", "w4", "w5 w6 w7", "w8"]
LORA = LoraSettings(rank=4)


def trainer(policy) -> PPOTrainer:
    config = PPOConfig.from_paper(
        "positive_generation",
        rollout_batch_size=4,
        minibatch_size=2,
        epochs=2,
        learning_rate=1e-2,
        min_length=2,
        max_length=(4, 6),
    )
    return PPOTrainer(policy, lambda prompts, responses: [float(len(text)) for text in responses], Sparse(), config)


@pytest.fixture(params=["gpt2", "llama"])
def base(request, tmp_path) -> str:
    return save_tiny(tmp_path / "base", request.param, hidden_size=64, std=0.15)


def adapter_on(base: str, folder: Path, **settings) -> str:
    """An adapter that is not zero, as supervised fine-tuning leaves one."""
    policy = load_policy(base, lora=LORA, **settings)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05)
    folder.mkdir()
    policy.save(str(folder))
    return str(folder)


def loaded(start: str, base: str, tmp_path: Path, **settings):
    if start == "full":
        return load_policy(base)
    if start == "fresh adapter":
        return load_policy(base, lora=LORA, **settings)
    return load_policy(adapter_on(base, tmp_path / "adapter", **settings), **settings)


def without_reference_adapter(hashes: dict[str, str]) -> dict[str, str]:
    return {name: found for name, found in hashes.items() if ".reference." not in name}


@pytest.mark.parametrize(
    ("start", "settings"),
    [
        ("full", {}),
        pytest.param("fresh adapter", {}, marks=pytest.mark.slow),
        ("continued adapter", {}),
        ("fresh adapter", {"four_bit": True}),
        pytest.param("continued adapter", {"four_bit": True}, marks=pytest.mark.slow),
    ],
)
def test_what_is_frozen_stays_bit_for_bit(base, tmp_path, start, settings):
    policy = loaded(start, base, tmp_path, **settings)
    before, trained = frozen_hashes(policy), [parameter.detach().clone() for parameter in policy.parameters()]
    assert any("embed" in name or "wte" in name for name in before)
    assert any(".reference." in name for name in before) == (start == "continued adapter")

    run = trainer(policy)
    for what in (run.step, run.step, run.evaluate):
        what(PROMPTS)
        assert frozen_hashes(policy) == before
    run.fit(PROMPTS, 1, out=str(tmp_path / "run"))
    assert frozen_hashes(policy) == before
    assert any(not torch.equal(old, new) for old, new in zip(trained, policy.parameters()))
    if start != "full":
        again = load_policy(str(tmp_path / "run" / "checkpoint-3" / "policy"), **settings)
        assert without_reference_adapter(frozen_hashes(again)) == without_reference_adapter(before)


def test_the_hashes_see_one_bit_of_one_weight(base):
    policy = load_policy(base, lora=LORA)
    before = frozen_hashes(policy)
    name, weight = next((n, p) for n, p in policy.language_model.named_parameters() if not p.requires_grad)
    weight.data.view(-1)[:1].view(torch.int32).bitwise_xor_(torch.tensor(1, dtype=torch.int32))
    assert {n for n in before if frozen_hashes(policy)[n] != before[n]} == {name}


@pytest.mark.parametrize("draws", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_rewrites_its_base_is_refused(base, tmp_path, draws):
    """Loading it subtracts a part of each base weight, and loading it again for the reference another one."""
    folder = Path(adapter_on(base, tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": draws}))
    with pytest.raises(ValueError, match=rf"rewrites the weights of its base .*'{draws}'.*plain LoRA"):
        load_policy(str(folder))


def test_an_adapter_on_an_adapter_is_refused(base, tmp_path):
    inner, outer = (Path(adapter_on(base, tmp_path / name)) for name in ("inner", "outer"))
    config = json.loads((outer / "adapter_config.json").read_text())
    (outer / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(inner)}))
    with pytest.raises(ValueError, match="which is an adapter itself; merge that one"):
        load_policy(str(outer))
