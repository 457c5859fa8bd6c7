"""A task of the user's own: their policy, their prompts, and their reward, which is a function or a classifier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.base.importing import imported, is_name
from benchmarks.base.json_files import fingerprint
from benchmarks.base.own_code import code_fingerprint
from benchmarks.data.own_prompts import read_own_prompts, split
from benchmarks.data.records import source_name
from benchmarks.tasks.loaded import Loaded, task_fingerprint
from benchmarks.tasks.model_loading import critic_model, held_policy, held_reward
from benchmarks.tasks.model_settings import Loading
from benchmarks.tasks.ppo_settings import own_changes
from rlhf_core.scorers.signatures import HasFunction, require_columns, require_signature
from rlhf_core.types import RewardModel, Row


@dataclass(frozen=True, kw_only=True)
class OwnTask:
    """Respond to prompts of the user's own so that a reward of their own likes it.

    Raises:
        ValueError: a reward function that cannot be imported or called; says why, or shows the right signature.
    """

    policy: str
    """Causal language model or adapter, folder or hub name."""
    data: str
    """Rows with a column ``prompt``: a file, or a data set on the hub (see benchmarks.data.records)."""
    reward: str
    """A function, as module:function; or a classifier, folder or hub name."""
    reward_label: str | None = None
    """The label of a classifier whose log-odds are the reward, where it has several."""
    held_out: int = 64
    """Fewest prompts held out."""
    loading: Loading = field(default_factory=Loading)
    """How the models are held."""
    code: str = field(init=False, default="")
    """Fingerprint of a reward function's code: a run is not continued with another."""

    def __post_init__(self) -> None:
        if is_name(self.reward):
            fn = self._function()
            object.__setattr__(self, "code", code_fingerprint(fn))
            critic_model(self.loading, None)
        elif Path(f"{self.reward}.py").is_file() and not Path(self.reward).exists():
            raise ValueError(f"--reward {self.reward} names a module; write {self.reward}:function")

    @property
    def ppo(self) -> Mapping[str, Any]:
        """What it changes in the paper's settings (``PPOConfig.from_paper``)."""
        return own_changes()

    def load(self) -> Loaded:
        """Read prompts and models; says what is held out.

        Raises:
            FileNotFoundError: no such file or folder.
            ValueError: prompts that cannot be used, a column that the reward asks for and they lack, or models that
                cannot be used.
        """
        rows = read_own_prompts(self.data)
        train, held_out = split(rows, self.data, self.held_out)
        function = self._function(rows) if self.code else None
        policy = held_policy(self.loading, self.policy, reward=None if self.code else self.reward)
        print(f"{source_name(self.data)}: {len(train)} prompts to learn from, {len(held_out)} held out", flush=True)
        models = [self.policy] if self.code else [self.policy, self.reward]
        content = task_fingerprint(models, self.loading, [sorted(row.items()) for row in rows])
        return Loaded(
            policy=policy,
            reward=function or held_reward(self.loading, self.reward, label=self.reward_label),
            train_prompts=train,
            held_out_prompts=held_out,
            fingerprint=fingerprint([content, code_fingerprint(function) if function else ""]),
        )

    def _function(self, rows: Sequence[Row] = ()) -> Callable[..., Any] | RewardModel:
        """The reward function; with ``rows``, one whose columns they have."""
        found: Callable[..., Any] | RewardModel = imported(self.reward)
        fn = found.fn if isinstance(found, HasFunction) else found
        try:
            if callable(fn):
                require_signature(fn)
                if rows:
                    require_columns(fn, {*rows[0]} - {"prompt"})
            elif not isinstance(found, RewardModel):
                raise TypeError(f"it is no function of (prompts, responses) but {found!r}")
        except (TypeError, ValueError) as error:
            raise ValueError(f"--reward {self.reward}: {error}") from error
        return found
