"""Learning curves of any task, as in the paper's figures 3 and 6 (left): reward per step ± standard deviation."""

from benchmarks.experiments.learning_curve_command import learning_curve_script

SCRIPT = learning_curve_script("learning_curves", "figures 3 and 6, left")

if __name__ == "__main__":
    SCRIPT.main()
