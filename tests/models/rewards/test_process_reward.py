"""Process reward models: each step is scored where its marker stands, as transformers scores it, and credited there."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from reward_rows import sequences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2ForTokenClassification,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from models import load_policy, load_process_reward_model, load_reward_model
from models.rewards.process_reward import ProcessReward, require_step_settings
from models.rewards.steps import EARNED, cut_steps
from models.tiny import EOS_ID, gpt2_config, llama_config, save_tiny, tiny_tokenizer
from redistributors import REDISTRIBUTORS, OwnRewards
from rlhf_core import PPOConfig, PPOTrainer
from rlhf_core.run.description import described
from rlhf_core.scorers.token_scorer import OwnTokenRewards
from rlhf_core.step_guard import UnusableRollout
from rlhf_core.types import RewardModel, ValidatesPrompts

WORDS = ["a", "b", "c", "d", ".", "a.", "<step>"]
A, B, C, D, STOP, A_STOP, MARK = range(2, 9)
BUILD = {
    "llama": lambda **given: LlamaForTokenClassification(llama_config(**{"num_labels": 2, **given})),
    "gpt2": lambda **given: GPT2ForTokenClassification(gpt2_config(**{"num_labels": 2, **given})),
}
ROWS = [
    ([A, B], [C, STOP, D, A, EOS_ID]),  # the last step is ended by EOS
    ([A], [B, A_STOP, C, STOP, EOS_ID]),  # a token ends a step and separates it
    ([C, D], [A, B]),  # one step, cut short
    ([D], [STOP, EOS_ID]),  # no step
]
MARKED = [
    ([A, B, C, MARK, D, A, MARK], [3, 6], [1, 4]),
    ([A, B, A, MARK, C, MARK], [3, 5], [1, 3]),
    ([C, D, A, B, MARK], [4], [1]),
    ([D], [], []),
]
"""What the model reads of each row, at which columns, and the response tokens at which the steps end."""


def tokenizer():
    return tiny_tokenizer(words=WORDS)


def drawn(family: str, **given):
    torch.manual_seed(0)
    model = BUILD[family](**given).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
    return model


def process(family: str = "llama", **given) -> ProcessReward:
    return ProcessReward(drawn(family), tokenizer(), **{"separator": ".", "marker": "<step>", **given})


def probabilities(model, label: int = 1) -> list[list[float]]:
    """Of the steps of each row, by transformers, one row at a time."""
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids])).logits[0, at] for ids, at, _ in MARKED]
    return [each.softmax(-1)[:, label].tolist() for each in logits]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("process")
    drawn("llama").save_pretrained(where)
    tokenizer().save_pretrained(where)
    return where


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("budget", [4096, 1])
def test_steps_score_as_transformers_scores_their_markers_alone_and_in_company(family, budget):
    reward = process(family, micro_batch_tokens=budget)
    found, own = reward.step_scores(sequences(ROWS, extra=2)), probabilities(reward.model)
    assert max(map(max, own[:3])) - min(map(min, own[:3])) > 0.05
    for one, other in zip(found, own, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


def test_a_score_stands_at_the_token_that_ends_its_step():
    reward = process()
    rows = sequences(ROWS, extra=2)
    wanted = torch.zeros(rows.response_mask.shape)
    for row, (scores, (_, _, ends)) in enumerate(zip(probabilities(reward.model), MARKED, strict=True)):
        wanted[row, ends] = torch.tensor(scores)
    scored = reward.score(rows, frozenset({OwnTokenRewards()}))
    torch.testing.assert_close(scored.evidence[OwnTokenRewards()], wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.scores, wanted.sum(1), atol=1e-5, rtol=0)
    assert scored.scores[3] == 0


@pytest.mark.parametrize(
    ("aggregate", "score", "earned"),
    [
        ("sum", 1.5, [0.5, 0.25, 0.25, 0.5]),
        ("mean", 0.375, [0.125, 0.0625, 0.0625, 0.125]),
        ("min", 0.25, [0, 0.25, 0, 0]),
        ("last", 0.5, [0.5, -0.25, 0, 0.25]),
    ],
)
def test_what_each_step_earns_sums_to_the_score(aggregate, score, earned):
    found = EARNED[aggregate](torch.tensor([0.5, 0.25, 0.25, 0.5]))
    assert found.tolist() == earned
    assert found.sum() == score
    reward = process(aggregate=aggregate)
    of_steps = [torch.tensor(scores) for scores in probabilities(reward.model)[:3]]
    totals = {"sum": torch.sum, "mean": torch.mean, "min": torch.min, "last": lambda scores: scores[-1]}
    wanted = torch.stack([totals[aggregate](scores) for scores in of_steps])
    torch.testing.assert_close(reward.score(sequences(ROWS[:3]), frozenset()).scores, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "separator", "steps"),
    [
        ("x\ny", "\n", [("x", 2, True), ("y", 3, False)]),
        ("x\ny\n", "\n", [("x", 2, True), ("y", 4, True)]),
        ("\n\nx \n\n\n y", "\n\n", [("x ", 6, True), ("\n y", 9, False)]),
        ("aaa", "aa", [("a", 3, False)]),
        (" \n ", "\n", []),
        ("", "\n", []),
    ],
)
def test_where_steps_are_cut(text, separator, steps):
    assert [(step.text, step.end, step.separated) for step in cut_steps(text, separator)] == steps


def test_a_separator_that_is_part_of_a_token_is_told_again_as_the_model_was_trained():
    """Byte-level BPE writes the end of a sentence and of its line as one token; training encoded steps alone."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    merges = trainers.BpeTrainer(vocab_size=262, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(["é.\n\n"] * 9, merges)
    tokens = PreTrainedTokenizerFast(tokenizer_object=made)
    whole, step = tokens.encode("é.\n\n"), tokens.encode("é.")
    assert len(whole) == 1
    reward = ProcessReward(drawn("llama", vocab_size=262), tokens, separator="\n\n")
    ids = tokens.encode("x")
    with torch.no_grad():
        marked = torch.tensor([[*ids, *step, *tokens.encode("\n\n"), *ids, *tokens.encode("\n\n")]])
        logits = reward.model(input_ids=marked).logits[0]
    ends = [len(ids) + len(step) + len(tokens.encode("\n\n")) - 1, -1]
    rows = sequences([(ids, [*whole, *ids])])
    assert reward.step_scores(rows)[0] == pytest.approx(logits[ends].softmax(-1)[:, 1].tolist(), abs=1e-5)
    assert (reward.rewards(rows) != 0).tolist() == [[True, True]]


