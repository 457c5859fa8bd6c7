"""The settings of a PPO run: one frozen dataclass, checked when built, the same on the command line and in the docs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from rlhf_core.names import OTHER_WORDS, naming_nearest, nearest
from rlhf_core.plain_numbers import make_plain
from rlhf_core.setting_kinds import choices, misfit

KLKind = Literal["k1", "abs", "k2", "k3", "full"]
Advantages = Literal[
    "gae",
    "rloo",
    "rloo_to_go",
    "grpo",
    "dr_grpo",
    "opo",
    "remax",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "prime",
]
OF_TOTALS = frozenset({"rloo", "grpo", "dr_grpo", "opo", "reinforce_plus_plus_baseline"})
"""Estimators that add up a response's rewards first: where credit stands changes nothing."""
OF_GROUPS = OF_TOTALS | {"rloo_to_go", "prime"}
"""Estimators that compare the responses to one prompt."""
WITH_A_CRITIC = frozenset({"gae"})
"""Estimators that train values."""
PaperTask = Literal["positive_generation", "summarisation", "dialogue"]
MAX_RELATIVE_ERROR = 0.2
"""The largest relative error that the adaptive KL controller follows in one step."""


@naming_nearest({"kl_coef": "'init_coef'", "init_kl_coef": "'init_coef'", "kl_penalty": "'kind'"})
@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """The penalty against the reference, subtracted from every token's score and never redistributed."""

    init_coef: float = 0.2
    """Penalty in score units per nat at the first step (paper: 0.2). Choose another value, or use
    ``ScoreConfig(scaling="running_std")``, if the standard deviation of scores is far from 1."""
    target: float = 6.0
    """Target KL of the adaptive controller: k1 in nats per response, mean over the batch (paper: 6)."""
    horizon: float = 10_000.0
    """Responses over which the adaptive controller corrects an error of 100 % (paper: 10 000, TRL's default)."""
    kind: KLKind = "k1"
    """Estimator of the penalty; the controller is fed k1 whatever this says (paper: k1)."""
    place: Literal["reward", "loss"] = "reward"
    """Subtract it from every token's reward (paper), or add its mean to the policy loss, as GRPO does. In the loss, k2
    has the gradient of the KL itself, x times that of log π, and k3 that of (1 - exp(-x)) with x = log π - log π_ref;
    k1's is 0 in expectation, and it is refused there."""
    adaptive: bool = True
    """Adaptive controller, or a coefficient fixed at ``init_coef`` (paper: adaptive)."""

    def __post_init__(self) -> None:
        make_plain(self)


