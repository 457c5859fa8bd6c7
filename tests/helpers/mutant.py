"""Runs tests in a folder of broken code, a process each, without importing the heavy libraries anew for every one.

``python tests/helpers/mutant.py FOLDER`` reads a test's name from each line of its input and answers with a line: its
exit code and the file that holds what it printed. Libraries are imported once; the code under test never is, in this
process.
"""

import os
import sys
import tempfile
import threading

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "scipy.stats",
    "matplotlib.figure",
    "jsonargparse",
    "datasets",
    "hypothesis",
)


def answer(folder: str, test: str) -> tuple[int, str]:
    """Run one test in a child that sees ``folder`` first; its exit code, and where its output is."""
    descriptor, output = tempfile.mkstemp(text=True)
    child = os.fork()
    if child == 0:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(folder)
        sys.path.insert(0, folder)
        import pytest
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # the parent's is between processes: one that died may hold it

        already = "ignore::pytest.PytestAssertRewriteWarning"  # of plugins that the libraries imported first
        code = pytest.main(["-x", "-q", "-m", "", "-p", "no:cacheprovider", "-W", already, test])
        sys.stdout.flush()
        os._exit(int(code))
    os.close(descriptor)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), output


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.path = [path for path in sys.path if not path or os.path.basename(path) != "helpers"]
    for library in LIBRARIES:
        __import__(library)
    for line in sys.stdin:
        print(*answer(sys.argv[1], line.strip()), flush=True)