def test_without_a_marker_steps_are_read_at_their_separator():
    reward = process(marker=None)
    prompt, response = ROWS[0]
    assert reward.marker == "."
    with torch.no_grad():
        logits = reward.model(input_ids=torch.tensor([[A, B, C, STOP, D, A, STOP]])).logits[0, [3, 6]]
    found = reward.step_scores(sequences([(prompt, response)]))[0]
    assert found == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5)


def test_a_label_and_a_scale_may_be_named():
    odds = process(score="log_odds", label=0)
    shares = torch.tensor(probabilities(odds.model, label=0)[0])
    assert odds.step_scores(sequences(ROWS))[0] == pytest.approx(shares.logit().tolist(), abs=1e-4)
    one = ProcessReward(drawn("llama", num_labels=1), tokenizer(), separator=".", score="log_odds")
    with torch.no_grad():
        logit = one.model(input_ids=torch.tensor([[C, D, A, B, STOP]])).logits[0, -1, 0]
    assert one.step_scores(sequences(ROWS))[2] == pytest.approx([float(logit)], abs=1e-5)


def test_the_trainer_credits_the_steps(tmp_path, folder):
    policy = load_policy(save_tiny(tmp_path / "policy", words=WORDS))
    reward = load_process_reward_model(str(folder), separator=".", marker="<step>", aggregate="last")
    assert isinstance(reward, RewardModel)
    assert isinstance(reward, ValidatesPrompts)
    config = PPOConfig(rollout_batch_size=4, minibatch_size=4, max_length=(8, 8))
    trainer = PPOTrainer(policy, reward, OwnRewards(residual="nowhere"), config)
    rollout = trainer.collect(["a b", "c", "d d", "b"])
    credit = trainer.redistribute(rollout)
    torch.testing.assert_close(credit.sum(1), rollout.raw_scores * rollout.score_scale, atol=1e-5, rtol=1e-5)
    assert 0 < int((credit != 0).sum()) < credit.numel()
    with pytest.raises(ValueError, match="a scorer with rewards of its own shows OwnTokenRewards and nothing else"):
        PPOTrainer(policy, reward, REDISTRIBUTORS["abc"](), config)
    other = load_policy(save_tiny(tmp_path / "other"))
    with pytest.raises(ValueError, match="policy and reward model must share a tokenizer"):
        PPOTrainer(other, reward, OwnRewards(), config)


