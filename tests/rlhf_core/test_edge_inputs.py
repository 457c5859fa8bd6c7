"""Whole steps on the inputs where a PPO loop breaks in silence."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import TablePolicy
from often import fast
from reward_rows import MambaClassifier
from transformers import MambaConfig, PreTrainedTokenizerFast

from models import ClassifierReward, load_policy, load_reward_model
from models.tiny import save_tiny, tiny_tokenizer
from redistributors import REDISTRIBUTORS, RewardAttention, Sparse, Uniform
from rlhf_core import Experience, KLConfig, PPOConfig, PPOTrainer, RolloutBuffer, TokenReward
from rlhf_core.update import ppo_update

CONFIG = PPOConfig.from_paper(
    "positive_generation",
    learning_rate=1e-3,
    minibatch_size=4,
    rollout_batch_size=8,
    min_length=2,
    max_length=(4, 9),
    epochs=2,
)
PROMPTS = [[2, 3], [4], [5, 6, 7, 8], [9, 10], [11], [12, 13], [14, 15, 16], [17]]
FAMILIES = ["gpt2", "llama"]


@pytest.fixture(scope="module", params=FAMILIES)
def folders(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    policy = save_tiny(root / "policy", request.param, dropout=0.1, seed=1)
    reward = save_tiny(root / "reward", request.param, head="classifier", num_labels=2, seed=2)
    return policy, reward, save_tiny(root / "dpo", request.param, dropout=0.1, seed=3)


def models(folders, **settings):
    policy = load_policy(folders[0], auxiliaries={"dpo": folders[2]}, **settings)
    return policy, load_reward_model(folders[1], score="logit_difference")


# as many points as a tiny random model's curves would want take their time
QUICK = {"integrated-gradients": {"max_steps": 16}}


@pytest.mark.parametrize("name", fast(("sparse", "abc", "abc-d", "leave-one-out"), sorted(REDISTRIBUTORS)))
@pytest.mark.parametrize(
    ("folders", "ends"),
    [
        pytest.param("gpt2", True, id="gpt2, only EOS"),
        pytest.param("llama", False, id="llama, one token, cut", marks=pytest.mark.slow),
        pytest.param("gpt2", False, id="gpt2, one token, cut", marks=pytest.mark.slow),
        pytest.param("llama", True, id="llama, only EOS", marks=pytest.mark.slow),
    ],
    indirect=["folders"],
)
def test_a_step_of_one_token_responses(folders, name, ends):
    """The token is an EOS (here every token is one), or it is any other and the response was cut behind it."""
    policy, reward = models(folders, eos_ids=range(32) if ends else None)
    config = replace(CONFIG, min_length=0 if ends else 1, max_length=(5, 5) if ends else (1, 1))
    learner = PPOTrainer(policy, reward, REDISTRIBUTORS[name](**QUICK.get(name, {})), config)
    rollout = learner.collect(PROMPTS)
    assert rollout.sequences.response_lengths.tolist() == [1] * 8
    assert rollout.sequences.finished.tolist() == [ends] * 8
    if learner.redistributor.conserving:
        torch.testing.assert_close(learner.redistribute(rollout)[:, 0], rollout.scores, atol=1e-6, rtol=1e-6)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    for _ in range(2):
        assert np.isfinite(list(learner.step(PROMPTS).values())).all()
    assert any(not torch.equal(old, new) for old, new in zip(before, policy.parameters()))


def test_a_model_without_any_eos_runs_into_its_limits(folders, tmp_path):
    folder = save_tiny(tmp_path, "llama", eos_ids=None)
    tokenizer = tiny_tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>").save_pretrained(folder)
    policy = load_policy(folder)
    assert (policy.tokenizer.eos_token_id, policy.eos_ids) == (None, ())
    learner = PPOTrainer(policy, models(folders)[1], Uniform(), CONFIG)
    sequences = learner.collect(PROMPTS).sequences
    assert torch.equal(sequences.response_lengths, sequences.max_lengths)
    assert not sequences.finished.any()
    assert np.isfinite(list(learner.step(PROMPTS).values())).all()


def test_what_was_sampled_is_what_is_scored_and_learned_from(folders):
    """Special tokens inside a response vanish from its text; its ids must not go through text on their way."""
    seen = []

    def judge(prompts, responses):
        seen.append((prompts, responses))
        return [float(len(response)) for response in responses]

    policy = load_policy(folders[0], eos_ids=(2,))  # 0 and 1, special to the tokenizer, are ordinary then
    drawn, sample = [], policy.sample

    def noted(*arguments, **settings):
        sequences = sample(*arguments, **settings)
        drawn.append(sequences.responses())
        return sequences

    policy.sample = noted
    learner = PPOTrainer(policy, TokenReward(judge), Sparse(), CONFIG)
    rollout = learner.collect(["w2 w3 w4", "w9"] * 8)
    responses = drawn[0]
    assert policy.encode(policy.decode(responses)) != responses
    experience = learner.estimate_returns(rollout, learner.redistribute(rollout))
    for sequences in (rollout.sequences, experience.sequences):
        assert sequences.responses() == responses
        assert sequences.prompts() == [[2, 3, 4], [9]] * 8
    assert seen == [([[2, 3, 4], [9]] * 8, responses)]


class Sick(TablePolicy):
    """One kind of its numbers is ``bad`` in rows whose prompt ends with token 3."""

    def __init__(self, name, value):
        super().__init__()
        self.name, self.bad = name, value

    def evaluate(self, sequences, needs, **settings):
        evaluation = super().evaluate(sequences, needs, **settings)
        tensors = {name: getattr(evaluation, name) for name in ("logprobs", "values")}
        return replace(evaluation, **{name: self.spoil(name, values, sequences) for name, values in tensors.items()})

    def reference_logprobs(self, sequences, **settings):
        return self.spoil("ref_logprobs", super().reference_logprobs(sequences, **settings), sequences)

    def spoil(self, name, values, sequences):
        sick = (sequences.prompt_ids[:, -1:] == 3) & (name == self.name)
        return torch.where(sick, self.bad, values)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["logprobs", "values", "ref_logprobs"])
def test_what_is_not_finite_is_named_with_its_row(name, value):
    learner = PPOTrainer(Sick(name, value), TokenReward(lambda p, r: [0.0] * len(r)), Sparse(), CONFIG)
    with pytest.raises(FloatingPointError, match=rf"^{name}: 1 of 3 rows are not finite; row 1: \[{value}.* for '"):
        learner.collect([[1], [2, 3], [4]])


@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
def test_micro_batching_never_changes_the_gradient_of_a_real_model(folders, entropy_coef):
    """Of one optimizer step on ragged rows, advantages and returns that differ token by token, and a trained head."""
    config = replace(CONFIG, minibatch_size=8, epochs=1, entropy_coef=entropy_coef, kl=KLConfig(init_coef=0.0))

    def gradient(budget):
        policy = load_policy(folders[0])
        with torch.no_grad():
            for parameter in list(policy.parameters())[-2:]:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
        sequences = PPOTrainer(policy, TokenReward(lambda p, r: [0.0] * 8), Sparse(), config).collect(PROMPTS).sequences
        with torch.no_grad():
            old = policy.evaluate(sequences, frozenset())
        mask, generator = sequences.response_mask, torch.Generator().manual_seed(4)
        noise = [torch.where(mask, torch.randn(mask.shape, generator=generator), 0) for _ in range(3)]
        experience = Experience(
            sequences=sequences,
            logprobs=old.logprobs + 0.1 * noise[0],
            ref_logprobs=old.logprobs,
            values=old.values,
            advantages=noise[1],
            returns=noise[2],
        )
        buffer, found = RolloutBuffer(), []
        buffer.add(experience)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *_: found.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]))
        )
        settings = replace(config, micro_batch_tokens=budget)
        ppo_update(policy, optimizer, buffer, settings, step=0, check_first=lambda largest, mean: None)
        return found[0]

    whole = gradient(10_000)
    assert whole.abs().max() > 0.01
    for budget in (1, 20, 35):
        assert (gradient(budget) - whole).abs().max() < 1e-5 * whole.abs().max()


def test_attention_of_a_reward_model_without_any_is_refused_at_construction(folders):
    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4, num_labels=1)
    torch.manual_seed(0)
    reward = ClassifierReward(MambaClassifier(config), tiny_tokenizer(), score="single_logit")
    policy = load_policy(folders[0])
    with pytest.raises(ValueError, match=r"^abc needs .*ClassifierReward cannot give: MambaClassifier: no way to"):
        PPOTrainer(policy, reward, RewardAttention(), CONFIG)
    assert np.isfinite(list(PPOTrainer(policy, reward, Uniform(), CONFIG).step(PROMPTS).values())).all()
