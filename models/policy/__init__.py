"""The policy: a causal language model with a value head and a frozen reference.

Folders come in through ``load_policy``; what the engine's ``Policy`` Protocol asks for comes out.
Start at :mod:`~models.policy.causal_policy`.
"""
