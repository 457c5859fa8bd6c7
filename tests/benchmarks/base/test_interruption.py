"""Ctrl-C ends a command with one line that says what is left to do."""

import pytest

from benchmarks.base.interruption import stoppable


def test_ctrl_c_is_said_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended, stoppable("call again to go on"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nstopped; call again to go on\n"


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), stoppable("call again"):
        _ = 1 / 0
