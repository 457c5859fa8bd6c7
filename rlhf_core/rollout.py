"""Collecting a rollout: sample, evaluate, compare with the reference, score. No gradient, no update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.batching import Budgets, row_batches, run_in_parts
from rlhf_core.checks import require_usable
from rlhf_core.config import PPOConfig
from rlhf_core.continuations import greedy_scores
from rlhf_core.distributed import own_share
from rlhf_core.evidence import EvidenceRequest, FullKL, GreedyScores
from rlhf_core.evidence_of_rollout import by_who_answers, scored_responses, values_of_continuations
from rlhf_core.gathering import gathered_rollout
from rlhf_core.kl import kl_estimate
from rlhf_core.policy_passes import evaluate, reference_logprobs
from rlhf_core.prompts import repeated
from rlhf_core.random_streams import Stream, stream, uniforms
from rlhf_core.rewards import ScoreMoments, normalise_scores
from rlhf_core.sharding import own_passes
from rlhf_core.types import Limits, Policy, RewardModel, Rollout, Row, Sequences

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
def sample(
    policy: Policy,
    prompts: Ids,
    config: PPOConfig,
    draw: Draw,
    budgets: Budgets | None = None,
    *,
    rows: range | None = None,
) -> Sequences:
    """One response per prompt, limits and uniforms from the named streams, so many tokens at a time as ``budgets``
    (the config's, unless given) allow; fewer, of the same rows, where memory runs out. ``rows`` are the places of the
    prompts to answer (None: all); a row's numbers are those of its place, whatever else is sampled beside it.

    Raises:
        MemoryError: a single row ran out of memory.
    """
    places = range(len(prompts)) if rows is None else rows
    limits, longest = _limits(config, len(prompts), draw, places)
    uniform = uniforms(draw.seed, draw.name, draw.step, places, longest)
    prompts = [prompts[place] for place in places]
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
    given) allow, or less where memory runs out. ``moments`` are those of the scores of earlier steps.

    Raises:
        MemoryError: a single row ran out of memory.
        FloatingPointError: a log-probability, value, KL, score or piece of evidence is not finite, or too large; names
            the row.
        ValueError: a reward model that does not return one score per response.
    """
    raw = _measured(policy, reward, sequences, needs, config=config, budgets=budgets or Budgets.of(config))
    return _normalised(raw, policy, moments=moments, config=config)


@torch.no_grad()
def collected(
    policy: Policy,
    reward: RewardModel,
    prompts: Ids,
    given: Sequence[Row],
    needs: frozenset[EvidenceRequest],
    *,
    times: int,
    config: PPOConfig,
    draw: Draw,
    moments: ScoreMoments,
    budgets: Budgets,
) -> Rollout:
    """``times`` responses to each of the ``prompts``, sampled and measured; ``given`` holds a row for each response, or
    none. Where several processes train together, each does so for its share of the prompts, and all get the whole.

    Raises:
        As :func:`sample` and :func:`measure`, in all processes for a fault in one of them.
    """
    share = own_share(len(prompts))
    rows = range(share.start * times, share.stop * times)

    @own_passes(policy)
    def own_part() -> Rollout | None:
        if not rows:
            return None
        drawn = sample(policy, repeated(prompts, times), config, draw, budgets, rows=rows)
        sequences = replace(drawn, given=tuple(given[rows.start : rows.stop]))
        return _measured(policy, reward, sequences, needs, config=config, budgets=budgets)

    home = next(iter(policy.parameters())).device
    return _normalised(gathered_rollout(own_part, given, needs, home), policy, moments=moments, config=config)


def _measured(
    policy: Policy,
    reward: RewardModel,
    sequences: Sequences,
    needs: frozenset[EvidenceRequest],
    *,
    config: PPOConfig,
    budgets: Budgets,
) -> Rollout:
    """A rollout whose ``scores``, and scores of greedy responses, are still the raw ones."""
    continued, of_policy, of_reward = by_who_answers(needs - {GreedyScores()})
    asked = of_policy | ({FullKL()} if config.kl.kind == "full" else frozenset())
    budget = budgets.micro_batch
    evaluation = evaluate(policy, sequences, asked, config.temperature, budget)
    ref_logprobs = reference_logprobs(policy, sequences, config.temperature, budget)
    if config.kl.kind == "full":
        kl = evaluation.evidence[FullKL()]
    else:
        kl = kl_estimate(evaluation.logprobs, ref_logprobs, config.kl.kind)
    scored = scored_responses(reward, sequences, of_reward)
    raw_scores = scored.scores.detach().to(kl.device, torch.float32)
    for name, values in (
        ("logprobs", evaluation.logprobs),
        ("ref_logprobs", ref_logprobs),
        ("values", evaluation.values),
        ("kl", kl),
        ("raw_scores", raw_scores),
    ):
        require_usable(name, values, policy, sequences)
    evidence = {request: evaluation.evidence[request] for request in of_policy}
    evidence |= {request: scored.evidence[request].to(kl.device) for request in of_reward}
    evidence |= values_of_continuations(continued, policy, reward, sequences, config=config, budget=budgets.sampling)
    if GreedyScores() in needs:
        times = config.responses_per_prompt
        greedy = greedy_scores(policy, reward, sequences, responses_per_prompt=times, budget=budgets.sampling)
        evidence[GreedyScores()] = greedy.to(raw_scores)
    for request, values in evidence.items():
        require_usable(f"evidence {request!r}", values, policy, sequences)
    return Rollout(
        sequences=sequences,
        logprobs=evaluation.logprobs,
        ref_logprobs=ref_logprobs,
        values=evaluation.values,
        kl=kl,
        raw_scores=raw_scores,
        scores=raw_scores,
        score_scale=1.0,
        evidence=evidence,
    )


def _normalised(rollout: Rollout, policy: Policy, *, moments: ScoreMoments, config: PPOConfig) -> Rollout:
    """The rollout with scores that are centred, scaled and clipped, by the moments of all scores so far and its own."""
    now, found = moments.including(rollout.raw_scores), dict(rollout.evidence)
    scores, scale = normalise_scores(rollout.raw_scores, now, config.score)
    require_usable("scores", scores, policy, rollout.sequences)
    if GreedyScores() in found:
        found[GreedyScores()], _ = normalise_scores(found[GreedyScores()], now, config.score)
        require_usable(f"evidence {GreedyScores()!r}", found[GreedyScores()], policy, rollout.sequences)
    return replace(rollout, scores=scores, score_scale=scale, evidence=found)


def _limits(config: PPOConfig, rows: int, draw: Draw, places: range) -> tuple[Limits, int]:
    """Limits of the rows at ``places``, and the longest of all ``rows``."""
    low, high = config.max_length
    generator = stream(draw.seed, LENGTHS[draw.name], draw.step)
    longest = torch.from_numpy(generator.integers(low, high + 1, size=rows))
    own = longest[places.start : places.stop]
    return Limits(min_lengths=torch.full((len(own),), config.min_length), max_lengths=own), int(longest.max())
