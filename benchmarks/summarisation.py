"""Learning curves on the paper's task "summarisation" (table 1)."""

from benchmarks.experiments.learning_curve_command import learning_curve_script

SCRIPT = learning_curve_script("summarisation", "table 1", task="summarisation")

if __name__ == "__main__":
    SCRIPT.main()
