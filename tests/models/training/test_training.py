import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.rewards.classifier_reward import ClassifierReward
from models.rewards.loading import load_reward_model
from models.tiny import tiny_gpt2, tiny_gpt2_classifier, tiny_llama, tiny_llama_classifier, tiny_tokenizer
from models.training.objectives import Completion, Labelled, Pair, label_batch, label_loss, pair_batch, pair_loss
from models.training.settings import TrainingSettings
from models.training.supervised import (
    freeze_layers,
    last_token_scores,
    model_input,
    new_classifier,
    new_language_model,
    perplexity,
    save,
    train_classifier,
    train_completions,
    train_language_model,
    train_preference_model,
)

EOS = 1
GOOD, BAD, DULL = 5, 6, 7


def fast(**changes):
    return TrainingSettings(**{"steps": 40, "batch_size": 8, "learning_rate": 1e-2, **changes})


def small(seed=0):
    tokenizer = tiny_tokenizer(padding="own")
    return new_language_model(tokenizer, layers=1, width=16, heads=2, context=16, init_std=0.2, seed=seed)


def texts(number, seed=0):
    """Random words, one of them GOOD or BAD, and whether it is GOOD."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        ids = generator.integers(8, 30, generator.integers(3, 8)).tolist()
        good = bool(generator.integers(2))
        ids[generator.integers(len(ids))] = GOOD if good else BAD
        rows.append((ids, int(good)))
    return rows


def test_model_input_ends_with_eos_exactly_when_the_text_ended_in_time():
    assert model_input([7, 8], eos_id=EOS, max_tokens=4) == [7, 8, EOS]
    assert model_input([7, 8], eos_id=EOS, max_tokens=3) == [7, 8, EOS]
    assert model_input([7, 8], eos_id=EOS, max_tokens=2) == [7, 8]
    assert model_input([7, 8, 9], eos_id=EOS, max_tokens=2) == [7, 8]


def test_perplexity_weighs_every_predicted_token_alike():
    model = tiny_gpt2(seed=1)
    rows = [[2, 3, 4, 5, 6, 7], [8, 9], [3, 1, 4]]
    nats = []
    for row in rows:
        logprobs = model(torch.tensor([row])).logits[0].log_softmax(-1)
        nats += [-logprobs[i, token].item() for i, token in enumerate(row[1:])]
    assert perplexity(model, rows, batch_size=2) == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)


@pytest.mark.parametrize("make", [tiny_gpt2_classifier, tiny_llama_classifier])
@pytest.mark.parametrize("labels", [1, 2])
def test_scores_are_read_at_the_last_token_whatever_the_pad_id(make, labels):
    model = make(num_labels=labels, pad_id=EOS, seed=2)
    rows = [[4, 5, 6, EOS], [7, 8, 9], [9, EOS, EOS], [3], [6, 7, 8, 9, 10, 11]]
    batched = last_token_scores(model, rows)
    for row, score in zip(rows, batched, strict=True):
        hidden = model.base_model(torch.tensor([row])).last_hidden_state[0, len(row) - 1]
        logits = model.score(hidden)
        wanted = logits[0] if labels == 1 else logits[1] - logits[0]
        assert score.item() == pytest.approx(wanted.item(), abs=1e-4)


def test_training_and_ppo_score_the_same_folder_alike(tmp_path):
    tokenizer = tiny_tokenizer(padding="eos")
    save(tiny_gpt2_classifier(num_labels=2, pad_id=EOS), tokenizer, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.bin"))
    reward = load_reward_model(str(tmp_path), score="logit_difference")
    rows = [[4, 5, EOS], [6, 7, 8, 9]]
    torch.testing.assert_close(reward.score_ids(rows), last_token_scores(reward.model, rows), atol=1e-5, rtol=1e-5)


def test_what_is_trained_is_what_ppo_scores():
    """Losses written out from the reward model's scores of the same rows, EOS included and ragged."""
    model, tokenizer = tiny_gpt2_classifier(num_labels=2, pad_id=EOS), tiny_tokenizer(padding="eos")
    reward = ClassifierReward(model, tokenizer, score="logit_difference")
    pairs = [Pair(chosen=[4, 5, EOS], rejected=[4, 5, 6, 7, EOS]), Pair(chosen=[8, 9, 10], rejected=[8, EOS])]
    better, worse = (reward.score_ids([getattr(pair, side) for pair in pairs]) for side in ("chosen", "rejected"))
    wanted = -torch.log(torch.sigmoid(better - worse)).mean()
    torch.testing.assert_close(pair_loss(model, pair_batch(pairs)), wanted, rtol=1e-4, atol=1e-5)
    rows = [Labelled(ids=pair.rejected, labels=[row]) for row, pair in enumerate(pairs)]
    wanted = -torch.log(torch.sigmoid(worse * torch.tensor([-1.0, 1.0]))).mean()
    torch.testing.assert_close(label_loss(model, label_batch(rows)), wanted, rtol=1e-4, atol=1e-5)


