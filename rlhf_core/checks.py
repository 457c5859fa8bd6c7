"""Checks that turn a silent bug into an error on the first step.

The figures they look at are logged on every step.
"""

import copy
import warnings
from reprlib import repr as shortened
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import HasIdRange, HasVocabulary, Learns, Policy, Redistributor, RewardModel, Rollout, Sequences

LOG_RATIO_MAX = {torch.float32: 1e-4}
LOG_RATIO_MAX_LOW_PRECISION = 0.1
LOG_RATIO_MEAN_LOW_PRECISION = 0.01
CREDIT_SUM_TOLERANCE = 1e-4
LARGEST_NUMBER = 1e12
"""No number that enters a step may be larger in size. Squares of such numbers, of their differences, and sums of those
over 1e13 tokens then fit float32 (3.4e38), and so does one times the largest ratio (``losses.LOG_RATIO_LIMIT``)."""
# longer than the segments, sinks and spans anybody would set
TRIAL_LENGTH = 64


class HealthError(RuntimeError):
    """A run that would train on wrong numbers."""


def require_usable(name: str, values: Tensor, policy: Policy, sequences: Sequences) -> None:
    """Raise FloatingPointError naming the first rows whose ``values`` are NaN, infinite or beyond ``LARGEST_NUMBER``,
    with their texts."""
    rows = (~usable(values)).reshape(len(values), -1).any(1).nonzero().flatten().tolist()
    if not rows:
        return
    responses = sequences.responses()
    written = repr if values.ndim < 3 else shortened  # a row of hidden states would fill pages
    shown = [
        f"row {row}: {written(values[row].tolist())} for {policy.decode([responses[row]])[0]!r}" for row in rows[:3]
    ]
    wrong = "are not finite" if not bool(torch.isfinite(values).all()) else f"exceed {LARGEST_NUMBER:.0e} in size"
    raise FloatingPointError(f"{name}: {len(rows)} of {len(values)} rows {wrong}; " + "; ".join(shown))


def usable(values: Tensor) -> Tensor:
    """Where values are numbers that can be computed with: finite, and no larger than ``LARGEST_NUMBER``."""
    return values.abs() <= LARGEST_NUMBER  # which NaN is not


def log_ratio_bounds(dtype: torch.dtype) -> tuple[float, float]:
    """Largest |log ratio| and largest mean |log ratio| that rounding alone explains, in nats."""
    if dtype in LOG_RATIO_MAX:
        return LOG_RATIO_MAX[dtype], LOG_RATIO_MAX[dtype]
    return LOG_RATIO_MAX_LOW_PRECISION, LOG_RATIO_MEAN_LOW_PRECISION


def check_log_ratio(largest: float, mean: float, dtype: torch.dtype) -> str | None:
    """Before the first optimizer step every probability ratio is 1; what is wrong, or None."""
    most, most_mean = log_ratio_bounds(dtype)
    if largest <= most and mean <= most_mean:
        return None
    return (
        f"before the first optimizer step |log ratio| reaches {largest:.2e} (mean {mean:.2e}); rounding in {dtype} "
        f"explains {most:.0e} (mean {most_mean:.0e}). policy.evaluate does not repeat in the update what it gave in "
        "the rollout: look for dropout, a train/eval difference, or padding that leaks into the logits"
    )


def check_reference(rollout: Rollout, dtype: torch.dtype) -> str | None:
    """A policy that has not been trained yet is its reference; what is wrong, or None."""
    gap = float((rollout.logprobs - rollout.ref_logprobs).abs().max())
    most, _ = log_ratio_bounds(dtype)
    if gap <= most:
        return None
    return (
        f"before the first update policy and reference differ by up to {gap:.2e} nats a token (rounding in {dtype}: "
        f"{most:.0e}). The reference is not the model that training starts from"
    )


