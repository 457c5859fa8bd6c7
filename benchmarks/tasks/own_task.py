"""The user's own task: a policy, prompts, and a reward, which is a function or a classifier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.base.importing import imported, is_name
from benchmarks.base.json_files import fingerprint
from benchmarks.base.own_code import code_fingerprint
from benchmarks.base.settings_checks import flag_named, require_all
from benchmarks.data.own_prompts import read_own_prompts, split
from benchmarks.data.records import require_sources, source_name
from benchmarks.tasks.loaded import Loaded, task_fingerprint
from benchmarks.tasks.model_loading import critic_model, held_policy, held_reward
from benchmarks.tasks.model_settings import Loading
from benchmarks.tasks.ppo_settings import own_changes
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.score_kinds import RewardNotNamed
from models.weights.source import require_there
from rlhf_core.names import counted
from rlhf_core.scorers.signatures import HasFunction, require_columns, require_signature
from rlhf_core.types import RewardModel, Row


@dataclass(frozen=True, kw_only=True)
class OwnTask:
    """Respond to prompts of the user's own so that a reward of their own likes it.

    Raises:
        ValueError: a reward function that cannot be imported or called, or files and folders that are not there; all
            are named, with the way out.
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
    """How the models are loaded."""
    code: str = field(init=False, default="")
    """Fingerprint of a reward function's code: a run is not continued with another."""

    def __post_init__(self) -> None:
        require_all(self._require_policy, self._require_data, self._name_reward, self._require_critic)

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
        with flag_named("policy", self.policy):
            policy = held_policy(self.loading, self.policy, reward=None if self.code else self.reward)
        more = len(held_out) > self.held_out
        why = f" (always the tenth that a hash of the prompt picks; evaluated on: {self.held_out})" if more else ""
        said = f"{counted(len(train), 'prompt')} to train on, {len(held_out)} held out{why}"
        print(f"{source_name(self.data)}: {said}", flush=True)
        with flag_named("reward", self.reward):
            reward = function or self._classifier()
        models = [self.policy] if self.code else [self.policy, self.reward]
        content = task_fingerprint(models, self.loading, [sorted(row.items()) for row in rows])
        return Loaded(
            policy=policy,
            reward=reward,
            train_prompts=train,
            held_out_prompts=held_out,
            as_read=rows,
            fingerprint=fingerprint([content, code_fingerprint(function) if function else ""]),
        )

    def _classifier(self) -> ClassifierReward:
        """The reward model; where nothing says which of its labels is the reward, the error names the flag for it."""
        try:
            return held_reward(self.loading, self.reward, label=self.reward_label)
        except RewardNotNamed as error:
            raise ValueError(f"{error.problem}. Name its label with --reward_label, one of {error.labels}") from error

    def _name_reward(self) -> None:
        """Note the code of a reward function; raises ValueError where there is no such function, and no classifier."""
        if is_name(self.reward):
            object.__setattr__(self, "code", code_fingerprint(self._function()))
            critic_model(self.loading, None)
        elif Path(f"{self.reward}.py").is_file() and not Path(self.reward).exists():
            raise ValueError(f"--reward {self.reward} names a module; write {self.reward}:function")
        else:
            with flag_named("reward", self.reward):
                require_there(self.reward)

    def _require_policy(self) -> None:
        with flag_named("policy", self.policy):
            require_there(self.policy)

    def _require_critic(self) -> None:
        if self.loading.critic_model is not None:
            with flag_named("loading.critic_model", self.loading.critic_model):
                require_there(self.loading.critic_model)

    def _require_data(self) -> None:
        with flag_named("data", self.data):
            require_sources([self.data])

    def _function(self, rows: Sequence[Row] = ()) -> Callable[..., Any] | RewardModel:
        """The reward function; with ``rows``, one whose columns they have."""
        try:
            found: Callable[..., Any] | RewardModel = imported(self.reward)
            fn = found.fn if isinstance(found, HasFunction) else found
            if callable(fn):
                require_signature(fn)
                if rows:
                    require_columns(fn, {*rows[0]} - {"prompt"})
            elif not isinstance(found, RewardModel):
                raise TypeError(f"it is not a function of (prompts, responses) but {found!r}")
        except (TypeError, ValueError) as error:
            raise ValueError(f"--reward {self.reward}: {error}") from error
        return found
