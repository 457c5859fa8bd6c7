"""Gradients of the policy loss, and how to judge them: direction, and noise over repeated rollouts.

A gradient is one vector over ``policy.parameters()`` in their order, flattened, float32; the value head's part is 0, as
the policy loss does not reach it. R gradients of one policy of P parameters take 4·R·P bytes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from benchmarks.reporting.statistics import LEVEL, Summary
from redistributors import compare_on
from rlhf_core.batching import micro_batches
from rlhf_core.config import PPOConfig
from rlhf_core.losses import policy_loss
from rlhf_core.masking import masked_whiten
from rlhf_core.types import Policy, Rollout, Sequences

CLIP_RANGE = 0.2
"""Any would do: no ratio is clipped where all are 1."""


def policy_gradients(
    policy: Policy, sequences: Sequences, advantages: Mapping[str, Float[Tensor, "batch response"]], config: PPOConfig
) -> dict[str, Float[Tensor, " parameter"]]:
    """∇ of PPO's policy loss before the first optimizer step, at ratio 1: −1/n · Σ_t Â_t ∇ log π(y_t) over n tokens.

    ``advantages`` are as an estimator gives them (score units); they are whitened over the batch here, as the update
    does. Of ``config`` act ``temperature`` and ``micro_batch_tokens``: one forward pass, of so many tokens at a time,
    serves all of them. Weights, and the gradients that parameters may hold, are left as they are. Units: whitened
    advantages carry none, so nats⁻¹ of a parameter's own.
    """
    parameters, mask = list(policy.parameters()), sequences.response_mask
    white = {name: masked_whiten(some, mask) for name, some in advantages.items()}
    total = {name: torch.zeros(sum(p.numel() for p in parameters), device=mask.device) for name in white}
    for rows in micro_batches(sequences, config.micro_batch_tokens):
        part = sequences.select(rows)
        share, width = int(part.response_mask.sum()) / int(mask.sum()), part.response_ids.shape[1]
        new = policy.evaluate(part, frozenset(), temperature=config.temperature).logprobs
        for name, some in white.items():
            loss, _ = policy_loss(new, new.detach(), some[rows, :width], part.response_mask, clip_range=CLIP_RANGE)
            found = torch.autograd.grad(loss * share, parameters, retain_graph=True, materialize_grads=True)
            total[name] += torch.cat([gradient.float().flatten() for gradient in found])
    return total


def reference_gradient(
    policy: Policy, rollouts: Iterable[Rollout], *, config: PPOConfig, kl_coef: float
) -> Float[Tensor, " parameter"]:
    """The many-sample estimate: mean gradient of sparse credit at λ = 1 with GAE, which a critic's errors do not bias,
    over rollouts of the same prompts. They are taken one at a time.

    Raises:
        ValueError: no rollouts.
    """
    unbiased, total, count = replace(config, lam=1.0, advantages="gae"), torch.zeros(()), 0
    for rollout in rollouts:
        credit = compare_on(rollout, ["sparse"], config=unbiased, kl_coef=kl_coef)["sparse"]
        found = policy_gradients(policy, rollout.sequences, {"": credit.advantages}, config)
        total, count = total + found[""], count + 1
    if not count:
        raise ValueError("reference_gradient: no rollouts were given")
    return total / count


def cosine(one: Float[Tensor, " parameter"], other: Float[Tensor, " parameter"]) -> float:
    """⟨a, b⟩ / (‖a‖ ‖b‖); NaN where either is 0 and has no direction."""
    a, b = one.double(), other.double()
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else float("nan")


def gram(gradients: Float[Tensor, "repetition parameter"]) -> Float[Tensor, "repetition repetition"]:
    """Inner products of every two gradients, float64."""
    wide = gradients.double()
    return wide @ wide.T


def squared_norm_of_expectation(products: Float[Tensor, "repetition repetition"]) -> float:
    """‖E g‖² without bias: the mean of ⟨g_r, g_s⟩ over r ≠ s. (‖ḡ‖² is larger by tr Cov / R, which is most of it where
    noise is.) May come out negative.

    Raises:
        ValueError: fewer than two repetitions.
    """
    repetitions = len(products)
    if repetitions < 2:
        raise ValueError(f"the noise of a gradient shows in 2 repetitions or more, got {repetitions}")
    return float((products.sum() - products.trace()) / (repetitions * (repetitions - 1)))


def signal_to_noise(products: Float[Tensor, "repetition repetition"]) -> float:
    """‖E g‖² / tr Cov(g) of the gradients whose :func:`gram` this is, both estimated without bias: negative where noise
    hides the signal, infinite where nothing varies, NaN where all gradients are 0.

    Raises:
        ValueError: fewer than two repetitions.
    """
    signal = squared_norm_of_expectation(products)
    trace = float(products.trace()) / len(products) - signal
    if trace > 0:
        return signal / trace
    return float("inf") if signal > 0 else float("nan")


def expected_cosine(
    products: Float[Tensor, "repetition repetition"], with_reference: Float[Tensor, " repetition"], reference: float
) -> float:
    """Cosine of E g with the gradient that a reference estimates, noise of both removed from the norms: 1 for a method
    without bias, give or take; NaN where a squared norm comes out at 0 or below.

    ``with_reference``: ⟨g_r, reference⟩; ``reference``: its squared norm without bias, ⟨a, b⟩ of independent halves.

    Raises:
        ValueError: fewer than two repetitions.
    """
    signal = squared_norm_of_expectation(products)
    if signal <= 0 or reference <= 0:
        return float("nan")
    return float(with_reference.double().mean() / np.sqrt(signal * reference))


def jackknifed(statistic: Callable[[Tensor], float], repetitions: int) -> Summary:
    """``statistic`` of all repetitions (it is given the indices to use), with the 95 % t-interval of its jackknife.

    s² = (R − 1)/R · Σ_r (θ₍ᵣ₎ − θ̄)², θ₍ᵣ₎ without repetition r (Efron and Stein 1981). NaN edges where some θ₍ᵣ₎ is.
    """
    every = torch.arange(repetitions)
    left_out = np.array([statistic(every[every != r]) for r in range(repetitions)])
    error = np.sqrt((repetitions - 1) * left_out.var()) * stats.t.ppf((1 + LEVEL) / 2, repetitions - 1)
    mean = statistic(every)
    return Summary(mean=mean, low=float(mean - error), high=float(mean + error), kind="95 % interval")


def inverted(ratio: Summary) -> Summary:
    """The interval of 1 / ratio: open above (infinite) where that of the ratio reaches 0, NaN where all of it does not
    exceed 0. Intervals of a ratio whose denominator may be 0 are had so (Fieller 1954)."""
    if not ratio.high > 0:
        return replace(ratio, mean=float("nan"), low=float("nan"), high=float("nan"))
    mean, high = (1 / value if value > 0 else float("inf") for value in (ratio.mean, ratio.low))
    return replace(ratio, mean=mean, low=1 / ratio.high, high=high)