def check_credit(token_scores: Tensor, rollout: Rollout, redistributor: Redistributor) -> str | None:
    """A conserving redistributor keeps every score; what is wrong, or None."""
    size = torch.maximum(rollout.scores.abs(), token_scores.abs().sum(1)).clamp(min=1)  # that of what is rounded
    error = float(((token_scores.sum(1) - rollout.scores).abs() / size).max())
    if not redistributor.conserving or error <= CREDIT_SUM_TOLERANCE:
        return None
    return f"{redistributor!r} declares conserving, but its token scores miss the score by up to {error:.2e} (relative)"


def conservation_error(token_scores: Float[Tensor, "batch response"], rollout: Rollout) -> float:
    """Largest |Σ_t token_score − score| / max(1, |score|) of the batch."""
    missing = (token_scores.sum(1) - rollout.scores).abs()
    return float((missing / rollout.scores.abs().clamp(min=1)).max())


def report(problem: str | None, severity: Literal["error", "warn"]) -> None:
    """Raise HealthError, or warn where the config says so; nothing where there is no problem."""
    if problem is None:
        return
    if severity == "error":
        raise HealthError(f"{problem}. (config.first_step_checks='warn' goes on regardless.)")
    warnings.warn(problem, RuntimeWarning, stacklevel=2)


def require_token_scores(token_scores: Tensor, rollout: Rollout, redistributor: Redistributor) -> None:
    """Raise where a redistributor breaks its contract in a way no training should survive.

    Raises:
        HealthError: wrong shape, gradient attached, or not 0 on padding.
        FloatingPointError: a number that is not finite, or too large.
    """
    mask = rollout.sequences.response_mask
    who = f"{redistributor!r} returned token scores"
    if token_scores.shape != mask.shape:
        raise HealthError(f"{who} of shape {tuple(token_scores.shape)}, not {tuple(mask.shape)}")
    if token_scores.requires_grad:
        raise HealthError(f"{who} with a gradient; detach them")
    sound = usable(token_scores)
    if not bool(sound.all()):
        row = int((~sound).any(1).nonzero()[0])
        wrong = "not finite" if not bool(torch.isfinite(token_scores).all()) else f"above {LARGEST_NUMBER:.0e} in size"
        raise FloatingPointError(f"{who} that are {wrong}, first in row {row}: {token_scores[row].tolist()}")
    if bool((token_scores[~mask] != 0).any()):
        row = int(((token_scores != 0) & ~mask).any(1).nonzero()[0])
        raise HealthError(f"{who} on padding, first in row {row}: {token_scores[row].tolist()}")


def check_needs(redistributor: Redistributor, policy: Policy, reward: RewardModel) -> None:
    """Refuse, at construction, a redistributor whose evidence no model can give.

    Raises:
        TypeError: not a redistributor, the class of one, or one that learns and cannot be saved.
        ValueError: a request that its source does not provide, with the reason where the source states one
            (``why_not(request)``).
    """
    if isinstance(redistributor, type):
        name = redistributor.__name__
        raise TypeError(f"redistributor must be an instance: give {name}(), not the class {name}")
    if not isinstance(redistributor, Redistributor):
        raise TypeError(
            f"redistributor must have needs, causal, conserving and be callable on a rollout, got {redistributor!r}"
        )
    if hasattr(redistributor, "observe") and not isinstance(redistributor, Learns):
        raise TypeError(f"{redistributor!r} has observe, and so must have state and load_state, for checkpoints")
    for request in redistributor.needs:
        source: Policy | RewardModel = reward if request.source == "reward" else policy
        if not source.provides(request):
            why = getattr(source, "why_not", _no_reason)(request)
            raise ValueError(f"{redistributor!r} needs {request!r}, which {type(source).__name__} cannot give: {why}")


def _no_reason(request: EvidenceRequest) -> str:
    return "it does not measure such evidence"


