"""Reward models: classifiers, ensembles, prompts of their own, other tokenizers; and the probe that asks them more.

Folders come in through ``load_reward_model`` and ``load_process_reward_model``; what the engine's ``RewardModel``
Protocol asks for comes out.
Start at :mod:`~models.rewards.classifier_reward`.
"""
