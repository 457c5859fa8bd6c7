"""Credit per token inside the trainers of other libraries: verl and SkyRL.

Token ids come in, one reward per token goes out. Start at :mod:`~benchmarks.bridges.verl_rewards`, whose classes verl
finds through :mod:`~benchmarks.bridges.for_verl`; :mod:`~benchmarks.bridges.skyrl_rewards` is for SkyRL.
"""
