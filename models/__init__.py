"""Language models as policies and as reward models: ``load_policy`` and ``load_reward_model`` are the ways in.

The names exported here are public; everything else is private to its room.
"""

from lazy_loader import attach_stub

# What is public stands in __init__.pyi; each name is imported when it is first used.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
