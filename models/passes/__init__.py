"""One pass of a network: lay out rows, run them, sample from them, and compute numbers from them.

A loaded network and sequences come in; hidden states, log-probabilities and tokens come out.
Start at :mod:`~models.passes.forward`.
"""
