"""The paper's experiments and related ones: what runs, and the table and figure made from its curves.

Settings come in; runs, a table and a figure come out. One file for each command that compares methods by training.
Start at :mod:`~benchmarks.experiments.settings` and :mod:`~benchmarks.experiments.value_loss_variance`.
"""
