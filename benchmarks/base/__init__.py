"""What every command stands on: its command line, the record of a run, folders that are complete or absent.

It imports no other room.
Start at :mod:`~benchmarks.base.cli`.
"""
