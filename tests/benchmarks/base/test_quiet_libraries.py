"""Commands silence the model libraries; a script that calls our functions keeps what it had."""

import logging

import pytest
from transformers.utils import logging as transformers_logging

from benchmarks.base.quiet_libraries import BITSANDBYTES, quietly


def state():
    return transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled(), BITSANDBYTES.level


@quietly()
def failing():
    assert state() == (logging.ERROR, False, logging.ERROR)
    raise ValueError("no such model")


@pytest.mark.parametrize("bars", [True, False])
def test_loggers_and_bars_are_put_back_even_after_an_error(bars):
    before = state()
    try:
        (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
        transformers_logging.set_verbosity_info()
        BITSANDBYTES.setLevel(logging.DEBUG)
        own = state()
        with pytest.raises(ValueError, match="no such model"):
            failing()
        assert state() == own == (logging.INFO, bars, logging.DEBUG)
    finally:
        transformers_logging.set_verbosity(before[0])
        (transformers_logging.enable_progress_bar if before[1] else transformers_logging.disable_progress_bar)()
        BITSANDBYTES.setLevel(before[2])
