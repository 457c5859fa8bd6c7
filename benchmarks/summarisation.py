"""Learning curves on the paper's task "summarisation" (table 1)."""

from benchmarks.runs.learning_curve_script import learning_curve_script

SCRIPT = learning_curve_script("summarisation", "table 1", task="summarisation")

if __name__ == "__main__":
    SCRIPT.main()
