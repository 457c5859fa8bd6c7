"""Advantages and returns. All tensors are (batch, response); everything is 0 on padding; nothing is whitened.

Time index: ``values[:, t]`` is the value of the state *before* token t, ``rewards[:, t]`` what token t earned. The
value after a row's last token is 0, also when the response was cut by its length limit: the score judges the cut
response as it stands, so nothing is left to bootstrap from.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def generalized_advantages(
    rewards: Float[Tensor, "batch response"],
    values: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    gamma: float,
    lam: float | Float[Tensor, " batch"],
) -> Float[Tensor, "batch response"]:
    """Generalized advantage estimates, A_t = Σ_k (γλ)ᵏ δ_{t+k} with δ_t = r_t + γ V_{t+1} − V_t, in score units.

    ``rewards`` are r_t, ``values`` V_t before token t, ``mask`` is True on response tokens; ``gamma`` is γ, ``lam`` λ.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation",
    eq. 11 and 16. Recursion: A_t = δ_t + γ λ A_{t+1}. λ = 0 is the TD error, λ = 1 the reward-to-go minus
    the value. λ may be one number, or one per response.
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    errors = rewards + gamma * next_values - values
    return _discounted_sum(errors, gamma * lam)


def lambda_returns(
    rewards: Float[Tensor, "batch response"],
    values: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "batch response"]:
    """λ-returns, G_t = r_t + γ ((1 − λ) V_{t+1} + λ G_{t+1}): the value loss's targets; advantages are G − V.

    ``rewards`` are r_t, ``values`` V_t before token t, ``mask`` is True on response tokens; ``gamma`` is γ, ``lam`` λ.

    Source: Sutton and Barto 2018, "Reinforcement learning", eq. 12.18 (recursive form, with state values).
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    return _discounted_sum(rewards + gamma * (1 - lam) * next_values, gamma * lam)


def discounted_returns(
    rewards: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"], *, gamma: float
) -> Float[Tensor, "batch response"]:
    """Discounted reward-to-go, G_t = r_t + γ G_{t+1} (Sutton and Barto 2018, eq. 3.9), of ``rewards`` where ``mask``;
    ``gamma`` is γ."""
    return torch.where(mask, _discounted_sum(torch.where(mask, rewards, 0), gamma), 0)


def _discounted_sum(
    x: Float[Tensor, "batch response"], discount: float | Float[Tensor, " batch"]
) -> Float[Tensor, "batch response"]:
    """y_t = x_t + discount · y_{t+1}, one backward scan."""
    total = x.new_zeros(x.shape[0])
    columns = []
    for t in reversed(range(x.shape[1])):
        total = x[:, t] + discount * total
        columns.append(total)
    return torch.stack(columns[::-1], dim=1) if columns else x
