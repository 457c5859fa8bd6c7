"""Ctrl-C ends a command with one line that says what is left to do."""

import subprocess
import sys

import pytest

from benchmarks.base.interruption import ctrl_c_held_from_children, stoppable


def test_ctrl_c_is_said_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended, stoppable("call again to go on"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nstopped; call again to go on\n"


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), stoppable("call again"):
        _ = 1 / 0


def test_ctrl_c_never_reaches_processes_that_were_started_while_it_was_held():
    blocked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"

    def child():
        return subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=True).stdout

    with ctrl_c_held_from_children():
        assert child() == "True\n"
    assert child() == "False\n"
