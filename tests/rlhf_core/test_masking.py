import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.masking import last_token, masked_mean, masked_var, masked_whiten

X = torch.tensor([[1.0, 2.0, 100.0], [4.0, float("nan"), float("inf")]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_hand_computed_moments_ignore_what_is_masked():
    assert masked_mean(X, MASK) == pytest.approx(7 / 3)
    # deviations -4/3, -1/3, 5/3: squares 16/9 + 1/9 + 25/9 = 42/9, over n - 1 = 2
    assert masked_var(X, MASK) == pytest.approx(42 / 18)


def test_whitened_has_mean_zero_variance_one_and_zero_outside():
    white = masked_whiten(X, MASK)
    assert masked_mean(white, MASK) == pytest.approx(0, abs=1e-6)
    assert masked_var(white, MASK) == pytest.approx(1, abs=1e-5)
    assert torch.equal(white[~MASK], torch.zeros(3))
    scale = (42 / 18) ** -0.5
    torch.testing.assert_close(white[0, :2], torch.tensor([-4 / 3 * scale, -1 / 3 * scale]))


@pytest.mark.parametrize("x", [torch.tensor([[3.0]]), torch.full((2, 4), 5.0), torch.full((97, 1), 1000.1)])
def test_no_spread_whitens_to_zero(x):
    assert torch.equal(masked_whiten(x, torch.ones_like(x, dtype=torch.bool)), torch.zeros_like(x))


@pytest.mark.parametrize("function", [masked_mean, masked_var, masked_whiten])
def test_an_empty_mask_is_an_error(function):
    with pytest.raises(ValueError, match="selects nothing"):
        function(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))


def test_last_token_of_full_and_short_rows():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert last_token(mask).tolist() == [[False, False, True], [True, False, False]]


@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 10**6))
def test_agrees_with_numpy_on_the_selected_elements(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < 0.6
    mask[0, 0] = True
    chosen = x[mask].numpy()
    assert float(masked_mean(x, mask)) == pytest.approx(chosen.mean(), abs=1e-12)
    if len(chosen) > 1:
        assert float(masked_var(x, mask)) == pytest.approx(chosen.var(ddof=1), abs=1e-12)
