"""The one place where several processes meet: ``torchrun`` and ``accelerate launch`` start them, and they train one
model.

Each process (its number is its rank) samples and measures its own share of the prompts. What was measured is gathered,
so that every process holds the whole rollout, and computes credit, advantages and figures from it as one process would.
In the update each takes its share of every minibatch, and the gradients are added up once per optimizer step. Losses
are divided by the tokens of the whole minibatch already, so nothing is averaged.

Numbers, decisions and errors travel over a group that reads the CPU (gloo); gradients of a card over NCCL. In a single
process nothing here does anything.
"""

import atexit
import copy
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_core.files.differences import differences

COUNTS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers say how many processes they started: torchrun and accelerate, srun, and the kinds of mpirun."""
ADDRESS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and accelerate tell each process, so that it finds the others."""
TIMEOUT = "DENSE_RLHF_TIMEOUT"
"""How many seconds a process waits for the others before it takes them for lost; without it, torch's 30 minutes."""
BUCKET = 2**25
"""Gradients that are added up in one message, in numbers: the copy takes this much memory, not that of all."""
Result = TypeVar("Result")
_groups: dict[Any, Any] = {}


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or does not answer."""


def join() -> int:
    """Meet the other processes that a launcher started, unless a process group exists; how many there are.

    Raises:
        ValueError: a launcher started several processes and does not say where they meet; DENSE_RLHF_TIMEOUT is set,
            and not to a number of seconds above 0.
    """
    if count() == 1:
        several = _started()
        if not several:
            return 1
        if _met() or any(not os.environ.get(name) for name in ADDRESS):
            raise ValueError(
                f"this is one of several processes ({', '.join(several)}), and nothing says how they find each other "
                f"({', '.join(ADDRESS)}): each would train a model of its own. Start them with torchrun or accelerate "
                "launch, or call torch.distributed.init_process_group before the trainer is made. For runs that have "
                "nothing to do with each other, unset these variables in each and give each its folder"
            )
        take_own_card()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_timeout())
        atexit.register(_leave)
    _group()
    return count()


def require_one_process() -> None:
    """Refuse to run as one of several processes: each would do the same work and write to the same files.

    Raises:
        ValueError: a launcher started several processes, or a process group of several exists.
    """
    several = _started() + ([f"a process group of {count()}"] if count() > 1 else [])
    if several:
        raise ValueError(
            f"this is one of several processes ({', '.join(several)}), and only PPOTrainer trains on several. Start "
            "one process, without torchrun, accelerate launch, srun or mpirun; for runs that have nothing to do with "
            "each other, unset these variables in each and give each its folder"
        )


def take_own_card() -> None:
    """Make "cuda" mean the card of this process, the LOCAL_RANK-th, where several processes share a machine's cards."""
    local = os.environ.get("LOCAL_RANK", "")
    if _started() and local.isdecimal() and int(local) < torch.cuda.device_count():
        torch.cuda.set_device(int(local))


def count() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if _met() else 1


def rank() -> int:
    """The number of this process among them, from 0 on."""
    return dist.get_rank() if _met() else 0


def writes() -> bool:
    """Whether this process writes files: the first one does. Known from the launcher before the processes have met."""
    if _met() or not _started():
        return rank() == 0
    return os.environ.get("RANK", "0") == "0"