def check_vocabulary(policy: Policy, reward: RewardModel) -> None:
    """Refuse a policy and a reward model that read different tokens in the same ids; skipped where either is unknown.

    Raises:
        ValueError: the vocabularies differ; names the first tokens that do.
    """
    if not (isinstance(policy, HasVocabulary) and isinstance(reward, HasVocabulary)):
        return
    ours, theirs = policy.vocabulary, reward.vocabulary
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        shown = ", ".join(f"{token!r} is {ours.get(token)} and {theirs.get(token)}" for token in differing[:3])
        raise ValueError(
            f"policy and reward model must share a tokenizer, but {len(differing)} of their {len(ours)} and "
            f"{len(theirs)} tokens differ ({shown}); load a reward model trained with the policy's tokenizer"
        )


def check_id_range(policy: Policy, reward: RewardModel) -> None:
    """Refuse a policy that may draw ids the reward model has no embedding for; skipped where either range is unknown.

    Equal tokenizers do not settle it: an embedding is often padded beyond its tokenizer.

    Raises:
        ValueError: the policy's range is the longer one.
    """
    if isinstance(policy, HasIdRange) and isinstance(reward, HasIdRange) and policy.vocab_size > reward.vocab_size:
        raise ValueError(
            f"the policy draws token ids 0 to {policy.vocab_size - 1}, but the reward model reads only 0 to "
            f"{reward.vocab_size - 1}; bring both embeddings to one size with resize_token_embeddings and save again"
        )


def at_temperature(policy: Policy, temperature: float) -> Policy:
    """``policy`` at the config's temperature, which is the run's: a shallow copy, so that the given one, and whoever
    else trains it, keeps its own.

    Raises:
        ValueError: it was given a temperature other than 1 and other than the config's, naming both.
    """
    if policy.temperature not in (1, temperature):
        raise ValueError(
            f"the policy has temperature {policy.temperature}, the config {temperature}, and a run uses the config's: "
            f"give PPOConfig(temperature={policy.temperature}), or leave the policy's at 1"
        )
    view = copy.copy(policy)
    view.temperature = temperature
    return view


def check_gamma(redistributor: Redistributor, gamma: float) -> None:
    """Refuse gamma ≠ 1 where it would change which responses are best.

    Discounting credit that is conserved but lands before the last token breaks return equivalence; sparse with
    gamma < 1 is an ordinary baseline. A method that knows its discount says so in ``gamma``.

    Raises:
        ValueError: such a combination, or a method made for another gamma.
    """
    own = getattr(redistributor, "gamma", gamma)
    if own != gamma:
        raise ValueError(f"{redistributor!r} is exact at gamma {own}, the config's gamma is {gamma}; make them equal")
    if gamma != 1 and redistributor.conserving and not hasattr(redistributor, "gamma") and _lands_early(redistributor):
        raise ValueError(
            f"{redistributor!r} conserves the score but places it before the last token: with gamma {gamma} that "
            "changes which response is best. Use gamma 1 (and lower lam instead), or sparse"
        )


def _lands_early(redistributor: Redistributor) -> bool:
    """Whether a long response, whose evidence falls from token to token, earns anything before its last one."""
    length = TRIAL_LENGTH
    ids, tokens = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, length)
    mask, lengths = torch.ones(1, length, dtype=torch.bool), torch.tensor([length])
    sequences = Sequences(
        prompt_ids=ids,
        prompt_mask=mask,
        response_ids=ids,
        response_mask=mask,
        min_lengths=lengths,
        max_lengths=lengths,
        finished=torch.tensor([True]),
    )
    probe = Rollout(
        sequences=sequences,
        logprobs=tokens,
        ref_logprobs=tokens,
        values=tokens,
        kl=tokens,
        raw_scores=torch.ones(1),
        scores=torch.ones(1),
        score_scale=1.0,
        evidence={request: _falling(request.shape(1, length)) for request in redistributor.needs},
    )
    return bool((redistributor(probe)[:, :-1] != 0).any())


def _falling(shape: tuple[int, ...]) -> Tensor:
    """Made-up evidence: falling over tokens, where the request has any."""
    evidence = torch.ones(shape)
    if shape[1:2] == (TRIAL_LENGTH,):
        evidence = evidence * torch.linspace(1, 0.1, TRIAL_LENGTH).reshape(1, -1, *(1 for _ in shape[2:]))
    return evidence
