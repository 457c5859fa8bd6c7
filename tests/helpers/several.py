"""Several processes that train together, forked from the one that tests: no start-up, and the same checks are on."""

import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def in_processes(count: int, work: Callable[[], Any], timeout: float = 120) -> list[Any]:
    """What ``work`` returns in each of ``count`` processes that a launcher would have started, by rank; for an error,
    the error."""
    with TemporaryDirectory() as folder:
        where = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        children = [_forked({**where, "RANK": str(rank)}, work, Path(folder) / str(rank)) for rank in range(count)]
        _wait(children, time.monotonic() + timeout)
        return [_answer(Path(folder) / str(rank)) for rank in range(count)]


def _forked(environment: dict[str, str], work: Callable[[], Any], answer: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(environment)
        try:
            found: Any = work()
            if dist.is_initialized():
                dist.barrier()
        except BaseException as error:
            traceback.print_exc()
            found = error
        try:
            content = pickle.dumps(found)
            pickle.loads(content)
        except Exception:
            content = pickle.dumps(RuntimeError(repr(found)))
        answer.write_bytes(content)
    finally:
        os._exit(0)


def _wait(children: list[int], until: float) -> None:
    left = list(children)
    while left and time.monotonic() < until:
        left = [child for child in left if os.waitpid(child, os.WNOHANG) == (0, 0)]
        time.sleep(0.01)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _answer(file: Path) -> Any:
    return pickle.loads(file.read_bytes()) if file.exists() else TimeoutError("killed, or no answer")
