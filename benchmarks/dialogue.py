"""Learning curves on the paper's task "dialogue" (figure 6, left)."""

from benchmarks.runs.learning_curve_script import learning_curve_script

SCRIPT = learning_curve_script("dialogue", "figure 6, left", task="dialogue")

if __name__ == "__main__":
    SCRIPT.main()
