"""What runs on a card. Without one, ``test_pretended_card`` runs these tests on a card that is pretended."""

import warnings
from dataclasses import replace

import pytest
import torch
from card_counts import CONFIG, MINIBATCHES, PROMPTS, TOKENS, counted_step

from models import LoraSettings, RetokenisedReward, RewardEnsemble, Telling, load_policy, load_reward_model
from models.passes.rounding import rounds_coarsely
from models.tiny import save_tiny, tiny_gpt2
from models.training.settings import TrainingSettings
from models.training.supervised import train_language_model
from redistributors import REDISTRIBUTORS, EnsembleCredit, RewardAttention, Sparse
from rlhf_core import PPOTrainer, allow_tf32
from rlhf_core.checks import log_ratio_bounds
from rlhf_core.masking import masked_mean, masked_whiten
from rlhf_core.scorers.aggregation import Mean
from rlhf_core.types import Limits

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


def test_what_two_cards_refuse_is_refused(second):
    there, other = torch.ones(3, device="cuda"), torch.ones(3, device=second)
    assert (other.device.index, other.cpu().device.type, other.to("cuda").device.index) == (1, "cpu", 0)
    for mixed in (lambda: there + other, lambda: there + other.sum(), lambda: there.copy_(other) @ other):
        with pytest.raises(RuntimeError, match=MIXED):
            mixed()
    with pytest.raises(RuntimeError, match=MIXED):
        there[torch.tensor([1], device=second)]
    with pytest.raises(RuntimeError, match="invalid device"):
        torch.ones(1, device="cuda:99")


BY_REWARD = [name for name in REDISTRIBUTORS if any(need.source != "policy" for need in REDISTRIBUTORS[name]().needs)]


@pytest.fixture
def second():
    """A card beside the first."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    return "cuda:1"


@pytest.fixture(params=["another card", "the CPU"])
def elsewhere(request):
    """Where the policy is not."""
    return "cpu" if request.param == "the CPU" else request.getfixturevalue("second")


def scored_elsewhere(policy, reward, methods) -> None:
    """Credit by every method, then a step, with the reward model where the policy is not."""
    learner = PPOTrainer(policy, reward, methods[0], SHORT)
    rollout = learner.collect(PROMPTS, methods)
    assert {values.device for values in (rollout.scores, *rollout.evidence.values())} == {policy.device}
    assert {method(rollout).device for method in methods} == {policy.device}
    assert learner.step(PROMPTS)["skipped_minibatches"] == 0


def test_the_reward_model_may_be_on_another_device(elsewhere, folders):
    policy = load_policy(folders[0], device="cuda")
    reward = load_reward_model(folders[1], score="logit_difference", device=elsewhere)
    scored_elsewhere(policy, reward, [REDISTRIBUTORS[name]() for name in BY_REWARD])
    assert {str(weight.device) for weight in reward.model.parameters()} == {elsewhere}


@pytest.mark.slow
def test_members_of_an_ensemble_may_be_on_two_devices(elsewhere, folders):
    judges = [load_reward_model(folders[1], score="logit_difference", device=place) for place in ("cuda", elsewhere)]
    scored_elsewhere(load_policy(folders[0], device="cuda"), RewardEnsemble(judges, Mean()), [EnsembleCredit()])


@pytest.mark.slow
def test_a_reward_model_with_another_tokenizer_may_be_on_another_device(elsewhere, folders):
    policy = load_policy(folders[0], device="cuda")
    judge = load_reward_model(folders[1], score="logit_difference", device=elsewhere)
    bridge = RetokenisedReward.of(judge, policy, Telling(add_special_tokens=False))
    methods = [REDISTRIBUTORS[name]() for name in ("abc", "prefix-difference", "leave-one-out")]
    scored_elsewhere(policy, bridge, methods)


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_the_host_waits_once_per_eight_tokens_and_twice_per_minibatch(family, card, tmp_path):
    found = counted_step(family, tmp_path, card)
    for name, most in (("sampled token", TOKENS / 8), ("minibatch", 2 * MINIBATCHES)):
        assert found[name].launches
        assert sum(found[name].waits.values()) <= most, found[name].waits


def test_copies_of_a_prompt_share_its_prefill_on_a_card_without_a_wait(folders, card):
    policy, rows = load_policy(folders[0], device="cuda"), []
    policy.language_model.get_input_embeddings().register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    limits = Limits(min_lengths=torch.full((6,), 16), max_lengths=torch.full((6,), 16))
    uniforms = torch.rand(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    card.reset()
    drawn = policy.sample([[5, 6], [7], [5, 6]] * 2, limits, uniforms)
    assert rows == [2] + [6] * 15
    assert sum(card.waits.values()) <= 2, card.waits
    here = load_policy(folders[0]).sample([[5, 6], [7], [5, 6]] * 2, limits, uniforms)
    assert drawn.responses() == here.responses()


def test_steps_of_fixed_shapes_wait_no_more(folders, card, monkeypatch):
    """Not compiled, as a pretended card has no kernels; a wait inside would forbid a CUDA graph."""
    monkeypatch.setattr("models.policy.loading.compiled", lambda lm: lm)
    policy, tokens = load_policy(folders[0], device="cuda", compile_decoding=True), torch.tensor([24, 24])
    for _ in range(2):  # buffers are made at the first
        card.reset()
        policy.sample(PROMPTS[:2], Limits(min_lengths=tokens, max_lengths=tokens), torch.full((2, 24), 0.5))
    assert sum(card.waits.values()) <= 24 / 8, card.waits
    assert {place.split(":")[0] for place, _ in card.waits} == {"models/passes/sampling.py"}


@pytest.mark.slow
def test_a_graph_draws_the_same_tokens(folders):
    ordinary, compiled = (trainer(folders, compile_decoding=wanted) for wanted in (False, True))
    for _ in range(2):
        rollouts = [learner.collect(PROMPTS) for learner in (ordinary, compiled)]
        assert rollouts[0].sequences.responses() == rollouts[1].sequences.responses()


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
