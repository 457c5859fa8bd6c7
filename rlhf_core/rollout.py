"""Collecting a rollout: sample, evaluate, compare with the reference, score. No gradient, no update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.batching import Budgets, TokenBudget, row_batches, run_in_parts
from rlhf_core.checks import require_usable
from rlhf_core.config import PPOConfig
from rlhf_core.continuations import continuation_values, greedy_scores
from rlhf_core.evidence import ContinuationValues, EvidenceRequest, FullKL, GreedyScores
from rlhf_core.kl import kl_estimate
from rlhf_core.policy_passes import evaluate, reference_logprobs
from rlhf_core.random_streams import Stream, stream, uniforms
from rlhf_core.rewards import ScoreMoments, normalise_scores
from rlhf_core.types import Limits, Policy, RewardModel, Rollout, Scored, Sequences

Ids = Sequence[Sequence[int]]
"""Prompts as token ids."""
LENGTHS: Mapping[str, Stream] = {"sampling": "lengths", "evaluation": "evaluation_lengths"}


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which random numbers a rollout uses; equal draws of one seed give equal limits and uniforms."""

    seed: int
    name: Literal["sampling", "evaluation"]
    step: int


@torch.no_grad()
def sample(policy: Policy, prompts: Ids, config: PPOConfig, draw: Draw, budgets: Budgets | None = None) -> Sequences:
    """One response per prompt, limits and uniforms from the named streams, so many tokens at a time as ``budgets``
    (the config's, unless given) allow; fewer, of the same rows, where memory runs out.

    Raises:
        MemoryError: a single row ran out of memory.
    """
    limits = _limits(config, len(prompts), draw)
    uniform = uniforms(draw.seed, draw.name, draw.step, len(prompts), int(limits.max_lengths.max()))
    lengths = torch.tensor([len(prompt) for prompt in prompts]) + limits.max_lengths

    def draw_rows(rows: Int[Tensor, " row"]) -> tuple[Int[Tensor, " row"], Sequences]:
        if len(rows) == len(prompts):  # in the order given
            return torch.arange(len(rows)), policy.sample(prompts, limits, uniform, temperature=config.temperature)
        return rows, _sample_rows(policy, prompts, limits, uniform, rows, temperature=config.temperature)

    budget = (budgets or Budgets.of(config)).sampling
    parts = run_in_parts(draw_rows, partial(row_batches, lengths), lengths, budget, phase="sampling")
    if len(parts) == 1:
        return parts[0][1]
    batches, drawn = zip(*parts, strict=True)
    together = Sequences.concatenate(drawn)
    return together.select(torch.argsort(torch.cat(batches)))


def _sample_rows(
    policy: Policy,
    prompts: Ids,
    limits: Limits,
    uniform: Tensor,
    rows: Int[Tensor, " row"],
    *,
    temperature: float,
) -> Sequences:
    try:
        return policy.sample(
            [prompts[row] for row in rows.tolist()],
            Limits(min_lengths=limits.min_lengths[rows], max_lengths=limits.max_lengths[rows]),
            uniform[rows],
            temperature=temperature,
        )
    except (ValueError, FloatingPointError) as error:
        raise type(error)(f"{error} (rows are counted within the part {rows.tolist()} of the batch)") from error


