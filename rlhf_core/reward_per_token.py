"""Credit for responses that another library sampled: token ids in, one reward per token out."""

from collections.abc import Sequence
from itertools import chain

import torch

from rlhf_core.checks import require_token_scores, why_not_provided
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.evidence_of_rollout import scored_responses
from rlhf_core.given_sequences import Rows, given_sequences
from rlhf_core.types import HasIdRange, Learns, Redistributor, RewardModel, Rollout, Sequences


@torch.no_grad()
def token_rewards(
    reward_model: RewardModel, redistributor: Redistributor, prompt_ids: Rows, response_ids: Rows
) -> list[list[float]]:
    """Score each response with ``reward_model``, and spread the score over its tokens with ``redistributor``: the
    rewards that a trainer of another library takes.

    ``prompt_ids`` and ``response_ids`` are token ids of the reward model's tokenizer, a row for each response, without
    padding; rows may differ in length. Every response counts as finished, not as cut at a length limit. The answer has
    a row for each response and a number for each of its tokens, in the units of the reward model's scores: nothing is
    centred, scaled or clipped, and no KL penalty is subtracted. For a method that is ``conserving``, a row adds up to
    the response's score.

    No policy takes part, so a method must need nothing from one: sparse, uniform, abc, gradient, leave-one-out and
    others work; abc-d, entropy, monte-carlo and others are refused.

    Raises:
        TypeError: ``redistributor`` is not a redistributor.
        ValueError: a method that needs evidence of the policy or its reference, that learns while a policy is trained,
            or whose evidence the reward model cannot give; no rows, an empty row, or another number of prompts than of
            responses; a token id that the reward model has no embedding for; a reward model that does not return one
            score per response.
        FloatingPointError: a score or a token's reward that is not finite; names the row.
    """
    require_policy_free(reward_model, redistributor)
    sequences = given_sequences(prompt_ids, response_ids, finished=True)
    _require_known_ids(reward_model, prompt_ids, response_ids)
    rollout = _scored(reward_model, sequences, redistributor.needs)
    rewards = redistributor(rollout)
    require_token_scores(rewards, rollout, redistributor)
    return [row[: len(response)].tolist() for row, response in zip(rewards, response_ids, strict=True)]


def require_policy_free(reward_model: RewardModel, redistributor: Redistributor) -> None:
    """Raise TypeError or ValueError, as :func:`token_rewards` does, for a method that it cannot serve."""
    if not isinstance(redistributor, Redistributor) or isinstance(redistributor, type):
        raise TypeError(
            f"token_rewards: redistributor must be a method itself, such as RewardAttention(), got {redistributor!r}"
        )
    if isinstance(redistributor, Learns):
        raise ValueError(
            f"token_rewards: {redistributor!r} learns while a policy is trained, and no policy is trained here; use a "
            "method that does not learn, such as RewardAttention()"
        )
    for request in sorted(redistributor.needs, key=repr):
        if request.source != "reward":
            raise ValueError(
                f"token_rewards: {redistributor!r} needs {request!r} of the {request.source}, and no policy takes part "
                "here; use a method that asks the reward model alone, such as RewardAttention()"
            )
        if reason := why_not_provided(request, reward_model):
            raise ValueError(
                f"token_rewards: {redistributor!r} needs {request!r}, which {type(reward_model).__name__} cannot give: "
                f"{reason}"
            )


def _require_known_ids(reward_model: RewardModel, prompt_ids: Rows, response_ids: Rows) -> None:
    """Ids of another tokenizer often lie beyond the embedding; an error there would name no row."""
    if not isinstance(reward_model, HasIdRange):
        return
    size = reward_model.vocab_size
    for row, ids in enumerate(map(list, map(chain, prompt_ids, response_ids))):
        wrong = [token for token in ids if not 0 <= token < size]
        if wrong:
            raise ValueError(
                f"token_rewards: row {row} holds token id {wrong[0]}, but {type(reward_model).__name__} reads only 0 "
                f"to {size - 1}; give ids of the reward model's own tokenizer"
            )


def _scored(reward_model: RewardModel, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Rollout:
    """A rollout of what a reward model knows; what a policy would know is NaN, so that no method reads it unnoticed."""
    scored = scored_responses(reward_model, sequences, needs)
    scores, mask = scored.scores.detach().to("cpu", torch.float32), sequences.response_mask
    _require_finite(scores)
    unknown = torch.where(mask, torch.nan, 0.0)
    return Rollout(
        sequences=sequences,
        logprobs=unknown,
        ref_logprobs=unknown,
        values=unknown,
        kl=unknown,
        raw_scores=scores,
        scores=scores,
        score_scale=1.0,
        evidence={request: scored.evidence[request].cpu() for request in needs},
    )


def _require_finite(scores: torch.Tensor) -> None:
    rows: Sequence[int] = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if rows:
        raise FloatingPointError(f"token_rewards: the score of row {rows[0]} is {float(scores[rows[0]])}, not finite")
