"""The tasks: their settings, models and prompts, embedded or prepared from data.

Data, a base model or a folder of prepared models come in; a policy, a reward model and prompts come out.
Start at :mod:`~benchmarks.tasks.definitions`; what ``benchmarks.prepare`` does stands in the modules named prepare.
"""
