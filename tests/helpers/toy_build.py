"""The embedded task's models for every test that needs them, trained once a session (or kept in DENSE_RLHF_CACHE)."""

import os

import pytest

from benchmarks.tasks.toy_models import toy_models


@pytest.fixture(scope="session")
def toy_cache(tmp_path_factory):
    """The cache folder, with the models in it."""
    cache = os.environ.get("DENSE_RLHF_CACHE") or str(tmp_path_factory.getbasetemp() / "toy")
    toy_models(cache)
    return cache
