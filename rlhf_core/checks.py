"""Checks that turn a silent bug into an error on the first step.

The metrics they use are logged on every step.
"""

from collections.abc import Iterable
from reprlib import repr as shortened
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.callers import warn_caller
from rlhf_core.evidence import ContinuationValues, EvidenceRequest
from rlhf_core.masking import last_token
from rlhf_core.names import method_name
from rlhf_core.tf32 import multiplies_in_tf32
from rlhf_core.types import (
    HasIdRange,
    HasVocabulary,
    Learns,
    Policy,
    Redistributor,
    RewardModel,
    Rollout,
    SaysWhyNot,
    Sequences,
)

LOG_RATIO_MAX = {torch.float32: 1e-4}
# bfloat16 rounds a logit between 16 and 32, as pretrained models have, by up to 0.06. SmolLM2-135M reaches 0.33, mean
# 0.04; with an attention dropout of 0.01 it reaches 4.4, mean 0.2 (docs/performance.md).
LOG_RATIO_MAX_LOW_PRECISION = 1.0
LOG_RATIO_MEAN_LOW_PRECISION = 0.1
CREDIT_SUM_TOLERANCE = 1e-4
LARGEST_NUMBER = 1e12
"""No number that enters a step may be larger in size. Squares of such numbers, of their differences, and sums of those
over 1e13 tokens then fit float32 (3.4e38), and so does one times the largest ratio (``losses.LOG_RATIO_LIMIT``)."""


class HealthError(RuntimeError):
    """The run would train on wrong numbers."""


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
    """True where values are finite and no larger than ``LARGEST_NUMBER`` in size."""
    return values.abs() <= LARGEST_NUMBER  # which NaN is not


def log_ratio_bounds(dtype: torch.dtype) -> tuple[float, float]:
    """Largest |log ratio| and largest mean |log ratio| that rounding alone explains, in nats; TF32 on a card rounds as
    bfloat16 does here."""
    if dtype in LOG_RATIO_MAX and not multiplies_in_tf32():
        return LOG_RATIO_MAX[dtype], LOG_RATIO_MAX[dtype]
    return LOG_RATIO_MAX_LOW_PRECISION, LOG_RATIO_MEAN_LOW_PRECISION


def why_not_repeated(largest: float, mean: float, dtype: torch.dtype) -> str:
    """Why |log ratio| is not 0 before the first optimizer step, as it must be; empty if it is, up to rounding."""
    most, most_mean = log_ratio_bounds(dtype)
    if largest <= most and mean <= most_mean:
        return ""
    return (
        f"before the first optimizer step |log ratio| reaches {largest:.2e} (mean {mean:.2e}); rounding in {dtype} "
        f"explains {most:.0e} (mean {most_mean:.0e}). policy.evaluate does not repeat in the update what it gave in "
        "the rollout: look for dropout, a train/eval difference, or padding that leaks into the logits"
    )


def why_not_reference(rollout: Rollout, dtype: torch.dtype) -> str:
    """Why an untrained policy differs from its reference; empty if it does not, up to rounding."""
    gap = float((rollout.logprobs - rollout.ref_logprobs).abs().max())
    most, _ = log_ratio_bounds(dtype)
    if gap <= most:
        return ""
    return (
        f"before the first update policy and reference differ by up to {gap:.2e} nats per token (rounding in {dtype}: "
        f"{most:.0e}). The reference is not the model that training starts from"
    )


def why_not_conserved(token_scores: Tensor, rollout: Rollout, redistributor: Redistributor) -> str:
    """Why a conserving redistributor missed the scores; empty if it kept them, or is not declared conserving."""
    size = torch.maximum(rollout.scores.abs(), token_scores.abs().sum(1)).clamp(min=1)  # that of what is rounded
    error = float(((token_scores.sum(1) - rollout.scores).abs() / size).max())
    if not redistributor.conserving or error <= CREDIT_SUM_TOLERANCE:
        return ""
    who = method_name(redistributor)
    return f"{who} declares conserving, but its token scores miss the score by up to {error:.2e} (relative)"


def conservation_error(token_scores: Float[Tensor, "batch response"], rollout: Rollout) -> float:
    """Largest |Σ_t token_score − score| / max(1, |score|) of the batch."""
    missing = (token_scores.sum(1) - rollout.scores).abs()
    return float((missing / rollout.scores.abs().clamp(min=1)).max())


def report(problem: str, severity: Literal["error", "warn"]) -> None:
    """Raise HealthError, or warn if the config says so; do nothing if ``problem`` is empty."""
    if not problem:
        return
    if severity == "error":
        raise HealthError(f"{problem}. (config.first_step_checks='warn' goes on regardless.)")
    warn_caller(problem, RuntimeWarning)


