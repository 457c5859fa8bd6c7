"""Engines in processes of their own, ours and the published stack's, so that neither measures the other's memory.

A line of JSON in is a request, a line out is its answer. Nothing heavy is imported here.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from threading import TIMEOUT_MAX, Timer
from typing import IO, Any, cast

from benchmarks.cost.cases import Case

WORKER = Path(__file__).parents[1] / "published_stack" / "worker.py"
INSTALL = WORKER.with_name("install.sh")
VARIANTS: Mapping[str, Mapping[str, bool]] = {
    "as run": {"fused": False, "keep_freed_memory": False, "batched": False},
    "fused Adam": {"fused": True, "keep_freed_memory": False, "batched": False},
    "fused Adam, keeps freed memory": {"fused": True, "keep_freed_memory": True, "batched": False},
    "batched generate, fused Adam, keeps freed memory": {"fused": True, "keep_freed_memory": True, "batched": True},
}
"""Of the published stack: as it was run, and with what any user could have given it."""
Ask = Callable[..., dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class PublishedStack:
    """The stack that the paper was published on, in an environment of its own.

    Raises:
        ValueError: at construction, where there is no such interpreter; says how to make the environment.
    """

    name: str
    python: str
    variants: tuple[str, ...] = ("as run",)

    def __post_init__(self) -> None:
        if not Path(self.python).is_file():
            raise ValueError(
                f"--against {self.name} needs its own environment: run {INSTALL} DIR, "
                f"then give --published_python DIR/bin/python (got {self.python!r})"
            )


def require_device(device: str) -> None:
    """Raise ValueError where ``device`` is not there, before an engine is started on it."""
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"--device {device} needs a CUDA device, and there is none: leave --device cpu")


@contextmanager
def process(command: Sequence[str], case: Mapping[str, Any], seconds: float = TIMEOUT_MAX) -> Iterator[Ask]:
    """Start a worker that builds ``case``, its last argument, and answers lines of JSON. What else it prints is shown
    only if it fails. It is ended after ``seconds``.

    Raises:
        RuntimeError: it ended, or was ended, instead of answering; the message ends with the last it printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with (
        tempfile.TemporaryFile("w+") as said,
        Popen([*command, json.dumps(case)], stdin=PIPE, stdout=PIPE, stderr=said, text=True, env=environment) as worker,
    ):
        requests, answers = cast(IO[str], worker.stdin), cast(IO[str], worker.stdout)
        alarm = Timer(seconds, worker.kill)
        alarm.daemon = True
        alarm.start()

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
            alarm.cancel()
            worker.kill()
            with suppress(BrokenPipeError):  # of what was not read
                requests.close()


def ours(case: Case, seconds: float = TIMEOUT_MAX) -> AbstractContextManager[Ask]:
    """Our engine on a case, for ``seconds`` at most."""
    return process([sys.executable, "-m", "benchmarks.cost.timed_step"], asdict(case), seconds)


def published(
    stack: PublishedStack, variant: str, case: Case, models: Mapping[str, object], seconds: float = TIMEOUT_MAX
) -> AbstractContextManager[Ask]:
    """The published stack on a case, with the ``models`` that :func:`benchmarks.cost.timed_step.saved` saved, for
    ``seconds`` at most."""
    sizes = {"rollout_batch_size": case.prompts, "minibatch_size": case.minibatch_size, "device": case.device}
    return process([stack.python, str(WORKER)], {**models, **sizes, **VARIANTS[variant]}, seconds)
