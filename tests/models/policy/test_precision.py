"""Whole policies under bfloat16 autocast, 4-bit ones sampled through a copy, and what is refused of either."""

import pytest
import torch
from policies import PROMPTS, rolled_out, sample

from models import LoraSettings, load_policy, load_reward_model
from models.policy.sampling_noise import sampling_noise
from models.tiny import save_tiny
from models.weights.dequantised import dequantised_copy
from redistributors import REDISTRIBUTORS
from rlhf_core import FullKL, PPOConfig, PPOTrainer

FAMILIES = ["gpt2", "llama"]
LORA = LoraSettings(rank=4)
BF16 = {"autocast": "bfloat16"}
COPY = {"lora": LORA, "four_bit": True, "sampling_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> dict[str, str]:
    """Models whose weights are drawn narrower, as trained ones are, so that rounding stays small."""
    root = tmp_path_factory.mktemp("calm")
    return {family: save_tiny(root / family, family, hidden_size=64, std=0.15, dropout=0.1) for family in FAMILIES}


def moved(policy):
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_computes_the_same_but_for_rounding(family, checkpointing, calm):
    plain = load_policy(calm[family], gradient_checkpointing=checkpointing)
    policy = load_policy(calm[family], gradient_checkpointing=checkpointing, **BF16)
    assert policy.compute_dtype == torch.bfloat16
    assert {weight.dtype for weight in policy.language_model.parameters()} == {torch.float32}
    s = sample(policy)
    found, wanted = rolled_out(policy, s, frozenset({FullKL()})), rolled_out(plain, s)
    assert found.logprobs.dtype == found.values.dtype == torch.float32
    assert 1e-4 < (found.logprobs - wanted.logprobs).abs().max() < 0.1
    assert torch.equal(found.logprobs, policy.reference_logprobs(s))
    assert found.evidence[FullKL()].eq(0).all()
    trained = policy.evaluate(s, frozenset())
    assert torch.equal(trained.logprobs, found.logprobs)
    for one, evaluation in ((policy, trained), (plain, plain.evaluate(s, frozenset()))):
        (evaluation.logprobs.sum() + evaluation.entropy.sum()).backward()
        assert {weight.grad.dtype for weight in one.language_model.parameters()} == {torch.float32}
    for mine, theirs in zip(policy.language_model.parameters(), plain.language_model.parameters(), strict=True):
        assert (mine.grad - theirs.grad).norm() < 0.1 * theirs.grad.norm()


def test_the_value_head_multiplies_in_float32_under_autocast(calm):
    head, hidden = moved(load_policy(calm["gpt2"], **BF16)).value_head, torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(hidden)
    assert found.dtype == torch.float32
    assert torch.equal(found, head(hidden))


def test_a_policy_and_its_critic_learn_under_autocast(calm, tmp_path):
    reward = load_reward_model(save_tiny(tmp_path, "gpt2", head="classifier"), score="single_logit")
    config = PPOConfig(rollout_batch_size=6, minibatch_size=3, max_length=(4, 8), learning_rate=1e-3, epochs=2)
    for critic in ({}, {"critic": "model", "critic_model": calm["gpt2"]}):
        policy = load_policy(calm["gpt2"], gradient_checkpointing=True, **critic, **BF16)
        trainer = PPOTrainer(policy, reward, REDISTRIBUTORS["abc-d"](), config)
        first = trainer.step(PROMPTS)
        assert first["first_log_ratio_max"] < 0.1
        assert first["kl"] == pytest.approx(0, abs=1e-6)
        assert trainer.step(PROMPTS)["value_loss"] > 0


def test_logits_made_in_parts_are_the_same_under_autocast(calm, monkeypatch):
    policy = load_policy(calm["llama"], **BF16)
    s = sample(policy)
    whole = policy.evaluate(s, frozenset())
    monkeypatch.setattr("models.policy.causal_policy.KEPT_CELLS", 0)
    monkeypatch.setattr("models.passes.token_statistics.RECOMPUTED_CELLS", 100)
    parts = policy.evaluate(s, frozenset())
    torch.testing.assert_close(parts.logprobs, whole.logprobs, atol=1e-2, rtol=0)
    parts.logprobs.sum().backward()


@pytest.mark.parametrize("settings", [{}, BF16], ids=["float32", "autocast"])
def test_a_resumed_run_must_compute_in_the_same_precision(settings, calm):
    identity = load_policy(calm["gpt2"], **settings).identity
    assert identity.get("autocast") == settings.get("autocast")
    assert "sampling_dtype" not in identity


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_to_sample_from_holds_the_weights_that_4_bits_stand_for(dtype, calm):
    policy = load_policy(calm["llama"], dtype=dtype, **{**COPY, "sampling_dtype": dtype})
    plain = load_policy(calm["llama"], dtype=dtype, lora=LORA, four_bit=True)
    assert policy.identity["sampling_dtype"] == dtype
    for one in (policy, plain):
        moved(one)
    assert sample(policy).responses() == sample(plain).responses()
    noise = sampling_noise(policy, sample(policy))
    assert noise.abs().max() < (1e-4 if dtype == "float32" else 0.1)


def test_a_copy_in_less_precision_samples_from_nearly_the_same_distribution(calm):
    policy = moved(load_policy(calm["llama"], **COPY))
    s = sample(policy)
    noise = sampling_noise(policy, s)
    assert 1e-4 < noise[s.response_mask].abs().max() < 0.3
    assert noise[s.response_mask].abs().mean() < 0.03
    assert noise[~s.response_mask].eq(0).all()


def test_a_copy_follows_the_adapter_as_it_learns_and_is_restored(calm, tmp_path):
    policy = load_policy(calm["llama"], **COPY)
    policy.save(str(tmp_path))
    before = sample(policy).responses()
    copied = policy._network.sampling_copy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2)
    assert sample(policy).responses() != before
    assert policy._network.sampling_copy is copied
    policy.restore(str(tmp_path))
    assert sample(policy).responses() == before
    assert {weight.dtype for name, weight in copied.named_parameters() if "base_layer" in name} == {torch.bfloat16}


