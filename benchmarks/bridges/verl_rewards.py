"""A reward manager for verl 0.9.1 that gives every token its own reward.

verl loads a manager by name (``reward.reward_manager.source: importlib``), asks it for the reward of each response
(``run_single``, in its reward workers), and then once per batch for a tensor of them (``assemble_rm_scores``, in the
driver). Nothing here imports verl: a manager is what it calls, not what it inherits.
"""

import asyncio
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.bridges.group_estimator import NAME
from models.rewards.loading import load_reward_model
from redistributors.registry import REDISTRIBUTORS
from rlhf_core.reward_per_token import require_policy_free, token_rewards
from rlhf_core.types import Redistributor, RewardModel

TokenRewards = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], list[list[float]]]
"""Token ids of prompts and responses in, a reward for each token of each response out."""
OF_TOTALS = frozenset(
    {
        *("grpo", "grpo_vectorized", "grpo_passk", "gdpo", "gpg", "opo", "rloo", "rloo_vectorized"),
        "reinforce_plus_plus_baseline",
    }
)
"""Estimators of verl that add up a response's rewards first, so that their place within it changes nothing."""


def credited_rewards(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    model: str,
    method: str = "abc",
    device: str = "cpu",
    **settings: Any,
) -> list[list[float]]:
    """The rewards of a reward model, spread by a method: verl's ``reward.custom_reward_function``.

    ``model`` is a folder or hub name as :func:`models.load_reward_model` takes it, with the policy's tokenizer;
    ``method`` a name of the registry and ``settings`` its settings; ``device`` where the model lies. All come from
    ``reward_kwargs``. The model is loaded once per worker.

    Raises:
        KeyError: an unknown method.
        ValueError: what :func:`rlhf_core.token_rewards` refuses.
    """
    reward, redistributor = _loaded(model, method, device, tuple(sorted(settings.items())))
    return token_rewards(reward, redistributor, prompt_ids, response_ids)


@lru_cache(maxsize=1)
def _loaded(
    model: str, method: str, device: str, settings: tuple[tuple[str, Any], ...]
) -> tuple[RewardModel, Redistributor]:
    redistributor = REDISTRIBUTORS[method](**dict(settings))
    reward = load_reward_model(model, device=device)
    require_policy_free(reward, redistributor)
    return reward, redistributor


class TokenRewardManager:
    """What verl calls for rewards. ``config`` is verl's whole configuration, ``compute_score`` the custom reward
    function, a :data:`TokenRewards`; the other arguments are not used.

    Raises:
        ValueError: a configuration under which verl would put the whole reward on the last token, or in which the
            estimator has one response per prompt to compare.

    It warns where the estimator adds up a response's rewards, so that credit per token is lost.
    """

    def __init__(self, config: Any, tokenizer: Any, compute_score: TokenRewards, **others: Any) -> None:
        require_token_rewards(config)
        self._rewards = compute_score
        self._waiting: list[tuple[list[int], list[int], asyncio.Future[list[float]]]] = []

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Rewards of the last response in ``data``: ``reward_score`` is a list, a number for each of its tokens.

        Responses that are asked for at the same time are scored together.
        """
        (prompt,), (response,) = _rows(data[-1:])
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((prompt, response, answer))
        await asyncio.sleep(0)  # all responses of a batch ask before the first goes on
        self._answer()
        rewards = await answer
        return {"reward_score": rewards, "reward_extra_info": {"score": sum(rewards)}}

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        prompts, responses, answers = zip(*waiting, strict=True)
        try:
            rewards = self._rewards(prompts, responses)
        except Exception as error:
            for answer in answers:
                answer.set_exception(error)
            return
        for answer, row in zip(answers, rewards, strict=True):
            answer.set_result(row)

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[Any]) -> Tensor:
        """The rewards of a batch, (batch, response): each on its own token, 0 on padding. ``scores`` holds what
        ``run_single`` gave for each response.

        Raises:
            ValueError: a row that is not one number per token of the response, or responses with tokens of a tool's.
        """
        mask = _response_part(data)
        if "response_mask" in data.batch and not torch.equal(data.batch["response_mask"].bool(), mask):
            raise ValueError(
                "TokenRewardManager: some response tokens are not the policy's (response_mask is 0 inside a response): "
                "credit on them would be lost. It serves responses of a single turn"
            )
        rewards = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        for row, (given, tokens) in enumerate(zip(scores, mask, strict=True)):
            if not isinstance(given, Sequence) or len(given) != int(tokens.sum()):
                raise ValueError(
                    f"TokenRewardManager: response {row} has {int(tokens.sum())} tokens, and the reward function gave "
                    f"{given!r}; it must give a list with one number per token"
                )
            rewards[row, tokens] = torch.tensor(given, dtype=torch.float32, device=mask.device)
        return rewards


def require_token_rewards(config: Any) -> None:
    """Raise ValueError, or warn, as :class:`TokenRewardManager` says."""
    reward, estimator = config.reward, config.algorithm.adv_estimator
    if not reward.reward_model.enable or reward.reward_model.enable_resource_pool:
        raise ValueError(
            f"reward.reward_model.enable is {reward.reward_model.enable} and enable_resource_pool is "
            f"{reward.reward_model.enable_resource_pool}: verl then scores responses while others are sampled, and "
            "puts each reward on the last token without asking for rewards per token. Set reward.reward_model.enable "
            "to true and enable_resource_pool to false"
        )
    if not reward.custom_reward_function.path:
        raise ValueError(
            "reward.custom_reward_function.path is not set: verl then asks its own server for one score per response. "
            "Set it to pkg://benchmarks.bridges.for_verl, with name credited_rewards"
        )
    if estimator == NAME and config.actor_rollout_ref.rollout.n < 2:
        raise ValueError(
            f"algorithm.adv_estimator {NAME} compares the responses to one prompt, and actor_rollout_ref.rollout.n is "
            f"{config.actor_rollout_ref.rollout.n}; set it to 2 or more"
        )
    if estimator in OF_TOTALS:
        warnings.warn(
            f"algorithm.adv_estimator {estimator} adds up the rewards of a response before it compares responses: "
            f"credit per token is lost, and training is the same as with one score. Use {NAME}, which compares token "
            "by token and is registered with this manager, or gae, reinforce_plus_plus or remax",
            UserWarning,
            stacklevel=3,
        )


def _response_part(data: Any) -> Tensor:
    """Where the tokens of the responses are, (batch, response)."""
    mask: Tensor = data.batch["attention_mask"]
    return mask[:, data.batch["prompts"].shape[1] :].bool()


def _rows(data: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses as ragged lists. verl pads prompts on either side, so that only the mask tells."""
    prompts, responses = data.batch["prompts"], data.batch["responses"]
    before = data.batch["attention_mask"][:, : prompts.shape[1]].bool()
    after = _response_part(data)
    return (
        [row[kept].tolist() for row, kept in zip(prompts, before, strict=True)],
        [row[kept].tolist() for row, kept in zip(responses, after, strict=True)],
    )
