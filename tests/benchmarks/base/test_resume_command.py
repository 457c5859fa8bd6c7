"""The command that goes on is the one that was typed, but deletes nothing."""

import sys

from benchmarks.base.resume_command import resume_command


def test_what_was_typed_goes_on_and_deletes_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/dense-rlhf", "compare", "--out", "my runs", "--overwrite", "true"])
    assert resume_command(overwrite=False) == "dense-rlhf compare --out 'my runs' --overwrite true"
    assert resume_command(overwrite=True) == "dense-rlhf compare --out 'my runs' --overwrite true --overwrite false"
