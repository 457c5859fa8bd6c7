"""Turn finished numbers into reports: statistics, tables, figures, heat maps.

Arrays (seed, step) come in; files and a one-sentence verdict come out. Nothing is run here.
Start at :mod:`~benchmarks.reporting.comparison_report`.
"""
