"""Credit studied without training: frozen rollouts, faithfulness, gradients, an oracle.

A policy that stands still comes in; what each method says of its responses comes out.
Start at :mod:`~benchmarks.credit.frozen_credit`.
"""
