"""Learning curves on the paper's task "summarisation" (table 1); see :mod:`benchmarks.learning_curves`."""

from benchmarks.learning_curves import script

SCRIPT = script("summarisation", "table 1", task="summarisation", redistributors="sparse,uniform,abc")

if __name__ == "__main__":
    SCRIPT.main()