@naming_nearest()
@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Centring, scaling and clipping of the scores before redistribution (paper: none)."""

    centring: Literal["none", "running_mean"] = "none"
    """Subtract the running mean of all raw scores so far, this batch included."""
    scaling: Literal["none", "running_std"] = "none"
    """Divide by the running standard deviation of all raw scores so far, this batch included."""
    clip: float | None = None
    """Clip the result to [-clip, clip]; None does not clip."""

    def __post_init__(self) -> None:
        make_plain(self)


@naming_nearest(OTHER_WORDS)
@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of a run. Defaults are a start for a run of your own; ``from_paper`` has the paper's.

    Four settings differ from the paper's for positive generation (Table 2), which continues the first words of a movie
    review: lengths, because 8 to 15 tokens end in the middle of most answers; batches, because an optimizer step on one
    response is noise, and slow on a card; and clipping of the gradient, because scores may be of any size.

    Raises:
        TypeError: at construction, a setting of another name; names the nearest.
        ValueError: at construction, listing every setting that is of another kind than annotated, or out of range.
    """

    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """λ of GAE and of the λ-returns."""
    value_lam: float | None = None
    """λ of the returns that the critic learns; None: that of the advantages (VC-PPO: 1)."""
    lam_length_share: float | None = None
    """λ of the advantages from each response's length l, 1 - 1 / (share x l), in place of ``lam``; None is off
    (VAPO: 0.05)."""
    advantages: Advantages = "gae"
    """Estimator. "gae" has a critic. The others have none, and no λ; all but "reinforce_plus_plus" and
    "remax" compare the responses to one prompt. Dense credit reaches the tokens with "gae", "rloo_to_go", "remax",
    "reinforce_plus_plus" and "prime" only (``advantages.ESTIMATORS``). "remax" samples one more response per prompt."""
    clip_range: float = 0.2
    """Clipping of the probability ratio, 1 ± clip_range."""
    clip_range_high: float | None = None
    """Upper end of the clipping, 1 + clip_range_high; None: the same as the lower (DAPO's clip-higher: 0.28)."""
    dual_clip: float | None = None
    """Bound of the loss of tokens with a negative advantage, -A x dual_clip, above 1; None is off (verl: 3)."""
    surrogate: Literal["ppo", "gspo", "cispo"] = "ppo"
    """The objective: PPO's; with one ratio per response; or log-probabilities weighted by clipped ratios
    (``rlhf_core.surrogates``)."""
    loss_mean: Literal["token", "response", "fixed"] = "token"
    """Mean of the policy loss: over all tokens; within responses, then over them; or sums per response over the longest
    ``max_length``."""
    critic_warmup: int = 0
    """First steps in which only the critic learns, on rollouts of a policy that stays as it is; 0: none. They count as
    steps, of the learning rate's schedule too; the KL coefficient waits."""
    value_clip_range: float = 0.2
    """Clipping of values in the value loss: rollout value ± value_clip_range, in score units."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus (nats per token); 0 is off."""
    kl: KLConfig = field(default_factory=KLConfig)
    """The penalty against the reference, and how its coefficient adapts."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Centring, scaling and clipping of the scores before redistribution."""
    epochs: int = 4
    """Passes over a rollout batch."""
    rollout_batch_size: int = 64
    """Responses collected per step (paper: 16, 4 for summarisation). Many, as they are what a step learns from; memory
    does not grow with them beyond what ``sampling_tokens`` and ``micro_batch_tokens`` allow."""
    responses_per_prompt: int = 1
    """Responses to each prompt of a step, which takes rollout_batch_size / responses_per_prompt prompts."""
    minibatch_size: int = 16
    """Responses per optimizer step (paper: 1); with 64 responses and 4 epochs, 16 optimizer steps."""
    micro_batch_tokens: int = 4096
    """Prompt and response tokens, padding included, of one forward pass; never changes the gradient."""
    sampling_tokens: int = 16_384
    """Prompt and longest response tokens of all rows that are sampled side by side, whose keys and values are held at
    once; changes a token only where rounding decides it."""
    learning_rate: float = 1.41e-5
    """Peak learning rate (paper: 1.41e-5, TRL's default). For all weights of a pretrained model; an adapter often takes
    ten times as much, a small model trained from scratch a hundred times."""
    schedule: Literal["constant", "linear"] = "constant"
    """Learning rate over steps; "linear" falls to 0 after ``schedule_steps``."""
    schedule_steps: int | None = None
    """Steps of the linear schedule; required by it, refused by "constant"."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or AdamW with ``weight_decay``."""
    weight_decay: float = 0.0
    """Decoupled weight decay; AdamW only."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient's 2-norm to this, to limit the effect of a single odd minibatch; None is off (paper: off)."""
    ratio_threshold: float = 10.0
    """A minibatch whose token-mean probability ratio exceeds this is skipped, without an optimizer step, and counted.
    (TRL 0.7.4 zeroes the loss but still steps Adam, whose momentum then moves the weights.)"""
    max_skipped: int = 3
    """Optimizer steps, or whole rollouts, in a row that may be skipped because a number in them is not finite (or, with
    ``spike_factor``, stands out); one more ends the run. 0: the first ends it."""
    spike_factor: float | None = None
    """Skip an optimizer step whose gradient norm exceeds this times the mean of the last 100 or so; None is off."""
    target_kl: float | None = None
    """Stop the epochs of a step once a minibatch's mean(old - new logprob) exceeds 1.5 x this (nats per token);
    None is off (the paper's scripts set TRL's target_kl to 1 but leave early stopping off)."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in every log-probability."""
    min_length: int = 1
    """EOS is banned on this many first response tokens (paper: 8): on one, no response is empty."""
    max_length: tuple[int, int] = (128, 128)
    """Closed range from which the longest response of each row (tokens, EOS counted) is drawn; equal ends fix it
    (paper: 8 to 15, 48, 256). 128 tokens are a paragraph. ``finished`` logs the share that ended by itself: if it is
    low, allow more, as what is cut off is scored unfinished."""
    seed: int = 0
    """Seed of every random stream: prompts, lengths, sampling, minibatches; initial weights are drawn before there is
    a trainer, with ``load_policy(..., seed=streams.seed_of(seed, "init"))``."""
    first_step_checks: Literal["error", "warn"] = "error"
    """What a failed health check of the first step does. Use "warn" if the policy intentionally differs from its
    reference."""

    def __post_init__(self) -> None:
        make_plain(self)
        problems = _problems(self)
        if problems:
            raise ValueError("PPOConfig: " + "; ".join(problems))

    @classmethod
    def from_paper(cls, task: PaperTask, **overrides: Any) -> "PPOConfig":
        """Settings of the paper's Tables 2-4; ``overrides`` use our field names.

        The paper's (TRL's) names are ours, up to these:

        ppo_epochs = epochs, batch_size = rollout_batch_size, mini_batch_size = minibatch_size, cliprange = clip_range,
        cliprange_value = value_clip_range, vf_coef = value_coef, score_clip = score.clip,
        init_kl_coef / target / horizon = kl.init_coef / kl.target / kl.horizon,
        kl_penalty "kl" = kl.kind "k1", adap_kl_ctrl = kl.adaptive,
        use_score_scaling = score.scaling "running_std", use_score_norm = score.centring "running_mean",
        early_stopping false = target_kl None, so that the tables' target_kl of 1 has no effect,
        whiten_rewards = nothing: rewards are never whitened.

        Parts are given whole, as in ``kl=KLConfig(init_coef=0.1)``. One of the paper's names is refused with ours, here
        as in the constructor; steps and seeds belong to the experiment.

        At these settings the adaptive coefficient moves by 1.6-6.6 % over a whole run, so the target of 6 nats is
        never enforced (the published runs end at 13-23).

        Raises:
            TypeError: an override of another name; names the nearest.
            ValueError: an unknown task.
        """
        if task not in PAPER:
            known = f"one of {', '.join(PAPER)}{nearest(task, PAPER)}"
            raise ValueError(f"PPOConfig.from_paper: unknown task {task!r}; {known}")
        return cls(**{**PAPER[task], **overrides})


