"""Which of two responses is better: sample responses, ask judges, count verdicts.

Checkpoints and prompts come in; win rates come out.
Start at :mod:`~benchmarks.judging.pairwise_comparison`.
"""
