"""Which of two responses is better: responses drawn, judges asked, verdicts counted.

Checkpoints and prompts come in; win rates come out.
Start at :mod:`~benchmarks.judging.pairwise_comparison`.
"""
