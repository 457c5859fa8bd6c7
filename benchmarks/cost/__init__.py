"""Cost: memory predicted and measured, time against the machine's floor or a named alternative.

Model shapes and settings come in; bytes, operations, seconds and ratios come out. What a command imports first, and so
holds nothing heavy: ``memory_settings``, ``cases``, ``engine_processes``. Start at
:mod:`~benchmarks.cost.memory_prediction` for memory, at :mod:`~benchmarks.cost.timed_step` for time.
"""
