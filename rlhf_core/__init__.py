"""A PPO engine for language models in which credit assignment is a plug-in."""

from lazy_loader import attach_stub

__version__ = "0.1.0"

# What is public stands in __init__.pyi; each name is imported when it is first used.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
