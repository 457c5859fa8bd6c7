"""Adapters as what fine-tuning makes and PPO starts from; and a reward model with its own prompts."""

import json
import shutil

import pytest
import torch
from reward_rows import ROWS, ReadRow, sequences

from models import LoraSettings, load_policy, load_reward_model
from models.rewards.prompted_reward import PromptedReward
from models.tiny import EOS_ID, save_tiny
from models.training.finetuning import adapted_language_model, adapted_reward_model
from models.training.objectives import Completion, Pair
from models.training.settings import TrainingSettings
from models.training.supervised import last_token_scores, train_completions, train_preference_model
from models.weights.source import ModelSource
from redistributors import RewardAttention
from rlhf_core import PPOConfig, PPOTrainer
from rlhf_core.types import ValidatesPrompts

QUICK = TrainingSettings(steps=30, batch_size=4, micro_batch_size=2, learning_rate=1e-2)
LORA = LoraSettings(rank=4, alpha=8)
DEMONSTRATIONS = [Completion(ids=[2 + i, 5, 7, 8, EOS_ID], prompt_tokens=2) for i in range(8)]
PAIRS = [Pair(chosen=[2 + i, 5, 7, 8, EOS_ID], rejected=[2 + i, 5, 9, 10, EOS_ID]) for i in range(8)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"), "llama", hidden_size=64, dropout=0.1, std=0.15)


def source(base, four_bit):
    dtype = "bfloat16" if four_bit else "float32"
    return ModelSource(name_or_path=base, four_bit=four_bit, dtype=dtype)


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["float32", "4-bit"])
def made(request, base, tmp_path_factory):
    """An SFT adapter and a reward adapter, trained a little and saved."""
    root = tmp_path_factory.mktemp("made")
    policy = adapted_language_model(source(base, request.param), LORA, seed=0, checkpointing=True)
    measured = train_completions(policy.adapters, DEMONSTRATIONS, DEMONSTRATIONS, QUICK)
    policy.save(str(root / "policy"))
    reward = adapted_reward_model(source(base, request.param), LORA, seed=0, checkpointing=True)
    ranked = train_preference_model(reward.adapters, PAIRS, PAIRS, QUICK)
    scores = last_token_scores(reward.adapters, [pair.chosen for pair in PAIRS])
    reward.save(str(root / "reward"))
    return root, request.param, measured, ranked, scores


def loaded_reward(made):
    root, four_bit, *_ = made
    dtype = "bfloat16" if four_bit else "float32"
    return load_reward_model(str(root / "reward"), score="single_logit", four_bit=four_bit, dtype=dtype)


def test_adapters_learn(made):
    _, _, measured, ranked, _ = made
    assert measured["perplexity"] < 4  # 32 tokens to choose from
    assert ranked["accuracy"] == 1


def test_only_the_adapter_is_saved(made):
    root = made[0]
    for part in ("policy", "reward"):
        assert (root / part / "adapter_model.safetensors").stat().st_size < 200_000
        assert not (root / part / "model.safetensors").exists()
        assert not list((root / part).glob("*.bin"))


def test_a_reward_adapter_scores_as_it_did_in_training(made):
    reward, scores = loaded_reward(made), made[4]
    found = reward.score_ids([pair.chosen for pair in PAIRS])
    tolerance = 0.05 if made[1] else 1e-4
    torch.testing.assert_close(found, scores, atol=tolerance * float(scores.abs().max()), rtol=0)
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())
    torch.testing.assert_close(reward.score_ids([PAIRS[0].chosen]), found[:1], atol=0.05, rtol=0.05)


