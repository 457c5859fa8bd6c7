"""Study credit without training: frozen rollouts, faithfulness, gradients, an oracle.

A frozen policy comes in; the credit of each method for its responses comes out.
Start at :mod:`~benchmarks.credit.frozen_credit`.
"""