def test_language_model_learns_a_cycle_and_reports_its_own_perplexity():
    model = small()
    rows = [[2 + (start + i) % 5 for i in range(8)] for start in range(40)]
    before = perplexity(model, rows)
    measured = train_language_model(model, rows, rows[:5], fast())
    assert before > 10
    assert measured["perplexity"] < 1.5
    assert measured["perplexity"] == pytest.approx(perplexity(model, rows[:5]))
    assert not model.training


def test_padding_carries_no_loss():
    """The first step's loss, of a ragged batch, is the mean over the real predictions of each row alone."""
    rows, model = [[2, 3, 4], [9, 10, 11, 12, 13, 14, 15]], small()
    nats = [
        functional.cross_entropy(model(torch.tensor([row])).logits[0, :-1], torch.tensor(row[1:]), reduction="none")
        for row in rows
    ]
    measured = train_language_model(model, rows, rows, fast(steps=1, batch_size=2))
    assert measured["train_loss"] == pytest.approx(torch.cat(nats).mean().item(), rel=1e-4)


@pytest.mark.parametrize("number_of_labels", [1, 2])
def test_classifier_learns_which_word_decides(number_of_labels):
    model = new_classifier(small(), seed=0, num_labels=number_of_labels)
    rows = [Labelled(ids=ids, labels=[label]) for ids, label in texts(400)]
    held_out = [Labelled(ids=ids, labels=[label]) for ids, label in texts(50, seed=1)]
    measured = train_classifier(model, rows, held_out, fast(steps=150, batch_size=16))
    assert measured["accuracy"] >= 0.95
    positive = last_token_scores(model, [[9, GOOD, 10]])
    negative = last_token_scores(model, [[9, BAD, 10]])
    assert positive > 0 > negative


def test_labels_belong_to_the_last_beginnings():
    """The label flips after the second token, so its loss is small only where read tokens and labels line up."""
    model = new_classifier(small(), seed=0)
    row = Labelled(ids=[9, GOOD, 10, BAD, 12], labels=[1, 1, 0, 0])
    train_classifier(model, [row], [row], fast(steps=80, batch_size=1))
    scores = last_token_scores(model, [row.ids[:end] for end in (2, 3, 4, 5)])
    assert (scores > 1).tolist() == [True, True, False, False]
    assert (scores < -1).tolist() == [False, False, True, True]


def test_a_probability_as_label_is_reached_and_not_overshot():
    model = new_classifier(small(), seed=0)
    row = Labelled(ids=[9, DULL], labels=[0.75])
    train_classifier(model, [row], [row], fast(steps=100, batch_size=1))
    assert last_token_scores(model, [row.ids]).sigmoid().item() == pytest.approx(0.75, abs=0.02)


def test_preference_model_prefers_what_was_chosen():
    model = new_classifier(small(), seed=0, num_labels=1)
    generator = np.random.default_rng(3)
    pairs = []
    for ids, _ in texts(200, seed=4):
        at = next(i for i, token in enumerate(ids) if token in (GOOD, BAD))
        chosen, rejected = [*ids[:at], GOOD, *ids[at + 1 :]], [*ids[:at], BAD, *ids[at + 1 :]]
        pairs.append(Pair(chosen=chosen, rejected=rejected[: generator.integers(at + 1, len(ids) + 1)]))
    measured = train_preference_model(model, pairs[40:], pairs[:40], fast(steps=100))
    assert measured["accuracy"] == 1.0
    assert measured["loss"] < 0.2
    good, bad = last_token_scores(model, [[9, GOOD], [9, BAD]])
    assert good > bad


def test_the_classifier_starts_from_a_copy_of_the_trunk():
    language_model = small()
    classifier = new_classifier(language_model, seed=0, resid_pdrop=0.25)
    for left, right in zip(language_model.base_model.parameters(), classifier.base_model.parameters(), strict=True):
        assert torch.equal(left, right)
        assert left.data_ptr() != right.data_ptr()
    assert classifier.config.resid_pdrop == 0.25
    assert language_model.config.resid_pdrop == 0.0
    assert classifier.config.id2label == {0: "negative", 1: "positive"}
    with pytest.raises(ValueError, match="no 'dropuot'"):
        new_classifier(language_model, seed=0, dropuot=0.1)


def test_a_classifier_may_keep_the_lowest_layers_and_freeze_some_of_them():
    language_model = tiny_llama(n_layers=3)
    classifier = new_classifier(language_model, seed=0, layers=2)
    lower, own = language_model.base_model.layers, classifier.base_model.layers
    assert len(own) == 2
    assert torch.equal(own[1].mlp.up_proj.weight, lower[1].mlp.up_proj.weight)
    assert language_model.config.num_hidden_layers == 3
    freeze_layers(classifier, 1)
    rows = [Labelled(ids=ids, labels=[label]) for ids, label in texts(8)]
    train_classifier(classifier, rows, rows, fast(steps=3))
    learned = [not torch.equal(own[i].mlp.up_proj.weight, lower[i].mlp.up_proj.weight) for i in range(2)]
    assert learned == [False, True]
    assert torch.equal(classifier.base_model.embed_tokens.weight, language_model.base_model.embed_tokens.weight)
    with pytest.raises(ValueError, match="no 3 layers"):
        freeze_layers(classifier, 3)
    with pytest.raises(ValueError, match="has 3 layers, 4 are asked for"):
        new_classifier(language_model, seed=0, layers=4)


