"""The grammar and its truth; the tests marked slow train the models once and hold what makes the task worth having."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from tiny_toy import TINY

from benchmarks.tasks import toy_reviews as toy
from benchmarks.tasks.definitions import Toy
from benchmarks.tasks.toy_models import REPORT, ToyRecipe, toy_models, with_gaps
from models.rewards.loading import load_reward_model
from redistributors import Sparse
from rlhf_core import PPOTrainer
from rlhf_core.config import PPOConfig

WORDS = st.lists(
    st.sampled_from(["not", "nobody", "very", "really", "good", "great", "awful", "hated", "the", ".", "but"])
)


def leave_one_out(tokens):
    """What the true score loses with each word."""
    score = toy.true_score(" ".join(tokens))
    return [score - toy.true_score(" ".join(tokens[:i] + tokens[i + 1 :])) for i in range(len(tokens))]


def reviews(number=300, seed=11):
    return toy.sample_reviews(number, seed=seed)


@pytest.mark.parametrize(
    ("text", "contributions"),
    [
        ("the plot was good .", [0, 0, 0, 1, 0]),
        ("the plot was not good .", [0, 0, 0, -2 / 3, -1 / 3, 0]),
        ("not the plot . good", [0, 0, 0, 0, 1]),
        ("very awful", [-4 / 3, -8 / 3]),
        ("never really loved it", [-16 / 7, -4 / 7, -8 / 7, 0]),
        ("not not bad", [-2 / 5, -2 / 5, -1 / 5]),
        ("not good bad", [-2 / 3, -1 / 3, -1]),
        ("not good but bad", [-2 / 3, -1 / 3, 0, -1]),
        ("really very great", [2 * 3 * 1 / 5, 2 * 3 * 1 / 5, 2 * 3 * 3 / 5]),
        ("unheard words and <pad>", [0, 0, 0, 0]),
        ("good not", [1, 0]),
    ],
)
def test_contributions_by_hand(text, contributions):
    assert toy.true_contributions(text.split()) == pytest.approx(contributions)
    assert toy.true_score(text) == pytest.approx(sum(contributions))


@given(WORDS)
def test_contributions_sum_to_the_score_of_any_words(words):
    score = toy.true_score(" ".join(words))
    assert sum(toy.true_contributions(words)) == pytest.approx(score, abs=1e-9)
    assert score == int(score)


@given(WORDS)
def test_score_is_a_sum_over_clauses(words):
    """Read right to left, clause by clause: an implementation with nothing in common but the rules."""
    total = 0
    for clause in " ".join(words).replace("but", ".").split("."):
        value, sign, strength = 0, 1, 1
        for word in reversed(clause.split()):
            if word in toy.VALUES:
                total += value * sign * strength
                value, sign, strength = toy.VALUES[word], 1, 1
            sign *= -1 if word in toy.NEGATORS else 1
            strength += word in toy.INTENSIFIERS
        total += value * sign * strength
    assert toy.true_score(" ".join(words)) == total


@given(WORDS)
def test_prefix_scores_are_scores_of_prefixes(words):
    assert toy.prefix_scores(words) == [toy.true_score(" ".join(words[: i + 1])) for i in range(len(words))]


def test_contributions_agree_with_leaving_one_out():
    """Same sign on every word, and proportional within every clause."""
    for review in reviews():
        effects, contributions = np.array(leave_one_out(review)), np.array(toy.true_contributions(review))
        inside = [i for i, word in enumerate(review) if word not in toy.BOUNDARIES]  # without one, clauses merge
        assert np.array_equal(np.sign(effects[inside]), np.sign(contributions[inside]))
        clause, ratios = 0, {}
        for i, word in enumerate(review):
            clause += word in toy.BOUNDARIES
            if contributions[i]:
                ratios.setdefault(clause, []).append(effects[i] / contributions[i])
        for some in ratios.values():
            assert np.ptp(some) == pytest.approx(0, abs=1e-9)


def test_reviews_are_what_they_are_said_to_be():
    sample, known = reviews(2000), set(toy.vocabulary())
    scores = np.array([toy.true_score(" ".join(review)) for review in sample])
    lengths = [len(review) for review in sample]
    assert min(lengths) >= 8
    assert max(lengths) <= 40
    assert np.all(scores != 0)
    assert 0.45 < np.mean(scores > 0) < 0.55
    assert all(review[-1] == toy.END and toy.END not in review[:-1] and known.issuperset(review) for review in sample)
    assert 80 <= len(known) <= 200
    used = Counter(word for review in sample for word in review)
    assert known - set(used) == {toy.PAD, toy.UNKNOWN}


def test_a_seed_decides_the_reviews_and_a_smaller_number_is_a_beginning():
    assert reviews(20, seed=1)[:5] == reviews(5, seed=1)
    assert reviews(5, seed=1) != reviews(5, seed=2)


def test_tokenizer_is_one_token_a_word_both_ways(tmp_path):
    tokenizer = toy.toy_tokenizer()
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    for review in reviews(20):
        ids = tokenizer(" ".join(review))["input_ids"]
        assert len(ids) == len(review)
        assert tokenizer.decode(ids) == " ".join(review)
    assert tokenizer("zeppelin")["input_ids"] == [2]


def test_gaps_leave_every_second_review_and_every_end():
    given = reviews(400)
    thinned = with_gaps(given, share=0.1, seed=0)
    assert thinned[::2] == given[::2]
    assert all(review[-1] == toy.END for review in thinned)
    share = sum(map(len, thinned[1::2])) / sum(map(len, given[1::2]))
    assert 0.88 < share < 0.93


def test_models_are_built_once_and_anew_for_another_recipe(tmp_path):
    folder = toy_models(tmp_path, TINY)
    stamp = (folder / REPORT).stat().st_mtime_ns
    assert toy_models(tmp_path, TINY) == folder
    assert (folder / REPORT).stat().st_mtime_ns == stamp
    other = toy_models(tmp_path, ToyRecipe(**{**vars(TINY), "seed": 1}))
    assert other != folder
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, other.name}
    assert load_reward_model(str(folder / "reward"), score="logit_difference").score_ids([[3, 4, 0]]).isfinite().all()


def test_an_interrupted_build_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.tasks.toy_models.supervised.train_classifier", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toy_models(tmp_path, TINY)
    assert list(tmp_path.iterdir()) == []


def bag_of_words_accuracy():
    """Logistic regression on word counts, held-out accuracy."""
    ids = {word: i for i, word in enumerate(toy.vocabulary())}
    sample = reviews(6000, seed=5)
    counts = np.zeros((len(sample), len(ids)))
    for row, review in enumerate(sample):
        for word in review:
            counts[row, ids[word]] += 1
    labels = np.array([toy.true_score(" ".join(review)) > 0 for review in sample])
    train = slice(0, 5000)

    def loss(weights):
        odds = counts[train] @ weights * (1 - 2 * labels[train])
        gradient = counts[train].T @ ((1 - 2 * labels[train]) / (1 + np.exp(-odds)))
        return np.logaddexp(0, odds).sum() + 0.5 * weights @ weights, gradient + weights

    weights = optimize.minimize(loss, np.zeros(len(ids)), jac=True, method="L-BFGS-B").x
    return np.mean((counts[5000:] @ weights > 0) == labels[5000:])


@pytest.mark.slow
def test_words_alone_do_not_tell_the_label():
    """85 % at most, so a reward model of 90 % or more is 5 points better than any bag of words."""
    assert 0.5 < bag_of_words_accuracy() <= 0.85


@pytest.mark.slow
def test_reward_model_is_accurate_and_negation_is_why(toy_cache):
    report = json.loads((toy_models(toy_cache) / REPORT).read_text())
    accuracy = report["reward_model"]["accuracy"]
    assert accuracy >= 0.9
    assert accuracy - bag_of_words_accuracy() >= 0.05


@pytest.mark.slow
def test_leaving_one_out_of_the_reward_model_ranks_with_the_truth(toy_cache):
    reward = load_reward_model(str(toy_models(toy_cache) / "reward"), score="logit_difference")
    tokenizer, rhos = toy.toy_tokenizer(), []
    for review in reviews(150, seed=7):
        ids = tokenizer.convert_tokens_to_ids(review)
        scores = reward.score_ids([ids, *(ids[:i] + ids[i + 1 :] for i in range(len(ids) - 1))])
        truth = toy.true_contributions(review)[:-1]
        rhos.append(stats.spearmanr((scores[0] - scores[1:]).numpy(), truth).statistic)
    assert np.mean(rhos) >= 0.7


@pytest.mark.slow
def test_sparse_ppo_gains_a_standard_deviation_of_the_initial_score(toy_cache):
    task = Toy(cache=toy_cache)
    loaded = task.load()
    ppo = {**task.ppo, "kl": PPOConfig().kl.__class__(**task.ppo["kl"]), "max_length": tuple(task.ppo["max_length"])}
    trainer = PPOTrainer(loaded.policy, loaded.reward, Sparse(), PPOConfig.from_paper("positive_generation", **ppo))
    generator = np.random.default_rng(0)

    def some(number):
        return [list(loaded.train_prompts[i]) for i in generator.integers(0, len(loaded.train_prompts), number)]

    before = torch.cat([trainer.collect(some(64)).raw_scores for _ in range(2)])
    scores = [trainer.step(some(16))["score"] for _ in range(60)]
    assert np.mean(scores[-10:]) - before.mean() >= before.std()
