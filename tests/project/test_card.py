"""What runs on a card. Without one, ``test_pretended_card`` runs these tests on a card that is pretended."""

import warnings
from dataclasses import replace

import pytest
import torch
from card_counts import CONFIG, MINIBATCHES, PROMPTS, TOKENS, counted_step

from models import LoraSettings, load_policy, load_reward_model
from models.passes.rounding import rounds_coarsely
from models.tiny import save_tiny, tiny_gpt2
from models.training.settings import TrainingSettings
from models.training.supervised import train_language_model
from redistributors import RewardAttention, Sparse
from rlhf_core import PPOTrainer, allow_tf32
from rlhf_core.checks import log_ratio_bounds
from rlhf_core.masking import masked_mean, masked_whiten

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")]
MIXED = "Expected all tensors to be on the same device|indices should be"
SHORT = replace(CONFIG, min_length=2, max_length=(3, 5), epochs=1, minibatch_size=4, micro_batch_tokens=40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_tiny(root / "reward", "gpt2", head="classifier", num_labels=2, seed=2)
    return save_tiny(root / "policy", "gpt2", seed=1), str(root / "reward")


def trainer(folders, method=None, device="cuda", **settings) -> PPOTrainer:
    policy = load_policy(folders[0], device=device, **settings)
    reward = load_reward_model(folders[1], score="logit_difference", device=device)
    return PPOTrainer(policy, reward, method or RewardAttention(), SHORT)


class Planted(Sparse):
    """A method that makes a tensor on the CPU."""

    def __call__(self, rollout):
        return super().__call__(rollout) + torch.zeros(rollout.kl.shape)


def in_the_engine(monkeypatch):
    monkeypatch.setattr("rlhf_core.trainer.penalised", lambda scores, kl, coef: scores - coef * kl.cpu())


def in_the_models(monkeypatch):
    monkeypatch.setattr("models.policy.causal_policy.token_logprobs", lambda logits, *_: torch.zeros(len(logits)))


@pytest.mark.parametrize("plant", [None, in_the_engine, in_the_models], ids=["method", "engine", "models"])
def test_a_tensor_on_the_wrong_device_is_refused(plant, folders, monkeypatch):
    learner = trainer(folders, Planted() if plant is None else Sparse())
    if plant is not None:
        plant(monkeypatch)
    with pytest.raises(RuntimeError, match=MIXED):
        learner.step(PROMPTS)


def test_what_a_card_refuses_is_refused():
    there = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match=MIXED):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match=MIXED):
        torch.ones(3)[torch.tensor([1], device="cuda")]
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device="cuda", generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there[torch.tensor([1])] + torch.tensor(2.0)).item() == 3


def test_views_parameters_and_copies_are_where_their_storage_is():
    there = torch.nn.Linear(2, 2).to("cuda")
    there.weight.data = there.weight.data.clone()
    assert {x.device.type for x in (there.weight[0], there.weight.T, there.bias.detach())} == {"cuda"}
    there(torch.ones(1, 2, device="cuda")).sum().backward()
    assert there.weight.grad.device == there.weight.device
    assert there.cpu().weight.device.type == "cpu"


def test_what_is_undefined_is_not_a_number():
    """To raise an error, the host would have to look, and wait."""
    mask = torch.tensor([True, True, False], device="cuda")
    assert masked_mean(torch.ones(3, device="cuda"), ~mask & mask).isnan()
    assert masked_whiten(torch.tensor([1e30, -1e30, 0.0], device="cuda"), mask).isnan().tolist() == [True, True, False]
    assert masked_whiten(torch.tensor([1.0, 3.0, 9.0], device="cuda"), mask).tolist() == pytest.approx(
        [-(0.5**0.5), 0.5**0.5, 0]
    )


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_the_host_waits_once_per_eight_tokens_and_twice_per_minibatch(family, card, tmp_path):
    found = counted_step(family, tmp_path, card)
    for name, most in (("sampled token", TOKENS / 8), ("minibatch", 2 * MINIBATCHES)):
        assert found[name].launches
        assert sum(found[name].waits.values()) <= most, found[name].waits


def test_a_card_draws_and_learns_what_the_cpu_does(folders):
    here, there = trainer(folders, device="cpu"), trainer(folders)
    for _ in range(2):
        rollouts = [learner.collect(PROMPTS) for learner in (here, there)]
        assert rollouts[0].sequences.responses() == rollouts[1].sequences.responses()
        for learner, rollout in zip((here, there), rollouts, strict=True):
            learner.update(learner.estimate_returns(rollout, learner.redistribute(rollout)))
            learner.conclude(rollout)
    for mine, theirs in zip(here.policy.parameters(), there.policy.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach().cpu(), rtol=1e-4, atol=1e-5)


def test_models_on_the_cpu_stay_there(folders):
    learner = trainer(folders, device="cpu")
    learner.step(PROMPTS)
    assert {weight.device.type for weight in learner.policy.parameters()} == {"cpu"}
    assert learner.collect(PROMPTS).logprobs.device.type == "cpu"


def test_after_running_out_of_memory_the_next_step_works(folders, card):
    learner, ends = trainer(folders), []
    for extra in (20_000, 60_000, 200_000, 800_000):  # in loading no more than in the optimizer's first step
        card.limit = card.held + extra
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                learner.step(PROMPTS)
                ends.append("stepped")
            except MemoryError as error:
                ends.append(str(error))
            finally:
                card.limit = None
        learner.to_conclude = False
    assert "out of memory" in ends[0]
    assert ends[-1] == "stepped"
    assert learner.step(PROMPTS)["skipped_minibatches"] == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_computes_in_bfloat16_on_a_card(folders, checkpointing):
    learner = trainer(folders, autocast="bfloat16", gradient_checkpointing=checkpointing)
    rollout = learner.collect(PROMPTS)
    exact = trainer(folders).policy.evaluate(rollout.sequences, frozenset(), temperature=CONFIG.temperature)
    assert (rollout.logprobs - exact.logprobs.detach()).abs().max() > 1e-4
    assert learner.step(PROMPTS)["refused_minibatches"] == 0
    assert {weight.grad is None or weight.grad.dtype for weight in learner.policy.parameters()} <= {True, torch.float32}


@pytest.fixture
def as_before():
    """TF32 is the process's: afterwards it is as it was."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_tf32_widens_what_rounding_may_explain(folders, as_before):
    model = load_policy(folders[0], device="cuda").language_model
    assert not rounds_coarsely(model)
    assert log_ratio_bounds(torch.float32) == (1e-4, 1e-4)
    assert allow_tf32()
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert rounds_coarsely(model)
    assert log_ratio_bounds(torch.float32) == log_ratio_bounds(torch.bfloat16)
    assert not rounds_coarsely(load_policy(folders[0]).language_model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"lora": LoraSettings()},
        {"lora": LoraSettings(), "four_bit": True},
        {"lora": LoraSettings(), "four_bit": True, "sampling_dtype": "bfloat16"},
    ],
)
def test_adapters_on_a_card(folders, settings):
    learner = trainer(folders, **settings)
    assert [learner.step(PROMPTS)["refused_minibatches"] for _ in range(2)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_supervised_training_leaves_a_model_where_it_is(device):
    model = tiny_gpt2().to(device)
    figures = train_language_model(model, [[2, 3, 4], [5, 6]], [[2, 3]], TrainingSettings(steps=2, batch_size=2))
    assert {weight.device.type for weight in model.parameters()} == {device}
    assert figures["train_loss"] > 0
