"""Worlds small enough to enumerate, in which a method's declarations can be checked exactly.

A redistributor comes in; which claims hold comes out.
Start at :mod:`~benchmarks.worlds.tabular`.
"""
