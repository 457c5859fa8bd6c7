"""Many runs on a Ray cluster, as many at a time as it has room for: what ``worker_pool`` does on one machine.

All nodes must see the same folders, because runs write there, and progress and results are read from there. A run whose
node dies is begun again elsewhere, from its newest checkpoint.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.runs.progress import LOOK_SECONDS, Progress
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import Run, execute
from benchmarks.runs.worker_pool import Executor, failure, interrupted, say_asked_to_stop, terminated_like_interrupted
from rlhf_core.run.freed_memory import keep_freed_memory

RETRIES = 3
"""How often a run is begun again whose node or process died."""
POLL_SECONDS = 1.0
"""Between two looks of a run at whether it is to stop."""


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Does runs on the Ray cluster at ``address``, or on a local one of ``cpus`` CPUs where that is None. Each run
    takes one CPU and ``gpus`` GPUs, of which a share may be 0.5.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
        ValueError: no node has the GPUs that a run takes.
    """

    address: str | None
    cpus: int
    gpus: float

    def __call__(self, due: Sequence[Run], progress: Progress) -> None:
        """Do the runs that are ``due``; raises as :func:`benchmarks.runs.worker_pool.run_all` does."""
        ray, started = _ray(), False
        if not ray.is_initialized():
            _connect(ray, self.address, self.cpus)
            started = True
        try:
            _require_gpus(ray, self.gpus)
            _do(ray, list(due), progress, _stop_of_the_driver(ray), self.gpus)
        finally:
            if started:
                ray.shutdown()


def chosen_executor(settings: ComparisonSettings) -> Executor | None:
    """What the settings name beside the processes of this machine; None for those."""
    if settings.executor == "processes":
        return None
    return RayCluster(address=settings.ray_address, cpus=max(1, settings.processes), gpus=settings.gpus_per_run)


def _ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by default, and warns of
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--executor ray needs Ray: pip install 'dense-rlhf[cluster]'") from error
    return ray


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    address = address or os.environ.get("RAY_ADDRESS")
    new = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    ray.init(address=address, log_to_driver=False, logging_level="warning", **new)


def _require_gpus(ray: Any, gpus: float) -> None:
    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if gpus > most:
        raise ValueError(f"--gpus_per_run is {gpus}, and no node of the Ray cluster has more than {most:g} GPUs")


def _do(ray: Any, due: list[Run], progress: Progress, stop: Any, gpus: float) -> None:
    """Raises RunFailed for the first run that failed, once those in progress have ended, and Interrupted."""
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_run_in_worker)
    waiting, run_of = list(due), dict[Any, Run]()
    try:
        with terminated_like_interrupted():
            while waiting or run_of:
                while waiting and len(run_of) < _room(ray, gpus):
                    run = waiting.pop(0)
                    run_of[task.remote(ray.cloudpickle.dumps(run), stop, os.getcwd(), sys.path)] = run
                done, _ = ray.wait(list(run_of), timeout=LOOK_SECONDS)
                for reference in done:
                    _collect(ray, reference, run_of.pop(reference), progress)
                progress.look()
    except KeyboardInterrupt as asked:
        say_asked_to_stop(asked)
        ray.get(stop.ask.remote())
        raise interrupted(due) from None
    finally:
        if run_of:
            ray.wait(list(run_of), num_returns=len(run_of))


def _collect(ray: Any, reference: Any, run: Run, progress: Progress) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise failure(run, error.cause or error) from error
    except ray.exceptions.RayError as error:
        raise failure(run, RuntimeError(f"its process died {RETRIES + 1} times")) from error
    progress.finished(run)


def _room(ray: Any, gpus: float) -> int:
    """How many runs the nodes that are alive can do at once; one at least, so that a cluster that grows is asked."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        int(min(node.get("CPU", 0), node.get("GPU", 0) / gpus if gpus else node.get("CPU", 0))) for node in found
    )
    return max(1, room)


def _stop_of_the_driver(ray: Any) -> Any:
    """An actor on the driver's own node: one elsewhere could die before the runs that ask it."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        node_id=ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Stop).remote()


class _Stop:
    """Where all runs look whether they are to stop; an actor of the cluster."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Ask all runs to stop after their step."""
        self._asked = True

    def asked(self) -> bool:
        """Whether they were."""
        return self._asked


def _run_in_worker(pickled: bytes, stop: Any, folder: str, path: list[str]) -> None:
    """One run, with one thread, in a worker of the cluster; ends after its step, saved, once the driver asks to."""
    ray = _ray()
    sys.path[:] = list(dict.fromkeys([*sys.path, *path]))  # a task or method of the user's own stands there
    run: Run = ray.cloudpickle.loads(pickled)
    _enter(folder)
    torch.set_num_threads(1)
    keep_freed_memory()
    quiet_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    signal.signal(signal.SIGTERM, _give_up)
    asked, done = threading.Event(), threading.Event()
    threading.Thread(target=_stop_when_asked, args=(ray, stop, asked, done), daemon=True).start()
    try:
        execute(run)
    except SystemExit:
        if not asked.is_set():  # the node is shutting down: Ray begins the run again on another
            raise
    finally:
        done.set()


def _enter(folder: str) -> None:
    """Paths of the settings are relative to where the command was started."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise OSError(
            f"a node of the cluster does not see the folder {folder}, in which the command was started ({error}); "
            "start it in a folder that all nodes share"
        ) from error


def _give_up(*_: object) -> None:
    """Answer SIGTERM where ``fit`` does not: give up the run that is being loaded or measured."""
    raise SystemExit(143)


def _stop_when_asked(ray: Any, stop: Any, asked: threading.Event, done: threading.Event) -> None:
    """Look whether the driver asks to stop, and then tell ``fit`` as a signal would."""
    while not done.wait(POLL_SECONDS):
        try:
            if not ray.get(stop.asked.remote()):
                continue
        except ray.exceptions.RayError:  # the driver is gone, and Ray ends this process
            return
        asked.set()
        os.kill(os.getpid(), signal.SIGTERM)
        return