def require_use_for_a_critic(config: PPOConfig) -> None:
    """Refuse a critic with a network of its own where the estimator trains no values: it would cost memory and passes,
    and never learn.

    Raises:
        ValueError: such an estimator.
    """
    if config.advantages not in WITH_A_CRITIC:
        raise ValueError(
            f"advantages {config.advantages!r} have no critic, and the policy is loaded with one of its own; leave "
            f"critic at 'shared', or use advantages {' or '.join(map(repr, sorted(WITH_A_CRITIC)))}"
        )


REVIEWS: Mapping[str, Any] = {
    "rollout_batch_size": 16,
    "minibatch_size": 1,
    "min_length": 8,
    "max_length": (8, 15),
    "max_grad_norm": None,
}
PAPER: Mapping[str, Mapping[str, Any]] = {
    "positive_generation": REVIEWS,
    "summarisation": {**REVIEWS, "rollout_batch_size": 4, "max_length": (48, 48)},
    "dialogue": {**REVIEWS, "epochs": 10, "max_length": (256, 256)},
}
"""What the paper's tasks change in the defaults."""


def _problems(config: PPOConfig) -> list[str]:
    """Every setting of a wrong type or out of range, in words; contradictions only if all types are right."""
    settings = list(_settings(config))
    wrong = {
        name: f"{words}, got {value!r}{nearest(value, choices(kind))}"
        for name, value, kind in settings
        if (words := misfit(value, kind))
    }
    contradictions = [] if wrong else list(_contradictions(config))
    given = {name: value for name, value, _ in settings if name not in wrong and value is not None}
    for names, holds, words in RANGES:
        bad = (name for name in names if name in given and not holds(given[name]))
        wrong |= {name: f"{words}, got {given[name]!r}" for name in bad}
    return [*(f"{name} must be {words}" for name, words in wrong.items()), *contradictions]


