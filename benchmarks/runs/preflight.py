"""Check a comparison before it runs: whether every arm can run, what it would cost, and whether it fits a card.

A task and its settings come in; findings come out, one at a time, each a line to read. Nothing is trained, nothing is
written, and no GPU is used: the models are loaded on the CPU.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.settings_checks import require_all
from benchmarks.base.text_columns import in_columns
from benchmarks.cost.architectures import shape_of
from benchmarks.cost.memory_prediction import predict
from benchmarks.cost.memory_settings import GIB, MemorySettings
from benchmarks.cost.model_shape import ModelShape
from benchmarks.runs.comparison import Panel, left_out, plan, ppo_of, require_free
from benchmarks.runs.contracts import is_registered
from benchmarks.runs.script import as_typed_here
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import Run, Task, require_prompts, require_runnable
from benchmarks.tasks.loaded import Loaded
from benchmarks.tasks.model_settings import Loading
from models.policy.causal_policy import CausalPolicy
from models.policy.critics import OwnTrunk
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.prompted_reward import PromptedReward
from rlhf_core.config import PPOConfig
from rlhf_core.evidence import AttentionTap, EvidenceRequest
from rlhf_core.names import counted
from rlhf_core.probe import Experiment
from rlhf_core.prompts import encoded
from rlhf_core.scorers.callables import as_reward_model

DEFAULTS = PPOConfig()
COLUMN = 24
"""Where what was found begins."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check: its subject and the finding."""

    about: str
    said: str
    wrong: bool = False
    """Whether it would stop the comparison."""


def main(settings: ComparisonSettings, ppo: Mapping[str, Any], options: Any) -> None:
    """Print what is found, against a card of ``options.card_gib`` GiB.

    Raises:
        ValueError: an arm or a setting that cannot be, or findings that would stop the comparison, which are printed.
    """
    quiet_libraries()
    require_all(settings.arms, settings.make_task)
    reasons: dict[str, str] = {}
    problems = 0
    for found in findings(settings, settings.make_task(), ppo, options.card_gib):
        said = found.said
        if found.wrong:
            problems += 1
            first = reasons.setdefault(found.said, found.about)
            said = as_typed_here(found.said) if first == found.about else f"for the same reason as {first}"
            said = f"cannot: {said}"
        print(in_columns(found.about, said, column=COLUMN), flush=True)
    if problems:
        raise ValueError(f"the comparison cannot run; lines marked 'cannot' above: {problems}")
    print("The comparison can run.")


def findings(settings: ComparisonSettings, task: Task, ppo: Mapping[str, Any], card_gib: float) -> Iterator[Finding]:
    """What can be said of the comparison, each as soon as it is known; it ends after models that cannot be loaded.

    Raises:
        ValueError: an arm or a setting that cannot be.
    """
    config = ppo_of(task, ppo)
    runs = plan(settings, task, Panel(), config)
    arms = list({run.arm.label: run for run in runs}.values())  # one seed speaks for all
    repeats = left_out(settings, [Panel()], config)
    without = f"; without the control {', '.join(repeats)}, which would repeat another arm" if repeats else ""
    yield Finding(
        about="plan",
        said=f"{counted(len(arms), 'arm')} x {_seeds(runs)} = {counted(len(runs), 'run')} of "
        f"{counted(settings.steps, 'step')}; task {settings.task}{without}",
    )
    yield Finding(about="settings", said=_changed(config))
    yield _folder(settings, task, config)
    try:
        loaded = on_the_cpu(task).load()
    except (ValueError, OSError) as error:
        yield Finding(about="models", said=str(error), wrong=True)
        return
    yield Finding(about="models", said=_models(loaded))
    for run in arms:
        yield _arm(loaded, run)
    yield from _sizes(settings, loaded, runs, arms, card_gib)


def _seeds(runs: Sequence[Run]) -> str:
    """ "5 seeds", or "5 to 20 seeds" where arms have their own."""
    counts = sorted(Counter(run.arm.label for run in runs).values())
    return counted(counts[0], "seed") if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]} seeds"


