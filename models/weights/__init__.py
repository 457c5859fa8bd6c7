"""From a folder or the hub to a checked network: safe files, adapters, 4-bit weights, the frozen reference.

A name comes in; a network without dropout that computes what it was trained to comes out. Every way in is here.
Start at :mod:`~models.weights.language_model`.
"""