def test_ppo_starts_from_both_adapters(made):
    root, four_bit, *_ = made
    policy = load_policy(str(root / "policy"), four_bit=four_bit, dtype="bfloat16" if four_bit else "float32")
    config = PPOConfig(rollout_batch_size=4, minibatch_size=2, epochs=1, min_length=2, max_length=(4, 6))
    prompts = [[2 + i, 5] for i in range(4)]
    renderings = {tuple(prompt): [3, *prompt, 4] for prompt in prompts}
    reward = PromptedReward(reward=loaded_reward(made), renderings=renderings)
    learner = PPOTrainer(policy, reward, RewardAttention(), config)
    figures = [learner.step(prompts) for _ in range(2)]
    assert abs(figures[0]["kl"]) < (0.1 if four_bit else 1e-4)
    assert figures[1]["kl"] != 0
    assert figures[0]["conservation_error"] < 1e-4


def test_an_adapter_without_a_head_is_no_reward_model(made, tmp_path):
    with pytest.raises(ValueError, match="adapter of a causal language model, not of a sequence classifier"):
        load_reward_model(str(made[0] / "policy"), score="single_logit")
    headless = tmp_path / "headless"
    shutil.copytree(made[0] / "policy", headless)
    config = json.loads((headless / "adapter_config.json").read_text())
    (headless / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
    with pytest.raises(ValueError, match="without a `score` head"):
        load_reward_model(str(headless), score="single_logit")


def test_a_trunk_without_a_score_head_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    from models.rewards.trunk import load_trunk

    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no trunk of a reward model that reads its last token"):
        load_trunk(ModelSource(name_or_path=str(tmp_path)), labels=1)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_reward_model_reads_its_own_prompts_and_credits_the_same_tokens(family, tmp_path):
    """Scores and attention are those of the other prompt with the same response, in a batch and alone."""
    folder = save_tiny(tmp_path, family, head="classifier", std=0.3)
    plain = load_reward_model(folder, score="single_logit")
    renderings = {(5, 6, 7): [20, 5, 6, 7, 21], (10,): [20, 10, 21], (12, 13): [22], (3, 4, 3, 4): [9, 9]}
    prompted = PromptedReward(reward=plain, renderings=renderings)
    request = ReadRow()
    found = prompted.score(sequences(ROWS, pad=2, extra=1), frozenset({request}))
    for row, (prompt, response) in enumerate(ROWS):
        alone = plain.score(sequences([(renderings[tuple(prompt)], response)]), frozenset({request}))
        torch.testing.assert_close(found.scores[row : row + 1], alone.scores, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            found.evidence[request][row, : len(response)], alone.evidence[request][0], atol=1e-5, rtol=1e-5
        )
        assert (found.evidence[request][row, len(response) :] == 0).all()
    probed = prompted.probe(sequences(ROWS, pad=2, extra=1)).prefix_scores()
    torch.testing.assert_close(probed[0, 0], plain.score_ids([renderings[tuple(ROWS[0][0])]])[0], atol=1e-5, rtol=1e-5)
    assert prompted.vocabulary == plain.vocabulary
    assert prompted.provides(request)
    assert prompted.why_not(ReadRow(layer=9)) == plain.why_not(ReadRow(layer=9))
    assert prompted.vocab_size == plain.vocab_size
    with pytest.raises(ValueError, match=r"no rendering of the prompts in rows \[0\] .* beginning with \[31\]"):
        prompted.score(sequences([([31], [5])]), frozenset())


def test_renderings_that_are_missing_or_too_long_are_refused_in_advance(tmp_path):
    folder = save_tiny(tmp_path, "llama", head="classifier", context=8)
    plain = load_reward_model(folder, score="single_logit")
    prompted = PromptedReward(reward=plain, renderings={(5,): [20, 5, 21], (6,): [20, 6, 6, 6, 21], (7,): []})
    assert isinstance(prompted, ValidatesPrompts)
    prompted.validate([[5]], 5)
    with pytest.raises(ValueError, match=r"rows \[1, 3\] \(2 of 4; the first has 1 tokens, beginning with \[31\]\)"):
        prompted.validate([[5], [31], [6], [32]], 4)
    with pytest.raises(
        ValueError, match=r"row 1: 5 prompt \+ 5 response tokens exceed the context 8 .*; row 2 is empty"
    ):
        prompted.validate([[5], [6], [7]], 5)
