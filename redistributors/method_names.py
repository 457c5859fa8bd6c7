"""The names of the registry without its classes, so that a command line can be checked before torch is imported."""

METHOD_NAMES = (
    *("sparse", "uniform", "abc", "abc-d", "abc-d2", "prefix-difference", "gradient", "integrated-gradients"),
    *("leave-one-out", "shapley", "segment", "attention", "log-ratio", "potential-projection"),
    *("entropy", "information", "monte-carlo"),
)
"""In the registry's order; a test holds the two together."""
