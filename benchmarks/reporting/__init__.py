"""From finished numbers to what is read: statistics, tables, figures, heat maps.

Arrays (seed, step) come in; files and one honest sentence come out. It runs nothing.
Start at :mod:`~benchmarks.reporting.comparison_report`.
"""
