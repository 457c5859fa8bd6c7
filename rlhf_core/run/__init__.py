"""A run that survives interruptions: its loop, folder, checkpoints, identity and loggers.

The trainer stands above it and comes in as a Protocol; no stage of a step imports it.
Start at :mod:`~rlhf_core.run.fit`.
"""
