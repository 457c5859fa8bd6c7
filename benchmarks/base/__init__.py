"""What every command stands on: its command line, the record of a run, folders that are never overwritten unasked.

It imports no other room.
Start at :mod:`~benchmarks.base.run_folder`.
"""
