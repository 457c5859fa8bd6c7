"""The base of every command: its command line, the record of a run, folders that are never overwritten by accident.

It imports no other room.
Start at :mod:`~benchmarks.base.run_folder`.
"""
