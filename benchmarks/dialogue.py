"""Learning curves on the paper's task "dialogue" (figure 6, left)."""

from benchmarks.experiments.learning_curve_command import learning_curve_script

SCRIPT = learning_curve_script("dialogue", "figure 6, left", task="dialogue")

if __name__ == "__main__":
    SCRIPT.main()