def on_the_cpu(task: Task) -> Task:
    """The same task with its models on the CPU, in full width, where every machine can load them."""
    held = task.loading
    copied = None if held.four_bit else held.sampling_dtype  # a folder may hold 4-bit weights of its own
    loading = replace(
        held,
        device="cpu",
        reward_device=None,
        four_bit=False,
        sampling_dtype=copied,
        tf32=False,
        optimizer="torch",
    )
    if loading == task.loading:
        return task
    made: Task = replace(task, loading=loading)  # type: ignore[type-var]  # a task is a dataclass, which no Protocol says
    return made


def _changed(config: PPOConfig) -> str:
    """The PPO settings that are not the class's defaults."""
    defaults = asdict(DEFAULTS)
    changed = {name: value for name, value in asdict(config).items() if value != defaults[name]}
    flat = [
        (f"{name}.{part}" if part else name, inner)
        for name, value in changed.items()
        for part, inner in (value.items() if isinstance(value, dict) else [("", value)])
        if not part or inner != defaults[name][part]
    ]
    shown = ", ".join(f"{name} {value}" for name, value in flat)
    return f"{shown}; all other PPO settings at their defaults" if shown else "all PPO settings at their defaults"


def _folder(settings: ComparisonSettings, task: Task, config: PPOConfig) -> Finding:
    out = Path(settings.out)
    try:
        require_free(settings, task, config)
    except (OSError, ValueError) as error:
        return Finding(about="folder", said=str(error), wrong=True)
    there = out.is_dir() and any(out.iterdir())
    return Finding(about="folder", said=f"{out} {'holds this comparison, which would go on' if there else 'is free'}")


def _models(loaded: Loaded) -> str:
    names = [type(loaded.policy).__name__, getattr(loaded.reward, "__name__", type(loaded.reward).__name__)]
    return f"policy {names[0]} and reward {names[1]} can be loaded, and both can read the prompts"


def _arm(loaded: Loaded, run: Run) -> Finding:
    """Whether the models give what the arm's method asks for."""
    about = f"arm {run.arm.label}"
    try:
        require_runnable(loaded, run)
    except (ValueError, OSError) as error:
        said = str(error).removeprefix(f"{run.arm.label}: ").removeprefix(f"{run.arm.label} is not possible here: ")
        return Finding(about=about, said=said, wrong=True)
    needs = sorted(run.arm.redistributor().needs, key=str)
    own = [type(need).__name__ for need in needs if isinstance(need, Experiment)]
    free = [type(need).__name__ for need in needs if not isinstance(need, Experiment)]
    parts = [f"reads {', '.join(free)} at no extra cost"] if free else []
    parts += [f"measures {', '.join(own)}, which takes extra passes"] if own else []
    parts = parts or ["needs nothing but the score"]
    if not is_registered(run.arm) and run.config.first_step_checks == "error":  # then the plan has tried it
        parts += ["keeps the contract of a redistributor"]
    return Finding(about=about, said="; ".join(["can run", *parts]))


def _sizes(
    settings: ComparisonSettings, loaded: Loaded, runs: Sequence[Run], arms: Sequence[Run], card_gib: float
) -> Iterator[Finding]:
    """Prompts in tokens, what the runs cost, and what a step needs on a card."""
    reward = as_reward_model(loaded.reward, loaded.policy)
    try:
        require_prompts(loaded, arms)
        prompts = (*loaded.train_prompts, *loaded.held_out_prompts)
        lengths = [len(ids) for ids in encoded(loaded.policy, reward, prompts, arms[0].config)]
    except ValueError as error:
        yield Finding(about="prompts", said=str(error), wrong=True)
        return
    longest, n = max(lengths), len(loaded.train_prompts)
    size = f"{sum(lengths[:n]) / n:.1f} tokens on average, {longest} at most"
    counts = "" if loaded.as_read else f"{n} to train on, {len(lengths) - n} held out; "  # its own load says them
    yield Finding(about="prompts", said=f"{counts}{size}")
    yield Finding(about="cost", said=cost(runs, mean_prompt=sum(lengths[:n]) / n))
    needs = frozenset(need for run in arms for need in run.arm.redistributor().needs)
    try:
        held = memory_settings(settings.loading, arms[0].config, longest, needs, card_gib)
        yield _memory(loaded, held, settings.loading)
    except ValueError as error:
        yield Finding(about="memory", said=f"not predicted: {error}")


