"""Settings of a comparison. No model library is imported, so a command line is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.base.settings_checks import require_all
from benchmarks.runs.arm_texts import arm_texts, read_arm
from benchmarks.runs.ppo_settings import PAPER_SETTINGS, with_settings
from benchmarks.tasks.model_settings import Loading
from benchmarks.tasks.ppo_settings import CHANGES
from redistributors.method_names import METHOD_NAMES
from rlhf_core.config import require_use_for_a_critic

TASK_SETTINGS = (
    *("models", "cache", "policy", "reward", "reward_label", "data", "template", "reward_template", "loading"),
)
PAPER_TASKS = ("positive_generation", "summarisation", "dialogue")
"""Tasks that the paper ran, so that its curves can stand behind ours."""
SAMPLER_NAMES = ("matched", "unrestricted-logprobs", "dropout")
"""Names of ``benchmarks.runs.samplers``, which a test holds to these."""


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Compare redistributors on paired seeds; settings of PPO are --ppo.NAME, on top of the task's own."""

    task: Literal["toy", "positive_generation", "summarisation", "dialogue", "own"] = "toy"
    """The embedded task, one of the paper's (see --models), or your own: what --policy, --data and --reward together
    mean where no other task is named."""
    models: str | None = None
    """The folder that benchmarks.prepare made; without it the task's hub models are downloaded (toy: its own)."""
    cache: str | None = None
    """toy: the folder that keeps its models, trained once."""
    policy: str | None = None
    """The policy, folder or hub name: your own, or (without --models) in place of the task's."""
    reward: str | None = None
    """The reward: your own, a function as my_module:my_function or a classifier, folder or hub name; or (without
    --models) the reward model in place of the task's."""
    reward_label: str | None = None
    """own: the label of a classifier with several labels whose log-odds are the reward."""
    data: str | None = None
    """Where prompts come from, a file or hub:NAME: your own, rows with a column prompt; or (without --models) those in
    place of the task's."""
    template: str | None = None
    """Without --models: prompt template of summarisation or dialogue (see benchmarks.data.templates)."""
    reward_template: str | None = None
    """Without --models: the reward model's own."""
    loading: Loading = field(default_factory=Loading)
    """How the models are loaded."""
    out: str = "runs/comparison"
    """Folder of the results. Calling again with the same settings resumes; arms and seeds may be added."""
    redistributors: str | list[str] = "sparse,uniform,abc"
    """Arms: names, with settings as uniform(beta=0.8) and changed PPO settings as sparse@lam=1; a method of your own as
    package.module.Class."""
    controls: str | list[str] = "sparse@lam=1"
    """Further arms, as controls: sparse at lam 1 reaches part of what dense credit gains at lam 0.95. Empty for
    none."""
    seeds: int | list[int] = 5
    """Number of seeds (0, 1, ...), or a list of them."""
    seeds_of: dict[str, int | list[int]] | None = None
    """Seeds of arms that have their own, as '{sparse: 20}': a number or list as for --seeds, by the arm as it is
    written. Arms are then compared by Welch's test, not by pairs, so it is fixed from the first call on."""
    steps: int = 60
    """PPO steps of a run."""
    power: bool = False
    """Only say how large a difference these seeds can find, and how many seeds and hours a difference of 0.25 initial
    standard deviations takes, from the first 4 runs of sparse. The comparison itself begins by saying it too."""
    until: Literal["decided"] | None = None
    """decided: look after every fifth of the seeds, and stop once every difference to sparse is decided or hopeless;
    intervals take the looks into account, and --seeds is the most. Without it, all seeds run."""
    eval_every: int = 20
    """Steps between evaluations on held-out prompts."""
    eval_prompts: int = 64
    """Held-out prompts evaluated on."""
    save_every: int = 0
    """Steps between checkpoints, from which a killed run resumes; 0: it starts again. Ctrl-C always saves one."""
    processes: int = 2
    """Runs at a time, each in a process of its own with one thread; 0: one after the other in this process."""
    executor: Literal["processes", "ray"] = "processes"
    """Who does the runs: processes of this machine, or a Ray cluster (pip install 'dense-rlhf[cluster]')."""
    ray_address: str | None = None
    """ray: where the cluster is, as HOST:6379, or auto for the one this machine belongs to; without it (and without
    RAY_ADDRESS) one is started here, with as many CPUs as processes."""
    gpus_per_run: float = 0
    """ray: GPUs that a run takes, besides one CPU; runs may share one, as with 0.5."""
    paper_curves: str | None = None
    """The paper's own curves (paper_curves.json.gz), drawn behind ours if the task is the same."""
    overwrite: bool = False
    """Delete what an earlier comparison left in the out folder."""

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "eval_every": 1, "eval_prompts": 1, "processes": 0, "save_every": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        self._require_executor()
        own = {"policy": self.policy, "data": self.data, "reward": self.reward}
        if self.task in ("toy", "own") and any(own.values()):
            object.__setattr__(self, "task", "own")
            if missing := [f"--{name}" for name, value in own.items() if value is None]:
                raise ValueError(f"--policy, --data and --reward belong together; give {' and '.join(missing)} too")
        self._require_seeds()
        if self.models is not None:
            beside = [name for name in ("policy", "reward", "data", "template") if getattr(self, name) is not None]
            if beside:
                raise ValueError(f"--models {self.models} holds policy, reward and prompts: leave out {beside}")
        if self.paper_curves is not None and not Path(self.paper_curves).is_file():
            raise ValueError(f"--paper_curves: no file {self.paper_curves}")
        if self.paper_curves is not None and self.task not in PAPER_TASKS:
            ran = ", ".join(PAPER_TASKS)
            raise ValueError(f"--paper_curves: the paper did not run the task {self.task!r}; it ran {ran}")
        require_all(*(partial(read_arm, text, METHOD_NAMES) for text in self._arm_texts()))

    def _require_seeds(self) -> None:
        own = self.seeds_of or {}
        for name, given in {"seeds": self.seeds, **{f"seeds_of: {arm}": some for arm, some in own.items()}}.items():
            seeds = written_out(given)
            if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
                raise ValueError(
                    f"{name} must be how many, 1 or more, or different numbers, 0 or more, as [0, 1]; got {given}"
                )
        if self.until is not None and len(self.seed_list()) < 4:
            raise ValueError(f"--until decided looks at 4 seeds or more, got --seeds {self.seeds}")
        if self.seeds_of is not None:
            self._require_own_seeds(self.seeds_of)

    def _require_own_seeds(self, own: Mapping[str, int | list[int]]) -> None:
        texts = self._arm_texts()
        if unknown := [arm for arm in own if arm not in texts]:
            raise ValueError(
                f"--seeds_of names {unknown[0]!r}, which is no arm as it is written; the arms: {', '.join(texts)}"
            )
        if len({tuple(written_out(own.get(arm, self.seeds))) for arm in texts}) < 2:
            raise ValueError(f"--seeds_of {own} gives all arms the same seeds; leave it out, and give --seeds alone")
        if self.until is not None:
            raise ValueError(
                "--until decided looks at pairs of runs with the same seed, so every arm needs the same seeds; leave "
                f"out --seeds_of {own}, or leave out --until and run all seeds"
            )

    def _require_executor(self) -> None:
        if self.gpus_per_run < 0:
            raise ValueError(f"gpus_per_run must be 0 or more, got {self.gpus_per_run}")
        if self.executor != "ray" and (self.ray_address is not None or self.gpus_per_run):
            raise ValueError("--ray_address and --gpus_per_run are settings of a Ray cluster; add --executor ray")
        devices = (self.loading.device, self.loading.reward_device or "")
        if self.executor == "ray" and any(one.startswith("cuda") for one in devices) and not self.gpus_per_run:
            raise ValueError(
                "--executor ray hands out cards only to runs that ask for them; add --gpus_per_run 1 (or a share, such "
                "as 0.5)"
            )

    def _arm_texts(self) -> list[str]:
        return [*arm_texts(self.redistributors), *arm_texts(self.controls)]

    def seed_list(self) -> list[int]:
        """The seeds, written out; of arms that have none of their own."""
        return written_out(self.seeds)

    def own_seed_lists(self) -> dict[str, list[int]]:
        """The seeds of arms that have their own, by label.

        Raises:
            ValueError: an arm that cannot be.
        """
        from benchmarks.runs.arms import parse_arms

        own = (self.seeds_of or {}).items()
        return {arm.label: written_out(seeds) for text, seeds in own for arm in parse_arms([text])}

    def require_ppo(self, changes: Mapping[str, Any]) -> None:
        """Check the task's PPO settings changed by ``changes``, and by every arm, before anything heavy is imported.

        Raises:
            ValueError: an unknown setting, a value of another type or out of range, settings that contradict each
                other, or a critic that would not learn; names the arm.
        """
        if self.task not in CHANGES:
            return
        config = with_settings(with_settings(PAPER_SETTINGS, CHANGES[self.task](self.models)), changes)

        def require(text: str) -> None:
            try:
                of_arm = with_settings(config, read_arm(text, METHOD_NAMES).changes)
                if self.loading.critic != "shared":
                    require_use_for_a_critic(of_arm)
            except ValueError as error:
                raise ValueError(f"arm {text}: {error}") from error

        require_all(*(partial(require, text) for text in self._arm_texts()))

    def arms(self) -> tuple[Any, ...]:
        """Redistributors, then the controls that are not among them, as :class:`benchmarks.runs.arms.Arm`.

        Raises:
            ValueError: none, or one that cannot be.
        """
        from benchmarks.runs.arms import parse_arms

        require_all(partial(parse_arms, self.redistributors), partial(parse_arms, self.controls))
        arms = (*parse_arms(self.redistributors), *self.added_controls())
        if not arms:
            raise ValueError("no arms: name at least one redistributor")
        return arms

    def added_controls(self) -> tuple[Any, ...]:
        """The controls that are not among the redistributors; raises ValueError for one that cannot be."""
        from benchmarks.runs.arms import parse_arms

        labels = {arm.label for arm in parse_arms(self.redistributors)}
        return tuple(arm for arm in parse_arms(self.controls) if arm.label not in labels)

    def make_task(self) -> Any:
        """The task with the settings that are given, a :class:`benchmarks.runs.single_run.Task`."""
        from benchmarks.tasks.definitions import make_task

        given = {name: getattr(self, name) for name in TASK_SETTINGS}
        return make_task(self.task, held_out=self.eval_prompts, **given)


def written_out(seeds: int | list[int]) -> list[int]:
    """The seeds 0, 1, ... where a number of them is given."""
    return list(range(seeds)) if isinstance(seeds, int) else list(seeds)


def length_changes(low: int, high: int) -> dict[str, Any]:
    """PPO settings of responses of ``low`` tokens at least, whose maxima are drawn below ``high``, as by the paper's
    sampler; raises ValueError for an empty range."""
    if not 1 <= low < high:
        raise ValueError(f"lengths must be ranges (low, high) with 1 <= low < high, got {(low, high)}")
    return {"min_length": low, "max_length": [low, high - 1]}
