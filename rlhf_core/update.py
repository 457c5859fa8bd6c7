"""The update: epochs of minibatches, each one optimizer step on a loss normalised by the minibatch's tokens."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.batching import Budgets, TokenBudget, micro_batches, run_in_parts
from rlhf_core.buffer import Minibatch, RolloutBuffer
from rlhf_core.config import PPOConfig
from rlhf_core.critic import Parameters, clip, divided_norms, gradient_norms, learning, total_norm
from rlhf_core.distributed import count, gathered, gathered_with_gradients, rank
from rlhf_core.kl import kl_estimate
from rlhf_core.losses import policy_loss, value_loss
from rlhf_core.masking import masked_mean
from rlhf_core.optimizer import optimizer_step
from rlhf_core.plain_numbers import shown
from rlhf_core.random_streams import stream
from rlhf_core.sharding import own_passes, training_pass, undivided
from rlhf_core.step_guard import StepGuard, step_guard
from rlhf_core.surrogates import LOSS_MEANS
from rlhf_core.types import Policy
from rlhf_core.update_figures import MAXIMA, Measured, UpdateStatistics, contributions, read_at_once

EARLY_STOP_FACTOR = 1.5
FirstMinibatch = Callable[[float, float], None]


def ppo_update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    buffer: RolloutBuffer,
    config: PPOConfig,
    *,
    step: int,
    check_first: FirstMinibatch,
    guard: StepGuard | None = None,
    budgets: Budgets | None = None,
    kl_coef: float = 0.0,
) -> dict[str, float]:
    """Run the epochs of one step on what ``buffer`` holds: train ``policy`` with ``optimizer`` as ``config`` says;
    figures of the update. ``step`` fixes the order of the minibatches; ``check_first(max, mean)`` is given abs(log
    ratio) of the first minibatch (nats).

    ``kl_coef`` weights the KL penalty in the loss, of the config's kind (score units per nat).

    A minibatch whose token-mean ratio exceeds ``config.ratio_threshold`` is skipped without an optimizer step, and so
    is one that ``guard`` refuses, whose rows it is given. With ``target_kl`` the remaining epochs are dropped once
    mean(old − new logprob) passes 1.5 x it. A minibatch that runs out of memory is begun again in smaller
    micro-batches than ``budgets`` said. Guard and budgets are made as the config says, unless given.

    Raises:
        Diverged: the guard has refused too many in a row; weights and optimizer state are those before the first.
        MemoryError: a single row, or the optimizer's step, ran out of memory.
    """
    statistics, guard = UpdateStatistics(), guard or step_guard(config)
    learns = learning(policy, config, step)
    budget = (budgets or Budgets.of(config)).micro_batch
    for epoch in range(config.epochs):
        generator = stream(config.seed, "minibatches", step, epoch)
        for minibatch in buffer.minibatches(config.minibatch_size, generator):
            measured = _accumulate(
                policy, optimizer, minibatch, config=config, budget=budget, kl_coef=kl_coef, learns=learns
            )
            statistics.ratio_max = max(statistics.ratio_max, measured["ratio_max"])
            if not statistics.first and not math.isnan(measured["log_ratio"]):
                statistics.first = measured
                check_first(measured["log_ratio_max"], measured["log_ratio"])
            if config.target_kl is not None and measured["logprob_drop"] > EARLY_STOP_FACTOR * config.target_kl:
                statistics.stopped_early = True
                optimizer.zero_grad(set_to_none=True)
                statistics.response_losses.append(measured["response_loss"])
                return statistics.summary()
            if measured["ratio"] > config.ratio_threshold:
                statistics.skipped += 1
                statistics.response_losses.append(0.0)
                continue
            norms, reason = _step(policy, optimizer, config, guard=guard, loss=measured["loss"])
            if reason:
                optimizer.zero_grad(set_to_none=True)
                statistics.refused += 1
                place = {"step": step + 1, "what": "minibatch", "epoch": epoch, "reason": reason}
                guard.skip({**place, "rows": offending_rows(policy, minibatch, config.temperature)})
                continue
            guard.admit(total_norm(norms.values()))
            statistics.taken.append({**measured, **norms})
            statistics.response_losses.append(measured["response_loss"])
    optimizer.zero_grad(set_to_none=True)
    return statistics.summary()


def _accumulate(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    minibatch: Minibatch,
    *,
    config: PPOConfig,
    budget: TokenBudget,
    kl_coef: float,
    learns: Parameters | None,
) -> dict[str, float]:
    """Add up the gradient, of ``learns`` (None: of all), of this process's share of the minibatch over micro-batches;
    the figures of the whole minibatch. The host waits for a card once, to read all of them."""
    tokens, rows_in_all = int(minibatch.sequences.counts.response.sum()), len(minibatch.sequences)
    own = _own_share(minibatch)

    def backward(share: Minibatch, rows: Int[Tensor, " row"]) -> Measured:
        """The micro-batch's figures, and by name what share of the minibatch's they are (``MAXIMA``: all)."""
        part = share.select(rows)
        token_share = int(part.sequences.counts.response.sum()) / tokens
        row_share = len(part.sequences) / rows_in_all
        policy_share = token_share if config.loss_mean == "token" else row_share
        with training_pass(policy, learns):
            loss, means = _loss(policy, part, config, policy_weight=policy_share / token_share, kl_coef=kl_coef)
            (loss * token_share).backward(inputs=learns)  # type: ignore[no-untyped-call]
        shares = {"response_loss": row_share, "policy_loss": policy_share, **dict.fromkeys(MAXIMA, 1.0)}
        return means, {name: shares.get(name, token_share) for name in means}

    @own_passes(policy)
    def own_parts() -> list[dict[str, float]]:
        if own is None:
            optimizer.zero_grad(set_to_none=True)
            return []
        measured = run_in_parts(
            partial(backward, own),
            partial(micro_batches, own.sequences),
            own.sequences.counts.total,
            budget,
            phase="update",
            begin=partial(optimizer.zero_grad, set_to_none=True),
        )
        return contributions(measured)

    parts = [part for of_one in gathered_with_gradients(own_parts, undivided(policy)) for part in of_one]
    totals = {name: sum(part[name] for part in parts) for name in parts[0] if name not in MAXIMA}
    largest = {name: max(0.0, *(part[name] for part in parts)) for name in MAXIMA}
    return {**totals, **largest, "tokens": float(tokens)}


def _own_share(minibatch: Minibatch) -> Minibatch | None:
    """Rows of this process, dealt out from the longest on, so that all have about as much to do; None where there are
    more processes than rows."""
    if count() == 1:
        return minibatch
    rows = torch.argsort(minibatch.sequences.counts.total, descending=True, stable=True)[rank() :: count()]
    return minibatch.select(rows) if len(rows) else None


def _loss(
    policy: Policy, part: Minibatch, config: PPOConfig, *, policy_weight: float, kl_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """policy loss + value_coef · value loss − entropy_coef · entropy, means over the micro-batch's tokens.

    The policy loss may be another mean (``loss_mean``); ``policy_weight`` is then its share of the minibatch over the
    share of tokens, which the sum is multiplied by.
    """
    mask = part.sequences.response_mask
    evaluation = policy.evaluate(part.sequences, frozenset(), temperature=config.temperature)
    surrogate, policy_stats = policy_loss(
        evaluation.logprobs,
        part.logprobs,
        part.advantages,
        mask,
        clip_range=config.clip_range,
        clip_range_high=config.clip_range_high,
        dual_clip=config.dual_clip,
        surrogate=config.surrogate,
        loss_mean=config.loss_mean,
        longest=config.max_length[1],
    )
    squared, value_stats = value_loss(
        evaluation.values, part.values, part.returns, mask, clip_range=config.value_clip_range
    )
    if kl_coef > 0:
        kl = kl_estimate(evaluation.logprobs, part.ref_logprobs, config.kl.kind)
        surrogate = surrogate + kl_coef * LOSS_MEANS[config.loss_mean](kl, mask, config.max_length[1])
    entropy = masked_mean(evaluation.entropy, mask)
    loss = surrogate * policy_weight + config.value_coef * squared
    if config.entropy_coef > 0:  # a gradient of zeros costs as much as any other
        loss = loss - config.entropy_coef * entropy
    own = {"loss": loss, "policy_loss": surrogate, "value_loss": squared, "entropy": entropy}
    return loss, {name: value.detach() for name, value in (own | policy_stats | value_stats).items()}


def _step(
    policy: Policy, optimizer: torch.optim.Optimizer, config: PPOConfig, *, guard: StepGuard, loss: float
) -> tuple[dict[str, float], str]:
    """Clip the gradient and apply it, unless ``guard`` refuses the step; its norms before, and why it was refused."""

    of_parts = divided_norms(policy)

    def own() -> tuple[dict[str, float], str]:
        with optimizer_step(optimizer):
            norms = gradient_norms(policy, of_parts)
        sizes = dict(zip(norms, read_at_once(norms.values()), strict=True))
        reason = guard.why_not_admit(loss, total_norm(sizes.values()))
        if reason:
            return sizes, reason
        with optimizer_step(optimizer):
            if config.max_grad_norm is not None:  # scaling by 1 would still read and write every gradient
                clip(policy, norms, config.max_grad_norm)
            optimizer.step()
        return sizes, reason

    found = gathered(own)
    sizes = [total_norm(norms.values()) for norms, _ in found]
    if math.isfinite(sizes[0]) and not all(math.isclose(size, sizes[0], rel_tol=1e-4) for size in sizes):
        raise RuntimeError(
            f"the processes have one gradient, and find its norm to be {sizes}, by rank: they no longer train the same "
            "parameters, perhaps because a script changed them in one. Go on from the last checkpoint with "
            "fit(..., resume=True)"
        )
    return found[0]


@torch.no_grad()
def offending_rows(policy: Policy, minibatch: Minibatch, temperature: float) -> list[dict[str, object]]:
    """Texts and figures of the rows whose log-probabilities or values are not finite, or of all where those are."""
    found: list[dict[str, object]] = []
    for row in range(len(minibatch.sequences)):
        alone = minibatch.select(torch.tensor([row], device=minibatch.returns.device))
        evaluation = policy.evaluate(alone.sequences, frozenset(), temperature=temperature)
        finite = bool(torch.isfinite(evaluation.logprobs).all() and torch.isfinite(evaluation.values).all())
        prompt, response = (policy.decode(ids)[0] for ids in (alone.sequences.prompts(), alone.sequences.responses()))
        figures = {"new_logprobs": evaluation.logprobs, "new_values": evaluation.values, "logprobs": alone.logprobs}
        figures |= {"advantages": alone.advantages, "returns": alone.returns}
        listed = {name: [shown(float(x)) for x in values[0]] for name, values in figures.items()}
        found.append({"prompt": prompt, "response": response, "finite": finite, **listed})
    return [row for row in found if not row["finite"]] or found