def own_share(items: int) -> range:
    """Places of this process's share of ``items``, one after the other; empty where there are fewer than processes."""
    return range(items * rank() // count(), items * (rank() + 1) // count())


def gathered(run: Callable[[], Result]) -> list[Result]:
    """What ``run`` returns in every process, by rank. It must not meet other processes itself, and tensors that it
    returns lie on the CPU.

    Raises:
        Exception: that of the first process in which ``run`` failed, in all of them; its message names the rank.
        ProcessLost: another process has ended.
    """
    if count() == 1:
        return [run()]
    result, failed = None, None
    try:
        result = run()
    except Exception as error:
        failed = error
    return cast(list[Result], _exchanged(result, failed))


@contextmanager
def agreement() -> Iterator[None]:
    """What fails inside in one process fails in all, with the same error; raises as :func:`gathered`."""
    failed = None
    try:
        yield
    except Exception as error:
        if count() == 1 or isinstance(error, ProcessLost):
            raise
        failed = error
    if count() > 1:
        _exchanged(None, failed)


def by_first(run: Callable[[], Result]) -> Result:
    """What ``run`` returns in the first process, the only one that calls it; raises as :func:`gathered`."""
    return gathered(run if rank() == 0 else lambda: cast(Result, None))[0]


def require_same(what: str, value: object) -> None:
    """Refuse to go on where the processes hold different values of the same thing, named ``what``.

    Raises:
        ValueError: names the first rank that differs, and where both are mappings, in what.
    """
    every = gathered(lambda: value)
    other = next((place for place, one in enumerate(every) if one != every[0]), None)
    if other is None:
        return
    first, found = every[0], every[other]
    both = isinstance(first, Mapping) and isinstance(found, Mapping)
    said = f": {'; '.join(differences(first, found))}" if both else ""  # type: ignore[arg-type]
    raise ValueError(
        f"rank {other} of {count()} processes has other {what} than rank 0{said}. Every process runs the same script "
        "and gives the whole list of prompts; the engine divides it"
    )


def require_own_cards(device: torch.device) -> None:
    """Refuse processes that hold their policies on one card, or some on a card and some on the CPU.

    Raises:
        ValueError: names the ranks.
    """
    own = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else "CPU"
    homes = gathered(lambda: own)
    for place, home in enumerate(homes):
        before = homes.index(home)
        if home != "CPU" and before != place:
            raise ValueError(
                f"ranks {before} and {place} hold their policies on the same card ({home}); load models with "
                'device="cuda", which is the card of each process'
            )
        if (home == "CPU") != (homes[0] == "CPU"):
            raise ValueError(f"rank 0 holds its policy on {homes[0]}, rank {place} on {home}; give all a card, or none")


@torch.no_grad()
def share_weights(parameters: Iterable[Tensor]) -> None:
    """Give every process the weights of the first, in place; raises ProcessLost."""
    for parameter in parameters if count() > 1 else ():
        own, group = _carried(parameter.detach())
        with _told_when_lost():
            dist.broadcast(own, src=0, group=group)
        parameter.copy_(own)


def gathered_with_gradients(run: Callable[[], Result], parameters: Iterable[torch.nn.Parameter]) -> list[Result]:
    """As :func:`gathered`; and each gradient that ``run`` left is replaced by its sum over all processes. A process
    without one counts as zeros, and a parameter that no process reached has none. Every process gets the same bits."""
    if count() == 1:
        return [run()]
    every = list(parameters)
    answers = gathered(lambda: (run(), [parameter.grad is not None for parameter in every]))
    _sum_gradients(every, [reached for _, reached in answers])
    return [result for result, _ in answers]


@torch.no_grad()
def _sum_gradients(every: list[torch.nn.Parameter], reached: list[list[bool]]) -> None:
    """``reached``: by rank, which parameters have a gradient there."""
    learned = [parameter for parameter, *known in zip(every, *reached, strict=True) if any(known)]
    for parameter in learned:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([cast(Tensor, parameter.grad) for parameter in learned]):
        flat, group = _carried(torch.cat([gradient.reshape(-1) for gradient in bucket]))
        with _told_when_lost():
            dist.all_reduce(flat, group=group)
        for gradient, part in zip(bucket, torch.split(flat, [gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one kind, ``BUCKET`` numbers at most unless one alone has more."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(one.numel() for one in bucket) + gradient.numel() > BUCKET
        if bucket and (full or (bucket[0].dtype, bucket[0].device) != (gradient.dtype, gradient.device)):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _exchanged(result: object, failed: Exception | None) -> list[Any]:
    """Every process's result; raises the first one's error in all."""
    if isinstance(failed, ProcessLost):
        raise failed
    answers: list[Any] = [None] * count()
    with _told_when_lost():
        dist.all_gather_object(answers, (result, failed and _named(failed)), group=_group())
    errors = [error for _, error in answers if error is not None]
    if not errors:
        return [result for result, _ in answers]
    first = next(place for place, (_, error) in enumerate(answers) if error is not None)
    if failed is not None and first == rank():
        raise failed
    raise errors[0] from failed


def _named(error: Exception) -> Exception:
    """The error with its rank in the message, as it can be sent to other processes."""
    where = f"rank {rank()} of {count()}"
    plain = RuntimeError(f"{where}: {type(error).__name__}: {error}")
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{where}: {error.args[0]}",)
    else:
        error.add_note(f"({where})")
    try:
        copy.copy(error)
    except Exception:  # built from other arguments than it keeps
        return plain
    held = (*error.args, *vars(error).values())
    known = all(isinstance(value, str | int | float | list | None) for value in held)
    return error if known and "<locals>" not in type(error).__qualname__ else plain


def _carried(tensor: Tensor) -> tuple[Tensor, Any]:
    """The tensor where a group reads it, and that group: a card's stays there where NCCL is at hand."""
    if tensor.device.type == "cuda" and "nccl" in dist.get_backend_config():
        return tensor.contiguous(), dist.group.WORLD
    return tensor.cpu().contiguous(), _group()


def _group() -> Any:
    """The group that reads the CPU: the one of all processes, or, where that is NCCL's alone, another beside it."""
    world = dist.group.WORLD
    if world is None or "gloo" in dist.get_backend_config():
        return world
    if world not in _groups:
        _groups.clear()
        _groups[world] = dist.new_group(backend="gloo", timeout=_timeout())
    return _groups[world]


def _timeout() -> timedelta | None:
    """What the environment sets; None for torch's default."""
    said = os.environ.get(TIMEOUT)
    if not said:
        return None
    with suppress(ValueError):
        if 0 < float(said) < 1e9:
            return timedelta(seconds=float(said))
    raise ValueError(f"{TIMEOUT} must be a number of seconds above 0, got {said!r}; unset it for torch's 30 minutes")


@contextmanager
def _told_when_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"rank {rank()} of {count()}: another process of this run has ended, or does not answer, so this one ends "
            "too; the first error above says why. Go on with fit(..., resume=True), with any number of processes "
            f"({str(error).splitlines()[0]})"
        ) from error


def _met() -> bool:
    return dist.is_available() and dist.is_initialized()


def _started() -> list[str]:
    """How many processes launchers started, in their words; empty for one."""
    counts = {name: os.environ.get(name, "") for name in COUNTS}
    return [f"{name}={value}" for name, value in counts.items() if value.strip().isdecimal() and int(value) > 1]


def _leave() -> None:
    with suppress(Exception):
        if _met():
            dist.destroy_process_group()
