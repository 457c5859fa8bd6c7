"""Attention weights, read off the pass that a model makes anyway, and compared with the model's own.

A network and evidence requests come in; rows of weights on the response come out.
Start at :mod:`~models.attention.reader`.
"""
