"""Fixtures of every test of runs."""

from table_task import in_threads, undrawn  # noqa: F401