@torch.no_grad()
def measure(
    policy: Policy,
    reward: RewardModel,
    sequences: Sequences,
    needs: frozenset[EvidenceRequest],
    *,
    config: PPOConfig,
    moments: ScoreMoments,
    budgets: Budgets | None = None,
) -> Rollout:
    """Everything the later stages need to know about ``sequences``, in passes of what ``budgets`` (the config's, unless
    given) allow, or less where memory runs out.

    Raises:
        MemoryError: a single row ran out of memory.
        FloatingPointError: a log-probability, value, KL, score or piece of evidence is not finite, or too large; names
            the row.
        ValueError: a reward model that does not return one score per response.
    """
    continued, of_policy, of_reward = _by_who_answers(needs - {GreedyScores()})
    asked = of_policy | ({FullKL()} if config.kl.kind == "full" else frozenset())
    budget = (budgets or Budgets.of(config)).micro_batch
    evaluation = evaluate(policy, sequences, asked, config.temperature, budget)
    ref_logprobs = reference_logprobs(policy, sequences, config.temperature, budget)
    if config.kl.kind == "full":
        kl = evaluation.evidence[FullKL()]
    else:
        kl = kl_estimate(evaluation.logprobs, ref_logprobs, config.kl.kind)
    scored = _scored(reward, sequences, of_reward)
    raw_scores = scored.scores.detach().to(kl.device, torch.float32)
    for name, values in (
        ("logprobs", evaluation.logprobs),
        ("ref_logprobs", ref_logprobs),
        ("values", evaluation.values),
        ("kl", kl),
        ("raw_scores", raw_scores),
    ):
        require_usable(name, values, policy, sequences)
    moments, sampling = moments.including(raw_scores), (budgets or Budgets.of(config)).sampling
    scores, scale = normalise_scores(raw_scores, moments, config.score)
    require_usable("scores", scores, policy, sequences)
    evidence = {request: evaluation.evidence[request] for request in of_policy}
    evidence |= {request: scored.evidence[request].to(kl.device) for request in of_reward}
    evidence |= _continued(continued, policy, reward, sequences, config=config, budget=sampling)
    if GreedyScores() in needs:
        times = config.responses_per_prompt
        raw = greedy_scores(policy, reward, sequences, responses_per_prompt=times, budget=sampling).to(raw_scores)
        evidence[GreedyScores()], _ = normalise_scores(raw, moments, config.score)
    for request, values in evidence.items():
        require_usable(f"evidence {request!r}", values, policy, sequences)
    return Rollout(
        sequences=sequences,
        logprobs=evaluation.logprobs,
        ref_logprobs=ref_logprobs,
        values=evaluation.values,
        kl=kl,
        raw_scores=raw_scores,
        scores=scores,
        score_scale=scale,
        evidence=evidence,
    )


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
    continued, of_policy, of_reward = _by_who_answers(needs)
    evidence: dict[EvidenceRequest, Tensor] = {}
    if of_policy:
        evidence |= evaluate(policy, rollout.sequences, of_policy, config.temperature, budgets.micro_batch).evidence
    if of_reward:
        evidence |= reward.score(rollout.sequences, of_reward).evidence
    evidence |= _continued(continued, policy, reward, rollout.sequences, config=config, budget=budgets.sampling)
    found = {request: evidence[request].to(rollout.kl.device) for request in needs}
    for request, values in found.items():
        require_usable(f"evidence {request!r}", values, policy, rollout.sequences)
    return replace(rollout, evidence=found)


def _by_who_answers(
    needs: frozenset[EvidenceRequest],
) -> tuple[frozenset[ContinuationValues], frozenset[EvidenceRequest], frozenset[EvidenceRequest]]:
    """What policy and reward model answer together, what the policy answers, and what the reward model does."""
    together = frozenset(request for request in needs if isinstance(request, ContinuationValues))
    of_policy = frozenset(request for request in needs - together if request.source != "reward")
    return together, of_policy, needs - together - of_policy


def _scored(reward: RewardModel, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
    """One score per response, and evidence; raises ValueError for another number of scores."""
    scored = reward.score(sequences, needs)
    if scored.scores.shape != (len(sequences),):  # one score would be broadcast to every response
        raise ValueError(
            f"{type(reward).__name__}.score returned scores of shape {tuple(scored.scores.shape)} for {len(sequences)} "
            "responses"
        )
    return scored


def _continued(
    needs: frozenset[ContinuationValues],
    policy: Policy,
    reward: RewardModel,
    sequences: Sequences,
    *,
    config: PPOConfig,
    budget: TokenBudget,
) -> dict[EvidenceRequest, Tensor]:
    """Evidence for which the policy goes on from inside the responses."""
    return {
        request: continuation_values(request, policy, reward, sequences, config=config, budget=budget)
        for request in needs
    }


def _limits(config: PPOConfig, rows: int, draw: Draw) -> Limits:
    low, high = config.max_length
    generator = stream(draw.seed, LENGTHS[draw.name], draw.step)
    longest = torch.from_numpy(generator.integers(low, high + 1, size=rows))
    return Limits(min_lengths=torch.full((rows,), config.min_length), max_lengths=longest)
