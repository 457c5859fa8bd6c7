"""Fixtures of every test of tasks."""

from prepared_reviews import prepared  # noqa: F401
from table_task import in_threads, undrawn  # noqa: F401
from toy_build import toy_cache  # noqa: F401