def _settings(config: PPOConfig) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and annotation of every setting; one of a nested part is named with a dot."""
    for prefix, part in (("", config), ("kl.", config.kl), ("score.", config.score)):
        if isinstance(part, PPOConfig | KLConfig | ScoreConfig):  # else it is a setting of a wrong kind itself
            for name, kind in get_type_hints(type(part)).items():
                yield prefix + name, getattr(part, name), kind


LARGEST_FLOAT32 = 3.4028234663852886e38
"""The largest number in float32, in which a larger setting would be infinite."""
RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("gamma", "lam", "value_lam"), lambda x: 0 <= x <= 1, "in [0, 1]"),
    (("lam_length_share",), lambda x: 0 < x <= 1, "above 0 and at most 1"),
    (
        (
            *("clip_range", "clip_range_high", "value_clip_range", "learning_rate"),
            *("ratio_threshold", "temperature", "max_grad_norm"),
            *("target_kl", "spike_factor", "kl.target", "kl.horizon", "score.clip"),
        ),
        lambda x: 0 < x <= LARGEST_FLOAT32,
        "a finite number above 0",
    ),
    (
        ("value_coef", "entropy_coef", "weight_decay", "kl.init_coef"),
        lambda x: 0 <= x <= LARGEST_FLOAT32,
        "a finite number, 0 or more",
    ),
    (
        (
            *("epochs", "rollout_batch_size", "responses_per_prompt", "minibatch_size"),
            *("micro_batch_tokens", "sampling_tokens"),
        ),
        lambda x: x >= 1,
        "at least 1",
    ),
    (("dual_clip",), lambda x: 1 < x <= LARGEST_FLOAT32, "a finite number above 1"),
    (("warmup_steps", "critic_warmup", "seed", "min_length", "max_skipped"), lambda x: x >= 0, "0 or more"),
)


def _contradictions(config: PPOConfig) -> Iterator[str]:
    """Settings that are valid alone but not together."""
    low, high = config.max_length
    if config.kl.adaptive and config.kl.horizon <= MAX_RELATIVE_ERROR * config.rollout_batch_size:
        yield (
            f"kl.horizon {config.kl.horizon} with rollout_batch_size {config.rollout_batch_size}: one step could make "
            f"the coefficient negative; give more than {MAX_RELATIVE_ERROR * config.rollout_batch_size}"
        )
    if config.minibatch_size > config.rollout_batch_size:
        yield (
            f"minibatch_size {config.minibatch_size} exceeds rollout_batch_size {config.rollout_batch_size}; "
            "set both, minibatch_size to as many or fewer"
        )
    yield from _prompt_contradictions(config)
    yield from _lambda_contradictions(config)
    yield from _surrogate_contradictions(config)
    yield from _kl_contradictions(config)
    yield from _warmup_contradictions(config)
    if not (1 <= low <= high < 2**31 and config.min_length <= low):
        yield (
            f"max_length must be (low, high) with 1 <= low <= high < 2**31 and min_length {config.min_length} <= low, "
            f"got {config.max_length}"
        )
    if (config.schedule_steps is not None) != (config.schedule == "linear"):
        yield (
            f"schedule {config.schedule!r} with schedule_steps {config.schedule_steps}: "
            "a linear schedule needs them, a constant one has none"
        )
    if config.schedule_steps is not None and config.schedule_steps <= config.warmup_steps:
        yield f"schedule_steps {config.schedule_steps} must exceed warmup_steps {config.warmup_steps}"
    if config.weight_decay > 0 and config.optimizer != "adamw":
        yield f"weight_decay {config.weight_decay} needs optimizer 'adamw', got {config.optimizer!r}"


def _prompt_contradictions(config: PPOConfig) -> Iterator[str]:
    """Contradictions between the number of responses per prompt and the settings that compare them."""
    rows, times = config.rollout_batch_size, config.responses_per_prompt
    if times >= 1 and rows % times:
        yield f"rollout_batch_size {rows} is no multiple of responses_per_prompt {times}"
    if config.advantages in OF_GROUPS and times < 2:
        yield (
            f"advantages {config.advantages!r} compares responses to one prompt, and responses_per_prompt is {times}; "
            "give 2 or more, or advantages 'gae'"
        )
    if config.advantages in OF_TOTALS and config.gamma != 1:
        yield (
            f"advantages {config.advantages!r} adds up whole responses and discounts nothing, so gamma must be 1, got "
            f"{config.gamma}"
        )


def _kl_contradictions(config: PPOConfig) -> Iterator[str]:
    """Estimators that do nothing in the loss, or are measured without a gradient."""
    if config.kl.place == "loss" and config.kl.kind not in ("k2", "k3"):
        yield f"kl.place 'loss' needs kl.kind 'k2' or 'k3', got {config.kl.kind!r}"


def _warmup_contradictions(config: PPOConfig) -> Iterator[str]:
    """A warm-up in which nothing would learn, or after which nothing would."""
    steps = config.critic_warmup
    if steps and config.advantages not in WITH_A_CRITIC:
        yield f"critic_warmup {steps} trains a critic, and advantages {config.advantages!r} have none; leave it out"
    if steps and config.value_coef == 0:
        yield f"critic_warmup {steps} trains a critic, and value_coef 0 keeps it from learning; leave one of them out"
    if steps and config.schedule_steps is not None and config.schedule_steps <= steps:
        yield f"schedule_steps {config.schedule_steps} must exceed critic_warmup {steps}, or the policy never learns"


def _surrogate_contradictions(config: PPOConfig) -> Iterator[str]:
    """Clipping that a surrogate does not have."""
    if config.surrogate == "cispo" and config.dual_clip is not None:
        yield f"dual_clip {config.dual_clip} bounds the loss of 'ppo' and 'gspo'; surrogate 'cispo' has no such bound"


def _lambda_contradictions(config: PPOConfig) -> Iterator[str]:
    """Settings of λ that would change nothing."""
    given = {"value_lam": config.value_lam, "lam_length_share": config.lam_length_share}
    for name in (name for name, value in given.items() if value is not None and config.advantages != "gae"):
        yield f"{name} {given[name]} belongs to advantages 'gae', and they are {config.advantages!r}; leave it out"
