"""4-bit weights on the CPU: trained through LoRA, never touched themselves."""

import bitsandbytes as bnb
import pytest
import torch

from models import LoraSettings, load_policy
from models.tiny import save_tiny
from models.weights.four_bit import four_bit_config
from rlhf_core.evidence import FullKL
from rlhf_core.types import Limits


def quantised_bytes(policy) -> dict[str, bytes]:
    """Everything that defines the frozen 4-bit weights: codes, and the doubly quantised scales."""
    found = {}
    for name, module in policy._lm.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            parts = (module.weight.data, state.absmax, state.offset, state.state2.absmax)
            found[name] = b"".join(
                part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for part in parts
            )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("llama"), "llama", hidden_size=64, dropout=0.1, std=0.15)


def rollout(policy, n=8):
    bounds = Limits(min_lengths=torch.full((n,), 2), max_lengths=torch.full((n,), 10))
    u = torch.rand(n, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return policy.sample([[2 + i, 5] for i in range(n)], bounds, u)


def test_the_configuration_is_nf4_with_double_quantisation():
    config = four_bit_config(torch.bfloat16)
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "checkpointing"),
    [
        ("float32", True),
        ("bfloat16", False),
        pytest.param("float32", False, marks=pytest.mark.slow),
        pytest.param("bfloat16", True, marks=pytest.mark.slow),
    ],
)
def test_a_4_bit_llama_learns_through_its_adapter(folder, dtype, checkpointing):
    policy = load_policy(
        folder, lora=LoraSettings(rank=8), four_bit=True, dtype=dtype, gradient_checkpointing=checkpointing
    )
    assert policy.compute_dtype == getattr(torch, dtype)
    before = quantised_bytes(policy)
    assert len(before) == 14  # seven matrices in each of two layers
    s = rollout(policy)
    with torch.no_grad():
        start = policy.evaluate(s, frozenset({FullKL()}))
    reference = policy.reference_logprobs(s)
    assert torch.equal(start.logprobs, reference)
    assert start.evidence[FullKL()].eq(0).all()
    assert torch.equal(policy.evaluate(s, frozenset()).logprobs, start.logprobs)

    optimizer, losses = torch.optim.Adam(policy.parameters(), lr=3e-3), []
    for _ in range(15):
        loss = -policy.evaluate(s, frozenset()).logprobs.sum() / s.response_mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        rollout(policy, 2)
    assert losses[-1] < 0.7 * losses[0]
    assert quantised_bytes(policy) == before
    assert torch.equal(policy.reference_logprobs(s), reference)


def test_gradients_reach_the_first_layer_after_sampling(folder):
    """On CPUs with AVX512-BF16, bitsandbytes repacks a layer in eval mode and then computes outside autograd."""
    policy = load_policy(folder, lora=LoraSettings(rank=4), four_bit=True, dtype="bfloat16")
    policy.evaluate(rollout(policy), frozenset()).logprobs.sum().backward()
    grads = {n: p.grad for n, p in policy._lm.named_parameters() if "layers.0" in n and "lora_B" in n}
    assert grads
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())


def test_micro_batches_stay_within_rounding(folder):
    policy = load_policy(folder, lora=LoraSettings(rank=4), four_bit=True, dtype="bfloat16")
    s = rollout(policy)
    with torch.no_grad():
        whole = policy.evaluate(s, frozenset()).logprobs
        rows = [policy.evaluate(s.select(torch.tensor([i])), frozenset()).logprobs for i in range(len(s))]
    for i, row in enumerate(rows):
        assert (row[0] - whole[i, : row.shape[1]]).abs().max() < 0.1


def test_saved_as_an_adapter_and_loaded_again_in_4_bit(folder, tmp_path):
    policy = load_policy(folder, lora=LoraSettings(rank=4), four_bit=True)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05)
    policy.save(str(tmp_path))
    again, s = load_policy(str(tmp_path), four_bit=True), rollout(policy)
    with torch.no_grad():
        assert torch.equal(again.evaluate(s, frozenset()).logprobs, policy.evaluate(s, frozenset()).logprobs)
        assert torch.equal(again.evaluate(s, frozenset()).values, policy.evaluate(s, frozenset()).values)
    assert torch.equal(again.reference_logprobs(s), policy.evaluate(s, frozenset()).logprobs)
