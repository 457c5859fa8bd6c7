"""The credit of many methods for the same responses of a frozen policy, and the cost of each."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from benchmarks.runs.arms import Arm
from benchmarks.tasks.loaded import Loaded
from models.rewards.retokenised import RetokenisedReward
from redistributors.parts.credit import restricted
from rlhf_core.batching import Budgets
from rlhf_core.checks import check_gamma, check_needs, require_token_scores
from rlhf_core.config import PPOConfig
from rlhf_core.continuations import continuation_values
from rlhf_core.evidence import (
    AttentionTap,
    ContinuationValues,
    EvidenceRequest,
    FullKL,
    HiddenTap,
    PrefixScores,
    SentenceEnds,
    TokenEntropy,
)
from rlhf_core.names import method_name
from rlhf_core.probe import Cost, Experiment, Probe, measured
from rlhf_core.prompts import encoded, repeated, shuffled_batch
from rlhf_core.rewards import ScoreMoments
from rlhf_core.rollout import Draw, measure, sample
from rlhf_core.types import Learns, Policy, Redistributor, RewardModel, Rollout, Sequences

REPEATS = 3
RIDING = (AttentionTap, HiddenTap, FullKL, TokenEntropy, SentenceEnds)
"""Evidence that a model reads off the pass that it makes anyway."""


@runtime_checkable
class HasProbe(Protocol):
    """A model whose experiments can be measured one at a time."""

    def probe(self, sequences: Sequences) -> Probe:
        """A probe of these responses."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredCredit:
    """A method's token scores and what they cost, all responses together."""

    token_scores: Float[Tensor, "batch response"]
    evidence: Cost | None
    """Passes beyond those that every method shares, and their seconds: none for attention and hidden states, which ride
    along; None if some of the evidence takes passes that are not counted."""
    seconds: float
    """The redistributor itself, the fastest of three calls."""


def askable(
    arms: Sequence[Arm], policy: Policy, reward: RewardModel, config: PPOConfig
) -> tuple[dict[str, Redistributor], dict[str, str]]:
    """Methods by label that a trainer would accept, and why it would refuse the others."""
    taken, refused = {}, {}
    for arm in arms:
        redistributor = arm.redistributor()
        try:
            check_needs(redistributor, policy, reward)
            check_gamma(redistributor, config.gamma)
        except ValueError as reason:
            refused[arm.label] = str(reason).removeprefix(f"{method_name(redistributor)} ")
        else:
            taken[arm.label] = redistributor
    return taken, refused


def warm(
    redistributors: Iterable[Redistributor],
    loaded: Loaded,
    reward: RewardModel,
    config: PPOConfig,
    *,
    rollouts: int,
    moments: ScoreMoments,
) -> None:
    """Let those that learn observe ``rollouts`` of the training prompts, those that a run's first steps would draw."""
    learners = [one for one in redistributors if isinstance(one, Learns)]
    needs = frozenset(request for learner in learners for request in learner.needs)
    prompts = encoded(loaded.policy, reward, loaded.train_prompts, config)
    for step in range(rollouts if learners else 0):
        draw = Draw(seed=config.seed, name="sampling", step=step)
        rows = repeated(shuffled_batch(prompts, config, step), config.responses_per_prompt)
        sequences = sample(loaded.policy, rows, config, draw)
        seen = measure(loaded.policy, reward, sequences, needs, config=config, moments=moments)
        for learner in learners:
            learner.observe(restricted(seen, learner))


def evidence_apart(
    policy: Policy, reward: RewardModel, sequences: Sequences, needs: frozenset[EvidenceRequest], config: PPOConfig
) -> tuple[Rollout, Mapping[EvidenceRequest, Cost]]:
    """The responses measured with all evidence, and the cost of each request. Experiments are measured one by one;
    evidence read from a pass that is made anyway is free. A request whose passes are not counted has no cost. For
    continuations, the cost is the pass that scores each, and the tokens drawn."""
    owners = {"policy": policy, "reference": policy, "reward": reward}
    experiments = [request for request in needs if isinstance(request, Experiment)]
    probed = [(request, owners[request.source]) for request in experiments]
    apart = {request: model for request, model in probed if isinstance(model, HasProbe)}
    continued = frozenset(request for request in needs if isinstance(request, ContinuationValues))
    shared = needs - frozenset(apart) - continued
    rollout = measure(policy, reward, sequences, shared, config=config, moments=ScoreMoments())
    evidence = dict(rollout.evidence)
    costs = {request: Cost() for request in shared if rides_along(request, owners[request.source])}
    for request, model in apart.items():
        probe, started = model.probe(sequences), time.perf_counter()
        evidence[request] = measured(request, probe).to(rollout.kl.device)
        costs[request] = replace(probe.cost, seconds=time.perf_counter() - started)
    for together in continued:
        evidence[together], costs[together] = continued_values(together, policy, reward, sequences, config)
    return replace(rollout, evidence=evidence), costs


def continued_values(
    request: ContinuationValues, policy: Policy, reward: RewardModel, sequences: Sequences, config: PPOConfig
) -> tuple[Float[Tensor, "batch response 2"], Cost]:
    """Values of states from continuations, and their cost: a forward pass for each that was scored, the tokens drawn,
    and the seconds of both."""
    cost, budget = Cost(), Budgets.of(config).sampling
    with cost.timed():
        found = continuation_values(request, policy, reward, sequences, config=config, budget=budget)
    cost.forwards = request.continuations * int(request.at(sequences.response_mask).sum())
    cost.tokens = int(found[..., 1].sum())
    return found, cost


def rides_along(request: EvidenceRequest, model: object) -> bool:
    """Whether ``model`` reads the evidence off a pass that is made anyway."""
    retold = isinstance(model, RetokenisedReward) and model.prefixes == "retold" and isinstance(request, PrefixScores)
    return isinstance(request, RIDING) and not retold


def credit_of(redistributor: Redistributor, rollout: Rollout, costs: Mapping[EvidenceRequest, Cost]) -> MeasuredCredit:
    """Token scores, checked as a trainer would, and what they cost.

    Raises:
        HealthError: token scores that no training should survive.
    """
    own, spent = restricted(rollout, redistributor), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        token_scores = redistributor(own)
        spent.append(time.perf_counter() - started)
    require_token_scores(token_scores, own, redistributor)
    return MeasuredCredit(token_scores=token_scores, evidence=cost_of(redistributor, costs), seconds=min(spent))


def cost_of(redistributor: Redistributor, costs: Mapping[EvidenceRequest, Cost]) -> Cost | None:
    """The sum over what it asks for; None if a part was not counted."""
    if not redistributor.needs <= costs.keys():
        return None
    names = [field.name for field in fields(Cost)]
    return Cost(**{name: sum(getattr(costs[request], name) for request in redistributor.needs) for name in names})
