"""Rewards that are no model: callables on texts or token ids, scorers of tokens and spans, aggregates of several.

Sequences come in; scores, and what was earned where, come out.
Start at :mod:`~rlhf_core.scorers.callables`; how a function is called stands in :mod:`~rlhf_core.scorers.signatures`.
"""
