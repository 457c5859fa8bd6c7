"""Which estimators are unbiased, and under which credit, by adding up every group of two responses."""

import pytest
import torch

from benchmarks.worlds.estimator_gradients import group_gradient, token_slopes
from benchmarks.worlds.estimator_report import bias_table, estimator_gradients, noise_table
from benchmarks.worlds.tabular import random_world
from redistributors import PrefixDifference, Sparse, Uniform
from rlhf_core.advantages import ESTIMATORS

WORLD = random_world(words=2, shortest=1, longest=3, seed=3)
UNBIASED = ("gae", "rloo", "rloo_to_go", "reinforce_plus_plus")


def test_slopes_add_up_to_the_true_gradient():
    rewards = WORLD.scores
    weights = (WORLD.rollout({}).logprobs.sum(1).exp() * rewards)[:, None]
    found = torch.einsum("rt,rtp->p", weights.expand(-1, 3), token_slopes(WORLD))
    torch.testing.assert_close(found, WORLD.true_gradient(rewards).flatten())


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("method", [Sparse, PrefixDifference])
def test_shaping_credit_leaves_them_unbiased(name, method):
    found = group_gradient(WORLD, name, method)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.size == pytest.approx(1, abs=1e-6)


def test_a_group_that_counts_its_own_response_is_half_as_large_and_no_more_biased():
    found = group_gradient(WORLD, "dr_grpo", Sparse)
    assert (found.cosine, found.size) == pytest.approx((1, 0.5), abs=1e-6)


@pytest.mark.parametrize("name", ["grpo", "opo"])
def test_a_deviation_or_a_length_in_the_baseline_turns_the_gradient(name):
    assert group_gradient(WORLD, name, Sparse).cosine < 1 - 1e-4


@pytest.mark.parametrize("name", [name for name, one in ESTIMATORS.items() if not one.reaches_tokens])
def test_what_is_added_up_first_is_the_same_under_any_conserving_credit(name):
    sparse, uniform = (group_gradient(WORLD, name, method) for method in (Sparse, Uniform))
    assert (sparse.cosine, sparse.size, sparse.variance) == pytest.approx(
        (uniform.cosine, uniform.size, uniform.variance), abs=1e-6
    )


@pytest.mark.parametrize("name", ["gae", "rloo_to_go", "reinforce_plus_plus"])
def test_credit_that_is_no_shaping_is_biased_wherever_it_reaches_the_token(name):
    assert group_gradient(WORLD, name, Uniform).cosine < 1 - 1e-4


def test_the_tables_have_a_row_for_every_method_and_a_column_for_every_estimator():
    found = estimator_gradients({"sparse": Sparse, "uniform": Uniform}, worlds=2, words=1)
    bias, noise = bias_table(found), noise_table(found)
    assert bias.columns == noise.columns == ("method", *ESTIMATORS)
    assert [row[0] for row in bias.rows] == [row[0] for row in noise.rows] == ["sparse", "uniform"]
    assert bias.rows[0][1] == "1.000 (1.00)"
    assert all(variance > 0 for row in noise.rows for variance in row[1:])
