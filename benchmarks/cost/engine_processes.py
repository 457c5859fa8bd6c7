"""Engines in processes of their own, ours and the published stack's, so that neither measures the other's memory.

A line of JSON in is a request, a line out is its answer.
"""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, Any, cast

from benchmarks.cost.timed_step import Case
from models.tiny import EOS_ID

WORKER = Path(__file__).parents[1] / "published_stack" / "worker.py"
INSTALL = WORKER.with_name("install.sh")
VARIANTS: Mapping[str, Mapping[str, bool]] = {
    "as run": {"fused": False, "keep_freed_memory": False},
    "fused Adam": {"fused": True, "keep_freed_memory": False},
    "fused Adam, keeps freed memory": {"fused": True, "keep_freed_memory": True},
}
"""Of the published stack: as it was run, and with what any user could have given it."""
Ask = Callable[..., dict[str, Any]]


def require_published_python(against: str, python: str) -> None:
    """Raises ValueError, with the way out, where a stack is asked for that has no interpreter."""
    if against != "nothing" and not Path(python).is_file():
        raise ValueError(
            f"--against {against} needs its own environment: run {INSTALL} DIR, "
            f"then give --published_python DIR/bin/python (got {python!r})"
        )


@contextmanager
def process(command: Sequence[str], case: Mapping[str, Any]) -> Iterator[Ask]:
    """A worker that builds ``case``, its last argument, and answers lines of JSON; what it prints besides is shown only
    if it fails.

    Raises:
        RuntimeError: it ended instead of answering, with the last of what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with (
        tempfile.TemporaryFile("w+") as said,
        Popen([*command, json.dumps(case)], stdin=PIPE, stdout=PIPE, stderr=said, text=True, env=environment) as worker,
    ):
        requests, answers = cast(IO[str], worker.stdin), cast(IO[str], worker.stdout)

        def ask(**request: Any) -> dict[str, Any]:
            line = ""
            with suppress(BrokenPipeError):  # it has ended, as the empty line says
                print(json.dumps(request), file=requests, flush=True)
                line = answers.readline()
            if not line:
                said.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended with {worker.wait()}:\n{said.read()[-2000:]}")
            found: dict[str, Any] = json.loads(line)
            return found

        try:
            yield ask
        finally:
            worker.kill()
            with suppress(BrokenPipeError):  # of what was not read
                requests.close()


def ours(case: Case) -> AbstractContextManager[Ask]:
    """Our engine on a case."""
    return process([sys.executable, "-m", "benchmarks.cost.timed_step"], dataclasses.asdict(case))


def published(case: Case, folders: Mapping[str, str], variant: str, *, python: str) -> AbstractContextManager[Ask]:
    """The published stack on the weights in ``folders``, policy and reward model."""
    sizes = {"rollout_batch_size": case.prompts, "minibatch_size": case.minibatch_size, "eos_id": EOS_ID}
    return process([python, str(WORKER)], {**folders, **sizes, **VARIANTS[variant]})
