"""Runs: arms under seeds on a task, many at a time, each finished once.

Tasks and arms come in; run folders and their curves come out.
Start at :mod:`~benchmarks.runs.settings` and :mod:`~benchmarks.runs.comparison`.
"""
