"""From a folder or the hub to a checked network: safe files, adapters, 4-bit weights, the frozen reference.

A name comes in; a checked network without dropout comes out. All models are loaded through this room. Start at
:mod:`~models.weights.language_model`.
"""
