"""Settings of the experiments besides those of their comparison. No model library is imported, so a command line is
quick."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from benchmarks.data.records import as_list
from benchmarks.runs.settings import SAMPLER_NAMES, ComparisonSettings, length_changes
from benchmarks.tasks.model_settings import Loading
from models.policy.critic_names import CriticKind
from models.policy.publishing import require_name


@dataclass(frozen=True, kw_only=True)
class BetaSweep:
    """The shares beta to compare, and the method."""

    method: str = "abc"
    """Redistributor that takes a beta."""
    betas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Shares of the score that follow the credit; 0 is sparse."""

    def __post_init__(self) -> None:
        if not self.betas or len(set(self.betas)) < len(self.betas) or not all(0 <= beta <= 1 for beta in self.betas):
            raise ValueError(f"betas must be different shares between 0 and 1, got {self.betas}")


@dataclass(frozen=True, kw_only=True)
class Critics:
    """Which critics."""

    critics: tuple[CriticKind, ...] = ("shared", "adapter", "model")
    """Critics compared; "adapter" needs a policy that is an adapter (--loading.lora.rank 8, say), and "model" starts
    from the task's reward model."""

    def __post_init__(self) -> None:
        if not self.critics or len(set(self.critics)) < len(self.critics):
            raise ValueError(f"critics must be different kinds, at least one, got {self.critics}")


@dataclass(frozen=True, kw_only=True)
class GenerationLength:
    """The response lengths to compare."""

    lengths: tuple[tuple[int, int], ...] = ((20, 30), (40, 60), (90, 110), (140, 160))
    """Ranges of response tokens: the lower end is the minimum; each row's maximum is drawn from the range."""
    failed_below: float | None = None
    """Mean score of the last 10 steps, or of all if fewer ran, below which a run failed (paper: 6); null: midway from
    start to the best arm."""

    def __post_init__(self) -> None:
        for length in self.lengths:
            length_changes(*length)


@dataclass(frozen=True, kw_only=True)
class LengthDrift:
    """The constant scores, settings and lengths to compare."""

    values: tuple[float, ...] = (1.0, -1.0)
    """The score of every response, before centring."""
    lams: tuple[float, ...] = (1.0, 0.95)
    """λ of GAE, with a critic that learns."""
    extras: tuple[Literal["no_critic", "centred"], ...] = ("no_critic", "centred")
    """Panels besides, at the first λ: a critic that stays at 0 (value_coef 0), and a critic that learns while the score
    is centred by its running mean. A centred constant is 0 whatever it was, so that is run for the first value only."""
    lengths: tuple[int, int] = (1, 48)
    """Fewest and most tokens of a response. Only a wide range lets length drift."""

    def __post_init__(self) -> None:
        low, high = self.lengths
        if not 1 <= low < high:
            raise ValueError(f"lengths must be (fewest, most) with 1 <= fewest < most, got {self.lengths}")
        for name, given in (("values", self.values), ("lams", self.lams)):
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must be different numbers, at least one, got {given}")


@dataclass(frozen=True, kw_only=True)
class OverOptimisation:
    """How curves are smoothed."""

    block: int = 10
    """Steps averaged into one point."""

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block must be 1 or more, got {self.block}")


@dataclass(frozen=True, kw_only=True)
class RewardKL:
    """The KL levels at which the reward is read."""

    levels: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0)
    """KLs, nats per response, at which the reward is compared."""
    block: int = 5
    """Steps averaged into one point of a line."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) <= 0 or self.block < 1:
            raise ValueError(f"levels must be KLs above 0 and block 1 or more, got {self.levels} and {self.block}")


@dataclass(frozen=True, kw_only=True)
class SamplingMismatch:
    """The samplers and lengths to compare."""

    samplers: tuple[str, ...] = SAMPLER_NAMES
    """Samplers compared; "matched" is ours."""
    lengths: tuple[tuple[int, int], ...] = ((8, 16), (90, 110))
    """Ranges of response tokens, upper end excluded."""
    failed_below: float | None = None
    """Mean score of the last 10 steps, or of all if fewer ran, below which a run failed (paper: 6); null: midway from
    start to the best arm of our sampler at that length."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.samplers if name not in SAMPLER_NAMES]
        if unknown or "matched" not in self.samplers:
            raise ValueError(f"samplers must be of {', '.join(SAMPLER_NAMES)}, matched among them, got {self.samplers}")
        for length in self.lengths:
            length_changes(*length)


