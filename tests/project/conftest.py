"""Fixtures of the tests of the project as a whole."""

from toy_build import toy_cache  # noqa: F401
