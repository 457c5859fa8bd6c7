"""Worlds small enough to enumerate, where what a method declares can be checked exactly.

A redistributor comes in; which claims hold comes out.
Start at :mod:`~benchmarks.worlds.tabular`.
"""
