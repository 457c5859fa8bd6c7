"""Measure the faithfulness of the credit of many methods for one frozen rollout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from benchmarks.credit.faithfulness import aopc, curves, effective_tokens, opposed_share, tie_breaks
from benchmarks.credit.frozen_credit import HasProbe, MeasuredCredit, askable, credit_of, evidence_apart, warm
from benchmarks.credit.settings import DIRECTIONS, FaithfulnessSettings
from benchmarks.credit.value_oracle import ValueDifferences, value_differences
from benchmarks.reporting.statistics import Array, rank_correlation
from benchmarks.runs.arms import Arm, parse_arms
from benchmarks.tasks.loaded import Loaded
from redistributors import REDISTRIBUTORS
from redistributors.leave_one_out import Occlusion
from rlhf_core.config import PPOConfig
from rlhf_core.probe import Absence, generators, measured
from rlhf_core.prompts import encoded
from rlhf_core.rewards import ScoreMoments
from rlhf_core.rollout import Draw, sample
from rlhf_core.scorers.callables import as_reward_model
from rlhf_core.types import RewardModel, Rollout

RANDOM = "random order"
# with spaces, which no method's label has
VALUES, TRUTH, ONE_OUT = "value differences", "true contributions", "leaving one out"


@dataclass(frozen=True, eq=False, kw_only=True)
class Frozen:
    """Frozen responses, the reward model that scores them, and reference credit (raw score units, or the task's)."""

    rollout: Rollout
    reward: HasProbe
    references: Mapping[str, Float[Tensor, "batch response"]]
    signs: Float[Tensor, "batch response"]
    """Credit of the opposite sign counts as flipped: the signs of the true contributions, or else of the raw score."""
    values: ValueDifferences | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Finding:
    """The measurements of one credit, a method's or a reference's: a value per response, NaN where undefined."""

    curves: Mapping[tuple[Absence, str], Array]
    """(response, point), "deletion" and "insertion"."""
    aopc: Mapping[tuple[Absence, str], Array]
    correlations: Mapping[str, Array]
    """Spearman's ρ over the tokens of a response with each reference."""
    tokens: Array
    opposed: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """Findings of every credit: methods, references, and the random order."""

    settings: FaithfulnessSettings
    frozen: Frozen
    credits: Mapping[str, MeasuredCredit]
    findings: Mapping[str, Finding]
    refused: Mapping[str, str]
    """Methods that the models cannot serve, and why."""


def with_methods(settings: FaithfulnessSettings) -> FaithfulnessSettings:
    """The settings, with the names of all registered methods in place of "all"."""
    return replace(settings, redistributors=list(REDISTRIBUTORS)) if settings.redistributors == "all" else settings


def methods_of(settings: FaithfulnessSettings) -> tuple[Arm, ...]:
    """The methods; raises ValueError for one that cannot be."""
    arms = parse_arms(with_methods(settings).redistributors)
    if changing := [arm.label for arm in arms if arm.changes]:
        raise ValueError(f"redistributors must be methods alone: PPO settings do nothing here ({', '.join(changing)})")
    return arms


def study(loaded: Loaded, config: PPOConfig, settings: FaithfulnessSettings) -> Study:
    """Everything, on one rollout.

    Raises:
        ValueError: no method that the models provide for, more responses than held-out prompts, or a reward model that
            cannot score altered texts.
    """
    policy, reward = loaded.policy, as_reward_model(loaded.reward, loaded.policy)
    prompts = loaded.held_out_prompts[: settings.responses]
    if len(prompts) < settings.responses:
        raise ValueError(f"responses {settings.responses} exceed the task's {len(prompts)} held-out prompts")
    require_altered(reward, settings)
    methods, refused = askable(methods_of(settings), policy, reward, config)
    if not methods:
        raise ValueError(f"the models cannot serve any of the methods: {refused}")
    warm(methods.values(), loaded, reward, config, rollouts=settings.warm, moments=ScoreMoments())
    needs = frozenset(request for method in methods.values() for request in method.needs)
    ids = encoded(policy, reward, prompts, config)
    sequences = sample(policy, ids, config, Draw(seed=config.seed, name="evaluation", step=0))
    rollout, costs = evidence_apart(policy, reward, sequences, needs, config)
    credits = {label: credit_of(method, rollout, costs) for label, method in methods.items()}
    frozen = freeze(loaded, reward, rollout, config, settings)
    accounts = {RANDOM: torch.zeros_like(rollout.logprobs), **frozen.references}
    accounts |= {label: credit.token_scores for label, credit in credits.items()}
    bar = tqdm(accounts.items(), desc="curves", unit="method", disable=None)
    found = {label: examine(credit, frozen, settings) for label, credit in bar}
    return Study(settings=settings, frozen=frozen, credits=credits, findings=found, refused=refused)


def require_altered(reward: RewardModel, settings: FaithfulnessSettings) -> None:
    """Raise ValueError for a reward model that cannot score altered texts, before anything is drawn."""
    if not isinstance(reward, HasProbe):
        raise ValueError(f"{type(reward).__name__} has no probe(sequences), so altered texts cannot be scored")
    for absent in settings.absent:
        if not reward.provides(Occlusion(absent=absent)):
            others = [other for other in get_args(Absence) if reward.provides(Occlusion(absent=other))]
            raise ValueError(
                f"{type(reward).__name__} cannot {absent} tokens; --absent may name {', '.join(others) or 'none'}"
            )


def freeze(
    loaded: Loaded, reward: RewardModel, rollout: Rollout, config: PPOConfig, settings: FaithfulnessSettings
) -> Frozen:
    """The references of a rollout."""
    assert isinstance(reward, HasProbe)
    sequences, mask = rollout.sequences, rollout.sequences.response_mask
    one_out = measured(Occlusion(absent=settings.absent[0]), reward.probe(sequences))
    references, values = {ONE_OUT: one_out}, None
    signs = torch.where(mask, rollout.raw_scores.sign()[:, None], 0)
    if settings.continuations:
        values = value_differences(loaded.policy, reward, rollout, config, continuations=settings.continuations)
        references[VALUES] = values.credit
    if loaded.contributions is not None:
        signs = references[TRUTH] = _padded(loaded.contributions(sequences), rollout.logprobs)
    return Frozen(rollout=rollout, reward=reward, references=references, signs=signs, values=values)


def examine(credit: Float[Tensor, "batch response"], frozen: Frozen, settings: FaithfulnessSettings) -> Finding:
    """Curves, correlations, concentration and signs of one credit."""
    sequences = frozen.rollout.sequences
    ties = tie_breaks(generators(f"ties {settings.seed}", sequences), sequences.response_mask, settings.orders)
    lines, areas = {}, {}
    for absent in settings.absent:
        both = curves(frozen.reward.probe(sequences), credit, ties, points=settings.points, absent=absent)
        for name, line, area in zip(DIRECTIONS, (both.deletion, both.insertion), aopc(both), strict=True):
            lines[absent, name], areas[absent, name] = array(line), array(area)
    credit = credit.double()
    return Finding(
        curves=lines,
        aopc=areas,
        correlations={name: ranked_alike(credit, one, frozen.rollout) for name, one in frozen.references.items()},
        tokens=array(effective_tokens(credit)),
        opposed=array(opposed_share(credit, frozen.signs)),
    )


def _padded(rows: Sequence[Sequence[float]], like: Tensor) -> Float[Tensor, "batch response"]:
    """Numbers a token as a tensor of the shape and place of ``like``, 0 on padding."""
    parts = [torch.tensor([*row, *[0.0] * (like.shape[1] - len(row))], dtype=torch.float64) for row in rows]
    return torch.stack(parts).to(like.device)


def ranked_alike(credit: Tensor, reference: Tensor, rollout: Rollout) -> Array:
    """Spearman's ρ over the tokens of each response."""
    lengths = rollout.sequences.response_lengths.tolist()
    pairs = zip(array(credit), array(reference), lengths, strict=True)
    return np.array([rank_correlation(ours[:length], theirs[:length]) for ours, theirs, length in pairs])


def array(tensor: Tensor) -> Array:
    """As float64 in numpy."""
    return np.asarray(tensor.numpy(force=True), dtype=float)
