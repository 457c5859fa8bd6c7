"""Records of data sets: read from files or the hub and checked one by one; every rejected row is reported.

Files come in; reviews, demonstrations and comparisons come out.
Start at :mod:`~benchmarks.data.records`.
"""
