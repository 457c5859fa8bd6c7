"""Runs: every arm with every seed on a task, several at a time, none repeated.

Tasks and arms come in; run folders and their curves come out.
Start at :mod:`~benchmarks.runs.settings` and :mod:`~benchmarks.runs.comparison`.
"""
