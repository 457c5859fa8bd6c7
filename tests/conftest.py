"""Shape checks are on in every test: jaxtyping annotations are enforced by beartype."""

import gc
import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(["rlhf_core", "redistributors", "models", "benchmarks"], "typecheck.checker")

# Several test processes share few cores; threads waiting for each other are slower than one thread by far.
torch.set_num_threads(1)

DATA = Path(os.environ.get("DENSE_RLHF_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def pytest_collection_finish() -> None:
    """What the libraries leave in memory never becomes garbage: a collection, half a second long with it, skips it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def card():
    """The pretended card (tests/helpers/carded), with nothing counted yet and no limit."""
    from pretended_card import PretendedCard

    if PretendedCard.current is None:
        pytest.skip("counts operations, and limits memory, of a pretended card")
    PretendedCard.current.reset()
    yield PretendedCard.current
    PretendedCard.current.limit = None


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data to check with, where it is at hand."""
    if not DATA.is_dir():
        pytest.skip(f"no data folder at {DATA}; set DENSE_RLHF_DATA")
    return DATA
