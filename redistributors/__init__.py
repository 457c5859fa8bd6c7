"""Methods of credit assignment: each spreads a response's score over its tokens, one file per method.

A rollout comes in, token scores (batch, response) come out; no method holds a model. Start at
:mod:`~redistributors.sparse` and :mod:`~redistributors.reward_attention`. :mod:`~redistributors.parts` has the building
blocks, ``check`` tests a method of your own, and ``compare_on`` puts one rollout through several methods.
"""

from lazy_loader import attach_stub

# What is public stands in __init__.pyi; each name is imported when it is first used.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
