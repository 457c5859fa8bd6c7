"""Rewards that are not models: callables on texts or token ids, scorers of tokens and spans, aggregates of several.

Sequences come in; scores, and rewards per token, come out.
Start at :mod:`~rlhf_core.scorers.callables`; how a function is called stands in :mod:`~rlhf_core.scorers.signatures`.
"""
