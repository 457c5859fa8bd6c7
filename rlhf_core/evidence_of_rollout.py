"""The evidence of a rollout: who is asked for it, and how a rollout that is there gets more of it."""

from dataclasses import replace

import torch
from torch import Tensor

from rlhf_core.batching import Budgets, TokenBudget
from rlhf_core.checks import require_usable
from rlhf_core.config import PPOConfig
from rlhf_core.continuations import continuation_values
from rlhf_core.evidence import ContinuationValues, EvidenceRequest
from rlhf_core.names import counted
from rlhf_core.policy_passes import evaluate
from rlhf_core.types import Policy, RewardModel, Rollout, Scored, Sequences


@torch.no_grad()
def with_evidence(
    rollout: Rollout,
    needs: frozenset[EvidenceRequest],
    *,
    policy: Policy,
    reward: RewardModel,
    config: PPOConfig,
    budgets: Budgets,
) -> Rollout:
    """``rollout`` with the evidence ``needs`` and no other; everything else stays as it was measured.

    Only the models that ``needs`` name are asked again, so that sparse credit costs nothing.

    Raises:
        MemoryError: a single row ran out of memory.
        FloatingPointError: a piece of evidence is not finite, or too large; names the row.
    """
    continued, of_policy, of_reward = by_who_answers(needs)
    evidence: dict[EvidenceRequest, Tensor] = {}
    if of_policy:
        evidence |= evaluate(policy, rollout.sequences, of_policy, config.temperature, budgets.micro_batch).evidence
    if of_reward:
        evidence |= scored_responses(reward, rollout.sequences, of_reward).evidence
    evidence |= values_of_continuations(
        continued, policy, reward, rollout.sequences, config=config, budget=budgets.sampling
    )
    found = {request: evidence[request].to(rollout.kl.device) for request in needs}
    for request, values in found.items():
        require_usable(f"evidence {request!r}", values, policy, rollout.sequences)
    return replace(rollout, evidence=found)


def by_who_answers(
    needs: frozenset[EvidenceRequest],
) -> tuple[frozenset[ContinuationValues], frozenset[EvidenceRequest], frozenset[EvidenceRequest]]:
    """What policy and reward model answer together, what the policy answers, and what the reward model does."""
    together = frozenset(request for request in needs if isinstance(request, ContinuationValues))
    of_policy = frozenset(request for request in needs - together if request.source != "reward")
    return together, of_policy, needs - together - of_policy


def scored_responses(reward: RewardModel, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
    """One score per response, and evidence; raises ValueError for another number of scores."""
    scored = reward.score(sequences, needs)
    if scored.scores.shape != (len(sequences),):  # one score would be broadcast to every response
        raise ValueError(
            f"{type(reward).__name__}.score returned scores of shape {tuple(scored.scores.shape)} for "
            f"{counted(len(sequences), 'response')}"
        )
    return scored


def values_of_continuations(
    needs: frozenset[ContinuationValues],
    policy: Policy,
    reward: RewardModel,
    sequences: Sequences,
    *,
    config: PPOConfig,
    budget: TokenBudget,
) -> dict[EvidenceRequest, Tensor]:
    """Evidence for which the policy goes on from inside the responses."""
    device = sequences.response_ids.device
    return {
        request: continuation_values(request, policy, reward, sequences, config=config, budget=budget).to(device)
        for request in needs
    }
