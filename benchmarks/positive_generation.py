"""Learning curves on the paper's task "positive_generation" (figure 3); see :mod:`benchmarks.learning_curves`."""

from benchmarks.learning_curves import script

SCRIPT = script(
    "positive_generation", "figure 3", task="positive_generation", redistributors="sparse,uniform,abc,abc-d,abc-d2"
)

if __name__ == "__main__":
    SCRIPT.main()
