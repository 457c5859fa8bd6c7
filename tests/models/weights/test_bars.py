"""Progress bars of the libraries are for a terminal."""

import sys

import pytest
from transformers.utils import logging

from models import load_policy
from models.tiny import save_tiny


@pytest.fixture
def bars():
    logging.enable_progress_bar()
    yield
    logging.disable_progress_bar()


@pytest.mark.parametrize("watched", [False, True])
def test_loading_draws_a_bar_on_a_terminal_only(tmp_path, monkeypatch, capsys, bars, watched):
    folder = save_tiny(tmp_path, "llama", hidden_size=16, n_layers=1)
    capsys.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched, raising=False)
    load_policy(folder)
    assert ("Loading weights" in capsys.readouterr().err) == watched
    assert logging.is_progress_bar_enabled()
