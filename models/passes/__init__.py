"""One pass of a network: how rows are laid out, run, sampled from, and turned into numbers.

A loaded network and sequences come in; hidden states, log-probabilities and tokens come out.
Start at :mod:`~models.passes.forward`.
"""
