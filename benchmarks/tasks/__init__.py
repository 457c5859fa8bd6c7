"""The tasks: their settings, models and prompts, embedded or prepared from data.

A command line comes in; a policy, a reward model and prompts come out.
Start at :mod:`~benchmarks.tasks.definitions`.
"""
