"""Learning curves on the paper's task "dialogue" (figure 6, left); see :mod:`benchmarks.learning_curves`."""

from benchmarks.learning_curves import script

SCRIPT = script("dialogue", "figure 6, left", task="dialogue", redistributors="sparse,uniform,abc")

if __name__ == "__main__":
    SCRIPT.main()
