"""Reward models: classifiers, ensembles, their own prompt templates, other tokenizers; and the probe for experiments.

Folders come in through ``load_reward_model`` and ``load_process_reward_model``; objects with the engine's
``RewardModel`` Protocol come out.
Start at :mod:`~models.rewards.classifier_reward`.
"""
