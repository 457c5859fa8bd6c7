"""What verl's YAML names. Importing this registers the estimator ``rloo_to_go`` with verl, which must be installed."""

from verl.trainer.ppo.core_algos import register_adv_est

from benchmarks.bridges.group_estimator import NAME, rloo_to_go
from benchmarks.bridges.verl_rewards import TokenRewardManager, credited_rewards

__all__ = ["TokenRewardManager", "credited_rewards"]

register_adv_est(NAME)(rloo_to_go)