def test_a_copy_is_what_is_sampled_from(calm):
    policy = load_policy(calm["llama"], **COPY)
    before = sample(policy).responses()
    with torch.no_grad():
        for weight in policy._network.sampling_copy.parameters():
            weight.mul_(0 if weight.dtype == torch.bfloat16 else 1)
    assert sample(policy).responses() != before


def test_a_copy_holds_nothing_else_twice_and_is_not_trained(calm):
    policy = load_policy(calm["llama"], **COPY)
    own = {id(weight) for weight in policy.language_model.parameters()}
    doubled = [w for w in policy._network.sampling_copy.parameters() if id(w) not in own]
    assert len(doubled) == 14  # seven matrices in each of two layers
    assert not any(weight.requires_grad for weight in doubled)
    assert not {id(weight) for weight in policy.parameters()} & {id(weight) for weight in doubled}


def test_a_copy_of_other_weights_is_refused(calm, monkeypatch):
    def of_others(model, dtype):
        made = dequantised_copy(model, dtype)
        for weight in made.parameters():
            if weight.dtype == torch.bfloat16:
                weight.data.mul_(-1)
        return made

    monkeypatch.setattr("models.policy.loading.dequantised_copy", of_others)
    with pytest.raises(ValueError, match=r"its sampling pass through a copy of the weights differs .* allowed: 1e-01"):
        load_policy(calm["llama"], **COPY)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"autocast": "bfloat16", "lora": LORA}, r"trained through an adapter: leave it out and give dtype='bfloat16'"),
        ({"autocast": "bfloat16", "dtype": "bfloat16"}, r"use dtype='float32', with autocast='bfloat16'"),
        ({"sampling_dtype": "bfloat16"}, r"is loaded in float32: give four_bit=True, or leave sampling_dtype out"),
    ],
)
def test_what_has_nothing_to_do_is_refused(settings, words, calm):
    with pytest.raises(ValueError, match=words):
        load_policy(calm["gpt2"], **settings)
