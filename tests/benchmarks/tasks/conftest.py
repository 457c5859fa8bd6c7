"""Fixtures of every test of tasks."""

from prepared_reviews import prepared  # noqa: F401
from toy_build import toy_cache  # noqa: F401
