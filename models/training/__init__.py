"""Supervised fine-tuning and reward models, whole or through adapters, on transformers' Trainer.

Token ids come in; folders that ``load_policy`` and ``load_reward_model`` read come out.
Start at :mod:`~models.training.supervised`.
"""