@dataclass(frozen=True, kw_only=True)
class LearningCurves:
    """The threshold of a failed run."""

    failed_below: float | None = None
    """Mean score of the last 10 steps, or of all if fewer ran, below which a run failed (paper: 6); null: midway from
    start to the best arm."""


@dataclass(frozen=True, kw_only=True)
class TableOne:
    """Average reward of every comparison and arm with 95 % intervals, read from comparisons that have run."""

    comparisons: str | list[str]
    """Folders of comparisons (the --out of benchmarks.value_loss_variance and kin)."""
    out: str = "runs/table1"
    """Where table.md, table.csv, table1.png and table1.pdf go; files of that name there are replaced."""
    steps: int | None = None
    """Average over this many first steps; null: all."""
    paper_curves: str | None = None
    """The paper's own curves (paper_curves.json.gz), for its numbers over 101 steps beside ours."""

    def folders(self) -> list[Path]:
        """The comparisons, as paths."""
        return [Path(folder) for folder in as_list(self.comparisons)]

    def require_comparisons(self) -> None:
        """Raise FileNotFoundError for a folder that holds no comparison."""
        for folder in self.folders():
            if not (folder / "run.json").is_file():
                raise FileNotFoundError(f"{folder} holds no comparison (no run.json)")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Train one policy with one method under one seed; settings of PPO are --ppo.NAME, on top of the task's own."""

    task: Literal["toy", "positive_generation", "summarisation", "dialogue", "own"] = "toy"
    """The embedded task, one of the paper's (see --models), or your own: what --policy, --data and --reward together
    mean where no other task is named."""
    policy: str | None = None
    """The policy, folder or hub name: your own, or (without --models) in place of the task's."""
    data: str | None = None
    """Where prompts come from, a file or hub:NAME: your own, rows with a column prompt; or (without --models) those in
    place of the task's."""
    reward: str | None = None
    """The reward: your own, a function as my_module:my_function or a classifier, folder or hub name; or (without
    --models) the reward model in place of the task's."""
    reward_label: str | None = None
    """own: the label of a classifier with several labels whose log-odds are the reward."""
    models: str | None = None
    """The folder that benchmarks.prepare made; without it the task's hub models are downloaded (toy: its own)."""
    cache: str | None = None
    """toy: the folder that keeps its models, trained once."""
    loading: Loading = field(default_factory=Loading)
    """How the models are loaded."""
    redistributor: str = "sparse"
    """The method, with settings as uniform(beta=0.8); one of your own as package.module.Class."""
    seed: int = 0
    """Seed of every random stream."""
    steps: int = 60
    """PPO steps in all."""
    out: str = "runs/train"
    """Folder of the run. Run the command again to continue."""
    eval_every: int = 20
    """Steps between evaluations on held-out prompts."""
    eval_prompts: int = 16
    """Held-out prompts evaluated on."""
    save_every: int = 0
    """Steps between checkpoints, from which a killed run resumes; 0: it starts again. Ctrl-C always saves one."""
    overwrite: bool = False
    """Delete an earlier run in the out folder."""
    push_to_hub: str | None = None
    """Upload the trained policy to this repository of the Hugging Face hub, USER/NAME; a new one is private."""

    def __post_init__(self) -> None:
        if self.push_to_hub is not None:
            require_name(self.push_to_hub)
        self.comparison()

    def comparison(self) -> ComparisonSettings:
        """The same as a comparison of one method under one seed; raises ValueError for a setting that cannot be."""
        shared = {one.name: getattr(self, one.name) for one in fields(self)}
        method, seed, _ = (shared.pop(name) for name in ("redistributor", "seed", "push_to_hub"))
        return ComparisonSettings(redistributors=[method], controls=[], seeds=[seed], processes=0, **shared)