def cost(runs: Sequence[Run], *, mean_prompt: float) -> str:
    """Responses, tokens and optimizer steps of all runs together, at the middle of the longest lengths that are drawn.

    A forward pass over a token counts once and a backward pass twice, so that a step costs: sampling 1, policy 1,
    reference 1, reward 1, and 3 in every epoch. Evidence with passes of its own, and evaluation, come on top.
    """
    responses = [run.steps * run.config.rollout_batch_size for run in runs]
    tokens = [n * _row(run.config, mean_prompt) for n, run in zip(responses, runs, strict=True)]
    work = sum(n * (4 + 3 * run.config.epochs) for n, run in zip(tokens, runs, strict=True))
    updates = sum(n * run.config.epochs // run.config.minibatch_size for n, run in zip(responses, runs, strict=True))
    return (
        f"{counted(sum(responses), 'response')}, about {sum(tokens):,.0f} tokens with their prompts, "
        f"{counted(updates, 'optimizer step')}. The work equals a forward pass over about {work:,.0f} tokens, with a "
        "backward pass counted as two forward passes. Evaluation and the extra passes of methods are not included"
    )


def _row(config: PPOConfig, mean_prompt: float) -> float:
    """Tokens of an average prompt and a response at its longest."""
    return mean_prompt + sum(config.max_length) / 2


def _memory(loaded: Loaded, settings: MemorySettings, loading: Loading) -> Finding:
    """The predicted peak of a step on a GPU; raises ValueError for an architecture that the prediction does not know.
    It stops only comparisons that have both models on one card, which is what it predicts."""
    reward = loaded.reward.reward if isinstance(loaded.reward, PromptedReward) else loaded.reward
    if not (isinstance(loaded.policy, CausalPolicy) and isinstance(reward, ClassifierReward)):
        return Finding(about="memory", said="not predicted: that takes a language model and a classifier as reward")
    prediction = predict(
        settings,
        shape_of(loaded.policy.language_model.config, "lm", "the policy"),
        shape_of(reward.model.config, "classifier", "the reward model"),
        _critic_model(loaded.policy),
    )
    peak, card = prediction.peak / GIB, settings.card_gib
    said = f"predicted peak on a GPU {peak:.1f} GiB, in the phase {prediction.peak_phase!r}; the card has {card:g} GiB"
    together = loading.reward_device in (None, loading.device)
    if not together:
        said += f". This counts both models on one card, and the reward model is on {loading.reward_device}"
    return Finding(about="memory", said=said, wrong=together and loading.device != "cpu" and peak > card)


def _critic_model(policy: CausalPolicy) -> ModelShape | None:
    """The shape of a critic's model, which need not be the reward model; None for another kind of critic."""
    critic = policy.critic
    if not isinstance(critic, OwnTrunk) or critic.kind != "model":
        return None
    return shape_of(critic.trunk.config, "none", "the critic's model")


def memory_settings(
    loading: Loading, config: PPOConfig, longest: int, needs: frozenset[EvidenceRequest], card_gib: float
) -> MemorySettings:
    """The comparison's settings as the prediction of memory takes them; ``longest`` is the longest prompt in tokens."""
    sources = {need.source for need in needs if isinstance(need, AttentionTap)}
    return MemorySettings(
        dtype=loading.dtype,
        autocast=loading.autocast or "none",
        four_bit="both" if loading.four_bit else "none",
        sampling_dtype=(loading.four_bit and loading.sampling_dtype) or "none",
        training="full" if loading.lora is None else "lora",
        lora_rank=MemorySettings.lora_rank if loading.lora is None else loading.lora.rank,
        critic=loading.critic,
        gradient_checkpointing=loading.gradient_checkpointing,
        optimizer="paged_adamw_8bit" if loading.optimizer == "paged_adamw_8bit" else "adam",
        rollout_batch_size=config.rollout_batch_size,
        minibatch_size=config.minibatch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        reward_micro_batch_tokens=loading.reward_tokens,
        sampling_tokens=config.sampling_tokens,
        prompt_tokens=longest,
        response_tokens=config.max_length[1],
        evidence="decoder" if "policy" in sources else "reward" if "reward" in sources else "none",
        card_gib=card_gib,
    )
