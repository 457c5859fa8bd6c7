"""Learning curves of any task, as in the paper's figures 3 and 6 (left): reward per step ± standard deviation."""

from benchmarks.runs.learning_curve_script import learning_curve_script

SCRIPT = learning_curve_script("learning_curves", "figures 3 and 6, left")

if __name__ == "__main__":
    SCRIPT.main()
