"""What methods are made of: weights and attributions, requests for attention, features of the state.

A rollout's evidence comes in; credit over its tokens comes out. No method stands here.
Start at :mod:`~redistributors.parts.credit`.
"""
