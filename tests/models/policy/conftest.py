"""Fixtures of every test of policies."""

from policies import family, folders, policy  # noqa: F401
