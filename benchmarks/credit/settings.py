"""Settings of the studies of credit; this file imports no model library, so a command line is quick."""

from dataclasses import dataclass, field
from typing import Literal

from benchmarks.base.settings_checks import require_at_least
from benchmarks.tasks.model_settings import Loading

DIRECTIONS = ("deletion", "insertion")
Absent = Literal["delete", "replace"]


@dataclass(frozen=True, kw_only=True)
class FaithfulnessSettings:
    """Is credit faithful to the score? Take tokens away in the order of each method's credit, score what is left, and
    compare: deletion and insertion curves, rank correlations with what tokens are worth, concentration, signs and cost.
    All methods explain the same responses of the task's untrained policy."""

    task: Literal["toy", "positive_generation", "summarisation", "dialogue"] = "toy"
    """The embedded task, or one of the paper's (see --models)."""
    models: str | None = None
    """Folder that benchmarks.prepare made. Without it the task's hub models are downloaded; the toy task trains its
    own."""
    cache: str | None = None
    """Folder that keeps the models of the toy task, which are trained once."""
    loading: Loading = field(default_factory=Loading)
    """How the models are loaded."""
    redistributors: str | list[str] = "all"
    """Methods: all registered ones, or names, with settings as uniform(beta=0.8). Your own is package.module.Class."""
    responses: int = 64
    """Responses to study, one per held-out prompt."""
    points: int = 10
    """Steps of a curve. Each takes the same share of a response's tokens."""
    absent: tuple[Absent, ...] = ("delete", "replace")
    """How a token is taken away: cut out, or replaced by the reward model's null token."""
    orders: int = 8
    """Random orders to average over where tokens have equal credit."""
    continuations: int = 32
    """Continuations drawn per state to estimate its value, an even number; 0 leaves value differences out."""
    warm: int = 4
    """Rollouts that a method which learns observes before it is studied."""
    seed: int = 0
    """Seed of every random number."""
    out: str = "runs/credit_faithfulness"
    """Folder for tables, curves and figure."""
    overwrite: bool = False
    """Delete an earlier measurement in the out folder."""

    def __post_init__(self) -> None:
        require_at_least(self, responses=1, points=1, orders=1, continuations=0, warm=0, seed=0)
        if self.continuations % 2:
            raise ValueError(f"continuations must be even, to be compared half with half, got {self.continuations}")
        if not self.absent or len(set(self.absent)) < len(self.absent):
            raise ValueError(f"absent must name delete, replace or both, once each, got {self.absent}")
        if not self.redistributors:
            raise ValueError("redistributors must name at least one method, or be all")

    @property
    def kinds(self) -> list[tuple[Absent, str]]:
        """The curves: every kind of absence, in both directions."""
        return [(absent, name) for absent in self.absent for name in DIRECTIONS]


@dataclass(frozen=True, kw_only=True)
class GradientSettings:
    """How good is each method's gradient? Compare direction and noise of the policy gradients that methods make of the
    same responses."""

    task: Literal["toy", "positive_generation", "summarisation", "dialogue"] = "toy"
    """The embedded task, or one of the paper's (see --models)."""
    models: str | None = None
    """Folder that benchmarks.prepare made. Without it the task's hub models are downloaded; the toy task trains its
    own."""
    cache: str | None = None
    """Folder that keeps the models of the toy task, which are trained once."""
    loading: Loading = field(default_factory=Loading)
    """How the models are loaded."""
    redistributors: str | list[str] = "sparse,sparse@lam=1,uniform,uniform(beta=0.8),abc"
    """Arms, plain sparse among them. An arm may change advantages, gamma and lam, as in sparse@lam=1."""
    prompts: int = 64
    """Held-out prompts per rollout."""
    responses_per_prompt: int = 1
    """Responses per prompt; 2 or more for arms with @advantages=rloo."""
    repetitions: int = 64
    """Rollouts of the same prompts. All arms get the same ones."""
    reference_repetitions: int = 256
    """Further rollouts for the reference gradient."""
    sparse_steps: tuple[int, ...] = (0, 30)
    """Policies to measure, by how many PPO steps with sparse credit they have taken."""
    warm: int = 4
    """Rollouts that a method which learns observes before it is measured."""
    seed: int = 0
    """Seed of every random number."""
    out: str = "runs/gradient_quality"
    """Folder for table and figure."""
    overwrite: bool = False
    """Delete an earlier measurement in the out folder."""

    def __post_init__(self) -> None:
        require_at_least(self, prompts=1, responses_per_prompt=1, repetitions=3, reference_repetitions=2, warm=0)
        if not self.sparse_steps or min(self.sparse_steps) < 0 or len(set(self.sparse_steps)) < len(self.sparse_steps):
            raise ValueError(f"sparse_steps must be different numbers, 0 or more, got {self.sparse_steps}")
