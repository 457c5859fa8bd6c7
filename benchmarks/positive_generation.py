"""Learning curves on the paper's task "positive_generation" (figure 3)."""

from benchmarks.experiments.learning_curve_command import learning_curve_script

SCRIPT = learning_curve_script(
    "positive_generation", "figure 3", task="positive_generation", redistributors="sparse,uniform,abc,abc-d,abc-d2"
)

if __name__ == "__main__":
    SCRIPT.main()
