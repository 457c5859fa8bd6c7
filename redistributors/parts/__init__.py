"""Building blocks of methods: weights and attributions, requests for attention, features of the state.

A rollout's evidence comes in; credit over its tokens comes out. There are no methods here.
Start at :mod:`~redistributors.parts.credit`.
"""
