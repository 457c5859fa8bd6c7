"""Records of data sets: read from files or the hub, checked one by one, refused aloud.

Files come in; reviews, demonstrations and comparisons come out.
Start at :mod:`~benchmarks.data.records`.
"""