def test_a_folder_loads_with_the_settings_that_are_named(folder):
    reward = load_process_reward_model(str(folder), separator=".", marker="<step>", aggregate="min")
    rows = sequences(ROWS)
    torch.testing.assert_close(reward.rewards(rows), process(aggregate="min").rewards(rows), atol=1e-5, rtol=0)
    assert repr(reward) == (
        "ProcessReward(LlamaForTokenClassification, score=probability of label 1, aggregate=min, separator='.', "
        "marker='<step>')"
    )
    assert "marker='<step>', aggregate='min'" in described(reward)
    half = load_process_reward_model(str(folder), separator=".", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert inspect.signature(load_process_reward_model).parameters["separator"].default == "\n"


def test_what_is_no_token_classifier_is_refused_by_what_it_is(folder, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"is a token classifier, which labels every token \(LlamaForTokenClassification\), not a sequence "
        "classifier; load_process_reward_model takes it",
    ):
        load_reward_model(str(folder))
    classifier = save_tiny(tmp_path / "classifier", head="classifier", words=WORDS)
    with pytest.raises(ValueError, match="is a sequence classifier .*, not a token classifier; load_reward_model take"):
        load_process_reward_model(classifier, separator=".")
    config = json.loads(Path(classifier, "config.json").read_text())
    named = config | {"architectures": ["Qwen2ForProcessRewardModel"]}
    Path(classifier, "config.json").write_text(json.dumps(named))
    for load in (load_reward_model, load_process_reward_model):
        with pytest.raises(ValueError, match="is a process reward model with a class of its own"):
            load(classifier)


def test_a_folder_without_its_head_is_refused(tmp_path):
    drawn("llama").model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for score\.bias, score\.weight there .* trained token classifi"):
        load_process_reward_model(str(tmp_path), separator=".")


def test_settings_that_cannot_be_are_refused_before_the_weights_are_read(folder, tmp_path):
    (tmp_path / "f").mkdir()
    for file in folder.iterdir():
        (tmp_path / "f" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "f/model.safetensors").write_text("no weights")
    for given, said in (
        ({}, r"its tokenizer has no token for '\\n', at which a step would be read. Give as marker"),
        ({"separator": ".", "marker": "<extra_0>"}, "has no token for '<extra_0>'"),
        ({"separator": ""}, "separator is empty"),
        ({"separator": ".", "micro_batch_tokens": 0}, "micro_batch_tokens must be at least 1"),
        ({"separator": ".", "label": "good"}, r"no label 'good'.* It has 'LABEL_0' \(0\), 'LABEL_1' \(1\)"),
    ):
        with pytest.raises(ValueError, match=said):
            load_process_reward_model(str(tmp_path / "f"), **given)
    config = json.loads((tmp_path / "f/config.json").read_text()) | {"id2label": {"0": "bad", "1": "good"}}
    (tmp_path / "f/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has 2 labels, and nothing says which means a good step. Give label, one of"):
        load_process_reward_model(str(tmp_path / "f"), separator=".")
    with pytest.raises(ValueError, match="aggregate must be one of sum, mean, min, last, got 'summ'; did you mean 'su"):
        inspect.unwrap(require_step_settings)(".", "probability", "summ", 1)


def test_an_encoder_is_refused_as_its_steps_would_know_what_follows():
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ValueError, match="BertForTokenClassification cannot score steps .* it is not causal"):
        ProcessReward(BertForTokenClassification(config), tokenizer(), separator=".")


def test_rows_that_do_not_fit_are_refused():
    reward = ProcessReward(drawn("llama", context=8), tokenizer(), separator=".")
    reward.validate([[A] * 3], 4)
    with pytest.raises(ValueError, match=r"cannot score: row 0: 3 prompt \+ 6 response tokens exceed the context 8"):
        reward.validate([[A] * 3], 5)
    with pytest.raises(UnusableRollout, match=r"row 0 takes 9 tokens with its 4 markers; .* reads at most 8"):
        reward.rewards(sequences([([A], [B, STOP, C, STOP, D, STOP, A])]))
    with pytest.raises(ValueError, match="row 0 holds token id 40; LlamaForTokenClassification knows ids 0 to 31"):
        reward.rewards(sequences([([40], [B])]))
