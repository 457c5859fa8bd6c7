import math

import pytest
import torch

from rlhf_core.kl import AdaptiveKL, FixedKL, kl_estimate


def test_hand_computed_estimates():
    logprobs, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    assert kl_estimate(logprobs, ref, "k1").tolist() == [[0.5, -1.0]]
    assert kl_estimate(logprobs, ref, "abs").tolist() == [[0.5, 1.0]]
    assert kl_estimate(logprobs, ref, "k2").tolist() == [[0.125, 0.5]]
    expected = torch.tensor([[math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1]])
    torch.testing.assert_close(kl_estimate(logprobs, ref, "k3"), expected)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_unbiased_estimators_average_to_the_exact_kl(kind):
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    exact = (p * (p / q).log()).sum()
    each = kl_estimate(p.log()[None], q.log()[None], kind)[0]
    torch.testing.assert_close((p * each).sum(), exact)


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="no estimator 'full'.*k1, abs, k2, k3"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), "full")


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.2), (3.0, 0.2 * (1 - 0.2 * 16 / 10_000)), (6.6, 0.2 * (1 + 0.1 * 16 / 10_000)), (600.0, 0.2 * 1.00032)],
)
def test_adaptive_controller_by_hand(kl, expected):
    controller = AdaptiveKL(init_coef=0.2, target=6.0, horizon=10_000)
    controller.update(kl, 16)
    assert controller.coef == pytest.approx(expected, rel=1e-9)


def test_fixed_controller_stays():
    controller = FixedKL(0.3)
    controller.update(100.0, 16)
    assert controller.coef == 0.3