def test_autocast_multiplies_in_bfloat16_and_leaves_the_weights_in_float32():
    rows = [Labelled(ids=ids, labels=[label]) for ids, label in texts(60)]
    losses = []
    for autocast in (None, "bfloat16"):
        model = new_classifier(small(), seed=0)
        losses.append(train_classifier(model, rows, rows, fast(autocast=autocast))["train_loss"])
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_seed_decides_everything_and_global_generators_are_left_alone():
    rows = [ids for ids, _ in texts(60)]
    first, second, other = small(), small(), small()
    torch.manual_seed(5), np.random.seed(5)
    untouched = (torch.rand(1).item(), np.random.rand())
    torch.manual_seed(5), np.random.seed(5)
    train_language_model(first, rows, rows, fast(seed=3))
    assert (torch.rand(1).item(), np.random.rand()) == untouched
    train_language_model(second, rows, rows, fast(seed=3))
    train_language_model(other, rows, rows, fast(seed=4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not torch.equal(next(small(seed=1).parameters()), next(small(seed=2).parameters()))


def test_training_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [ids for ids, _ in texts(8)]
    train_language_model(small(), rows, rows, fast(steps=2))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_adapters_are_trained_through_the_peft_wrapper():
    import peft

    classifier = new_classifier(small(), seed=0)
    frozen = copy.deepcopy(classifier.base_model.state_dict())
    settings = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["score"])
    adapted = peft.get_peft_model(classifier, settings)
    rows = [Labelled(ids=ids, labels=[label]) for ids, label in texts(200)]
    measured = train_classifier(adapted, rows, rows[:50], fast(steps=60, batch_size=16))
    assert measured["loss"] < 0.69
    kept = {name.replace(".base_layer", ""): value for name, value in classifier.base_model.state_dict().items()}
    assert all(torch.equal(value, kept[name]) for name, value in frozen.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "exactly one of steps"),
        ({"epochs": 1.0}, "exactly one of steps"),
        ({"steps": 0}, "steps must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"warmup": 1.0}, "warmup 1.0"),
        ({"beta2": 1.0}, "beta2 1.0"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        fast(**changes)


@pytest.mark.parametrize(
    "row",
    [Labelled(ids=[3], labels=[]), Labelled(ids=[3], labels=[1, 1]), Labelled(ids=[3, 4], labels=[2])],
)
def test_wrong_labels_are_named(row):
    good = Labelled(ids=[3, 4], labels=[1])
    with pytest.raises(ValueError, match=r"labels in \[0, 1\]; wrong: \[1\]"):
        train_classifier(new_classifier(small(), seed=0), [good, row], [good], fast())


def test_rows_without_anything_to_learn_are_named():
    with pytest.raises(ValueError, match=r"a token to predict .* too short: \[1\]"):
        train_language_model(small(), [[3, 4], [3]], [[3, 4]], fast())
    with pytest.raises(ValueError, match="held_out"):
        train_language_model(small(), [[3, 4]], [], fast())
    with pytest.raises(ValueError, match="empty sides"):
        train_preference_model(small(), [Pair(chosen=[3], rejected=[])], [], fast())


def test_heads_that_cannot_be_read_are_refused():
    with pytest.raises(TypeError, match="GPT2LMHeadModel has no `score` head"):
        last_token_scores(small(), [[3]])
    with pytest.raises(ValueError, match="3 labels"):
        last_token_scores(tiny_gpt2_classifier(num_labels=3), [[3]])


def test_only_responses_are_learned():
    """A response follows its prompt's last token; the prompts themselves are noise that must not be imitated."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(64):
        prompt = generator.integers(8, 30, 5).tolist()
        rows.append(Completion(ids=[*prompt, GOOD, BAD, EOS], prompt_tokens=5))
    model = small()
    prompts = [row.ids[:5] for row in rows]
    before = perplexity(model, prompts)
    measured = train_completions(model, rows, rows[:8], fast())
    assert measured["perplexity"] < 1.1
    assert perplexity(model, prompts) > 0.9 * before
    with pytest.raises(ValueError, match=r"too short: \[0\]"):
        train_completions(model, [Completion(ids=[1, 2], prompt_tokens=2)], rows, fast())


def test_micro_batches_of_equal_rows_train_alike():
    rows = [[2 + (i + j) % 20 for j in range(6)] for i in range(16)]
    weights = []
    for micro_batch_size in (None, 2):
        model = small()
        train_language_model(model, rows, rows, fast(steps=5, micro_batch_size=micro_batch_size))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (weights[0] - weights[1]).abs().mean() < 1e-5  # Adam turns rounding of tiny gradients into whole steps
    with pytest.raises(ValueError, match="micro_batch_size 3 must divide batch_size 8"):
        fast(micro_batch_size=3)