def require_token_scores(token_scores: Tensor, rollout: Rollout, redistributor: Redistributor) -> None:
    """Raise if a redistributor breaks its contract so badly that training must not continue.

    Raises:
        HealthError: wrong shape, gradient attached, or not 0 on padding.
        FloatingPointError: a number that is not finite, or too large.
    """
    mask = rollout.sequences.response_mask
    who = f"{method_name(redistributor)} returned token scores"
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
    """Refuse, at construction, a redistributor if no model can provide its evidence.

    Raises:
        TypeError: not a redistributor, the class of one, or one that learns and cannot be saved.
        ValueError: a request that its source does not provide, with the reason if the source states one
            (``SaysWhyNot``).
    """
    if isinstance(redistributor, type):
        name = redistributor.__name__
        raise TypeError(f"redistributor must be an instance: give {name}(), not the class {name}")
    if isinstance(redistributor, str):
        raise TypeError(
            f"redistributor must be a method itself, not its name {redistributor!r}: give "
            f"REDISTRIBUTORS[{redistributor!r}](), with REDISTRIBUTORS from the package redistributors"
        )
    if not isinstance(redistributor, Redistributor):
        raise TypeError(
            f"redistributor must have needs, causal, conserving and be callable on a rollout, got {redistributor!r}"
        )
    if hasattr(redistributor, "observe") and not isinstance(redistributor, Learns):
        raise TypeError(
            f"{method_name(redistributor)} has observe, and so must have state and load_state, for checkpoints"
        )
    for request in redistributor.needs:
        source: Policy | RewardModel = reward if request.source == "reward" else policy
        if reason := why_not_provided(request, source):
            raise ValueError(
                f"{method_name(redistributor)} needs {request!r}, which {type(source).__name__} cannot give: {reason}"
            )


def needs_of(methods: Iterable[Redistributor], policy: Policy, reward: RewardModel) -> frozenset[EvidenceRequest]:
    """The evidence that all methods need together; raises like ``check_needs`` for a method that cannot be served."""
    needs: frozenset[EvidenceRequest] = frozenset()
    for method in methods:
        check_needs(method, policy, reward)
        needs |= method.needs
    return needs


def why_not_provided(request: EvidenceRequest, source: Policy | RewardModel) -> str:
    """Why a model cannot provide a piece of evidence, as the model itself explains if it can; empty if it provides it,
    or if the engine makes it from samples and scores, which every model gives."""
    if isinstance(request, ContinuationValues) or source.provides(request):
        return ""
    return (source.why_not(request) if isinstance(source, SaysWhyNot) else "") or "it does not measure such evidence"


def check_vocabulary(policy: Policy, reward: RewardModel) -> None:
    """Refuse a policy and a reward model that map the same ids to different tokens; skipped if either is unknown.

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
    """Refuse a policy that may sample ids for which the reward model has no embedding; skipped if a range is unknown.

    Equal tokenizers do not guarantee this, because embeddings are often padded beyond the tokenizer.

    Raises:
        ValueError: the policy's range is the longer one.
    """
    if isinstance(policy, HasIdRange) and isinstance(reward, HasIdRange) and policy.vocab_size > reward.vocab_size:
        raise ValueError(
            f"the policy draws token ids 0 to {policy.vocab_size - 1}, but the reward model reads only 0 to "
            f"{reward.vocab_size - 1}; bring both embeddings to one size with resize_token_embeddings and save again"
        )


def check_gamma(redistributor: Redistributor, gamma: float) -> None:
    """Refuse a gamma that the method is not made for, and gamma ≠ 1 if it changes which responses are best.

    Discounting credit that is conserved but lands before the last token breaks return equivalence; sparse with
    gamma < 1 is an ordinary baseline. Credit that lands on the last token alone is causal, so what is not causal lands
    before it; of what is, ``check_placement`` sees where it lands. A method that knows its discount says so in
    ``gamma``.

    Raises:
        ValueError: such a combination.
    """
    own = getattr(redistributor, "gamma", gamma)
    if own != gamma:
        raise ValueError(
            f"{method_name(redistributor)} is exact at gamma {own}, the config's gamma is {gamma}; make them equal"
        )
    if _discount_matters(redistributor, gamma) and not redistributor.causal:
        raise ValueError(_lands_early(redistributor, gamma))


def check_placement(token_scores: Tensor, rollout: Rollout, redistributor: Redistributor, gamma: float) -> None:
    """Refuse gamma ≠ 1 for conserved credit that, as these token scores show, lands before the last token.

    Raises:
        ValueError: it does.
    """
    if _discount_matters(redistributor, gamma) and _lands_before_the_last(token_scores, rollout):
        raise ValueError(_lands_early(redistributor, gamma))


def why_not_kept(token_scores: Tensor, rollout: Rollout, redistributor: Redistributor, advantages: str) -> str:
    """Why an estimator that adds up a response's rewards would lose this credit; empty where there is none to lose."""
    if not _lands_before_the_last(token_scores, rollout):
        return ""
    return (
        f"{method_name(redistributor)} places credit before the last token, and advantages {advantages!r} add up "
        "a response's rewards before they compare them: the credit is lost, and training is the same as with sparse. "
        "Use advantages 'rloo_to_go', which compare token by token, or 'gae'; or sparse"
    )


def warn_if_counted_twice(redistributor: Redistributor, advantages: str) -> None:
    """Warn of credit that sums to the score, for an estimator that adds the score to the credit itself."""
    if redistributor.conserving:
        warn_caller(
            f"advantages {advantages!r} add the score to the credit, and the credit of {method_name(redistributor)} "
            "sums to the score, so the score counts twice. Use credit that is not the score again, such as log-ratio, "
            "or advantages 'rloo_to_go', which compare the credit alone",
            RuntimeWarning,
        )


def _lands_before_the_last(token_scores: Tensor, rollout: Rollout) -> bool:
    early = token_scores[~last_token(rollout.sequences.response_mask)]
    return bool(early.any())


def _discount_matters(redistributor: Redistributor, gamma: float) -> bool:
    return gamma != 1 and redistributor.conserving and not hasattr(redistributor, "gamma")


def _lands_early(redistributor: Redistributor, gamma: float) -> str:
    return (
        f"{method_name(redistributor)} conserves the score but places it before the last token: with gamma "
        f"{gamma} that changes which response is best. Use gamma 1 (and lower lam instead), or sparse"
    )
