"""CUDA devices for machines without one: tensors stay in the CPU's memory, and behave as they would on a card.

There are two cards, "cuda:0" and "cuda:1"; "cuda" is the first. A tensor is on a card if its storage carries a mark
that names the card, so views, ``parameter.data = ...`` and tied weights follow. Every operation, those of the backward
pass too, goes through a ``TorchDispatchMode``. It

- raises ``MixedDevices`` where CUDA would: tensors of two devices in one operation, a CPU generator, ``.numpy()``;
- counts operations (``launches``), and those at which the host waits for the card (``waits``), by line of the project;
- raises ``torch.OutOfMemoryError`` once more than ``limit`` bytes are held, on both cards together;
- refuses, under ``torch.use_deterministic_algorithms``, the cumulative sum of floats, which CUDA cannot repeat.

Numbers are the CPU's, also of bitsandbytes' 8-bit updates, whose pages are plain memory here. Autocast is the
CPU's too. Kernels and streams are not pretended. Written for torch 2.13.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import accelerate  # noqa: F401  these look for a card when they are imported
import bitsandbytes
import bitsandbytes.functional
import peft  # noqa: F401
import torch
import torch._dynamo
import torch._inductor
import transformers  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
CPU, CARDS = torch.device("cpu"), (torch.device("cuda", 0), torch.device("cuda", 1))
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(f"{ROOT / name}/" for name in ("rlhf_core", "redistributors", "models", "benchmarks"))
GIB = 2**30

REAL_DEVICE = torch._C.TensorBase.device.__get__
REAL = {name: getattr(torch.Tensor, name) for name in ("to", "numpy", "__array__", "tolist")}
REAL_TENSOR, REAL_AS_TENSOR = torch.tensor, torch.as_tensor
REAL_AUTOCAST, REAL_IS_AUTOCAST, REAL_AUTOCAST_DTYPE = (
    torch.autocast.__init__,
    torch.is_autocast_enabled,
    torch.get_autocast_dtype,
)
REAL_GROUPS = torch._C._group_tensors_by_device_and_dtype

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}  # takes indices from the CPU
CROSSING = {"_to_copy", "copy_", "copy", "lift", "lift_fresh", "set_", "is_same_size"}
TAKES_SCALARS = {"masked_fill", "masked_fill_", "fill", "fill_", "lerp", "lerp_", "_foreach_mul", "_foreach_mul_"}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "masked_scatter_backward", "equal", "_unique2"}
NO_LAUNCH = {
    "detach",
    "alias",
    "lift",
    "lift_fresh",
    "_unsafe_view",
    "_reshape_alias",
    "empty",
    "empty_like",
    "new_empty",
}


class MixedDevices(RuntimeError):
    """What CUDA would refuse."""


class Mark:
    """Says on which device a storage is, for as long as it lives."""

    def __init__(self, card: "PretendedCard", size: int, device: torch.device) -> None:
        self.card, self.size, self.device = card, size, device
        card.held += size

    def __del__(self) -> None:
        self.card.held -= self.size


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The storage; None for tensors that have none here."""
    if tensor.layout == torch.sparse_coo:
        return tensor._values().untyped_storage()
    if tensor.layout != torch.strided or REAL_DEVICE(tensor).type != "cpu":
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def home(tensor: torch.Tensor) -> torch.device:
    """The device on which the tensor is."""
    mark = getattr(storage_of(tensor), "mark", None)
    return REAL_DEVICE(tensor) if mark is None else mark.device


def on_card(tensor: torch.Tensor) -> bool:
    """Whether the tensor is on a card."""
    return home(tensor).type == "cuda"


def named(device: torch.device | str | int | None) -> torch.device | None:
    """The device with the number of its card; raises RuntimeError for a card that is not there."""
    if device is None:
        return None
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if found.type != "cuda":
        return found
    if (found.index or 0) >= len(CARDS):
        raise RuntimeError(f"CUDA error: invalid device ordinal {found.index} (pretended card)")
    return CARDS[found.index or 0]


@dataclass(frozen=True)
class Call:
    """One operation: what it is given, which of its tensors are ``there`` (on a card), the device ``asked`` for."""

    func: torch._ops.OpOverload
    name: str
    args: tuple
    kwargs: dict
    leaves: list
    there: list[torch.Tensor]
    asked: torch.device | None

    @staticmethod
    def of(func, args, kwargs, *, told: bool) -> "Call":
        """``told``: whether Python named the device of a copy. C++ names the one it believes a tensor to be on."""
        name, asked = func._schema.name.split("::")[1], kwargs.get("device")
        asked = named(asked)
        if asked == CPU and not told and (name == "_to_copy" or name.startswith("new_") or name.endswith("_like")):
            asked = None
        if asked in CARDS:
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        leaves = tree_leaves((args, kwargs))
        there = [x for x in leaves if isinstance(x, torch.Tensor) and on_card(x)]
        return Call(func, name, args, kwargs, leaves, there, asked)

    @property
    def lands(self) -> torch.device | None:
        """The card on which the result is, if it is on one."""
        if self.asked is not None or not self.there or self.name == "copy_":
            return self.asked if self.asked in CARDS else None
        return home(self.there[0])

    @property
    def others(self) -> list[torch.Tensor]:
        """Its tensors that are not where its first tensor on a card is, nor in pages that both can read."""
        tensors = (x for x in self.leaves if isinstance(x, torch.Tensor) and REAL_DEVICE(x).type == "cpu")
        return [x for x in tensors if home(x) != home(self.there[0]) and not getattr(x, "is_paged", False)]


def require_one_device(call: Call) -> None:
    """Raise MixedDevices where CUDA would refuse: a number (a tensor without axes) may come from the CPU into pointwise
    operations, and indices into what is indexed."""
    if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in call.leaves):
        raise MixedDevices(f"Expected a 'cuda' device type for generator but found 'cpu' ({call.func})")
    others = call.others if call.there and call.name not in CROSSING else []
    if call.name in INDEXING and others:
        indices = [x for x in call.args[1] if isinstance(x, torch.Tensor)]
        if any(home(x) not in (CPU, home(call.args[0])) for x in indices):
            raise MixedDevices(
                f"indices should be either on cpu or on the same device as the indexed tensor, {home(call.args[0])} "
                f"({call.func})"
            )
        others = [x for x in call.args[2:3] if home(x) != home(call.args[0]) and (x.ndim or on_card(x))]
    elif torch.Tag.pointwise in call.func.tags or call.name in TAKES_SCALARS:
        others = [x for x in others if x.ndim or on_card(x)]
    if others:
        raise MixedDevices(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{home(call.there[0])} and {home(others[0])}: {call.func}, there: {[tuple(x.shape) for x in others]}"
        )


def require_deterministic(call: Call) -> None:
    """Raise RuntimeError for what CUDA cannot repeat, where that is forbidden."""
    if call.name != "cumsum" or not torch.are_deterministic_algorithms_enabled():
        return
    if call.args[0].is_floating_point() or call.kwargs.get("dtype") in (torch.float32, torch.float64):
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation (pretended card)")


def host_waits(call: Call) -> bool:
    """Whether the host waits until the card has come this far."""
    args = call.args
    if call.name in INDEXING:
        indices = [x for x in args[1] if isinstance(x, torch.Tensor)]
        filled = len(args) > 2 and args[2].numel() == 1 and len(indices) == 1  # such a mask is filled in place
        masks = any(x.dtype == torch.bool for x in indices)
        return (masks and not filled) or not all(map(on_card, indices))
    if call.name == "repeat_interleave":
        return call.kwargs.get("output_size") is None
    if call.name == "_to_copy":
        crosses = call.asked is not None and bool(call.there) != (call.asked in CARDS) and args[0].numel() > 0
        return crosses and not call.kwargs.get("non_blocking")
    if call.name == "copy_":
        number = args[1].ndim == 0 and not on_card(args[1])  # x[...] = 1 comes so
        return on_card(args[0]) != on_card(args[1]) and not number and not any(args[2:3])
    return call.name in WAITING


class PretendedCard(TorchDispatchMode):
    """Inside ``with``, ``"cuda"`` is a device. ``limit``: bytes that the cards hold (None: as many as wanted)."""

    current: "PretendedCard | None" = None

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit, self.held, self.peak = limit, 0, 0
        self.launches: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.inside = 0  # operators that are written in Python see where the numbers really are
        self.moving = False  # whether Python asks for a copy to a device

    def reset(self) -> None:
        """Count from 0."""
        self.launches.clear()
        self.waits.clear()

    def put(self, tensor: torch.Tensor, device: torch.device) -> None:
        """Mark a tensor as lying on a card; raises OutOfMemoryError where that is too much."""
        if tensor.layout == torch.sparse_coo:
            self.put(tensor._indices(), device)
        storage = storage_of(tensor)
        if storage is None or hasattr(storage, "mark"):
            return
        size = storage.nbytes()
        if self.limit is not None and self.held + size > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes (pretended card)")
        storage.mark = Mark(self, size, device)
        self.peak = max(self.peak, self.held)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        call = Call.of(func, args, dict(kwargs or {}), told=self.moving)
        if call.there or call.asked in CARDS:
            require_one_device(call)
            require_deterministic(call)
            if not (func.is_view or call.name in NO_LAUNCH):
                place = (line(), call.name)
                self.launches[place] += 1
                if host_waits(call):
                    self.waits[place] += 1
        self.inside += 1
        try:
            result = func(*args, **call.kwargs)
        finally:
            self.inside -= 1
        if (device := call.lands) is not None:
            for x in tree_leaves(result):
                if isinstance(x, torch.Tensor):
                    self.put(x, device)
        return result

    def __enter__(self) -> "PretendedCard":
        assert PretendedCard.current is None
        PretendedCard.current = self
        self._undo = [(owner, name, vars(owner).get(name), name in vars(owner)) for owner, name, _ in _surface(self)]
        for owner, name, value in _surface(self):
            setattr(owner, name, value)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for owner, name, value, had in self._undo:
            if had:
                setattr(owner, name, value)
            else:
                delattr(owner, name)
        PretendedCard.current = None


def line() -> str:
    """The innermost line of the project on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGES):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _surface(card: PretendedCard) -> list[tuple[object, str, object]]:
    """What Python is shown: (owner, name, value)."""

    def to(self, *args, copy: bool = False, **kwargs):
        other = kwargs.pop("other", args[0] if args and isinstance(args[0], torch.Tensor) else None)
        if other is not None:
            device, dtype, non_blocking = other.device, other.dtype, False
        else:
            kwargs.pop("memory_format", None)
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        device, dtype = named(device) or self.device, dtype or self.dtype
        if "meta" in (device.type, self.device.type):
            return REAL["to"](self, device, dtype, non_blocking, copy)
        if device == self.device and dtype == self.dtype and not copy:
            return self
        card.moving = True
        try:
            return aten._to_copy(self, dtype=dtype, device=device, non_blocking=non_blocking)
        finally:
            card.moving = False

    def refused(self, *_):
        raise TypeError("can't convert cuda device type tensor to numpy. Use Tensor.cpu() first")

    def numpy(self, *, force: bool = False):
        if force:
            return REAL["numpy"](self.detach().cpu(), force=True)
        return refused(self) if on_card(self) else REAL["numpy"](self)

    def array(self, *args, **kwargs):
        return refused(self) if on_card(self) else REAL["__array__"](self, *args, **kwargs)

    def tolist(self):
        if on_card(self):
            card.launches[line(), "tolist"] += 1
            card.waits[line(), "tolist"] += 1
        return REAL["tolist"](self)

    def tensor(data, *args, device=None, requires_grad=False, **kwargs):
        device = data.device if device is None and isinstance(data, torch.Tensor) else device
        made = REAL_TENSOR(data, *args, **kwargs)
        return (made if device is None else made.to(device)).requires_grad_(requires_grad)

    def as_tensor(data, dtype=None, device=None):
        made = data if isinstance(data, torch.Tensor) else REAL_AS_TENSOR(data, dtype=dtype)
        return made.to(device=device or made.device, dtype=dtype or made.dtype)

    def groups(tensors, *args):
        found = REAL_GROUPS(tensors, *args)  # by the device that C++ sees
        return {(group[0][0].device, dtype): (group, at) for (_, dtype), (group, at) in found.items()}

    def get_paged(*shape, dtype=torch.float32, device=CARDS[0]):
        pages = torch.zeros(shape, dtype=dtype)  # their device is the CPU on a machine with a card, too
        pages.is_paged, pages.page_deviceid = True, device.index
        return pages

    def of_cpu(kind):
        return "cpu" if kind == "cuda" else kind

    def autocast(self, device_type, *args, **kwargs):
        REAL_AUTOCAST(self, of_cpu(device_type), *args, **kwargs)

    def synchronize(*_):
        card.waits[line(), "synchronize"] += 1

    def device(self):
        return REAL_DEVICE(self) if card.inside else home(self)

    shown = {
        "device": property(device),
        "is_cuda": property(lambda self: self.device.type == "cuda"),
        "is_cpu": property(lambda self: self.device.type == "cpu"),
        "get_device": lambda self: self.device.index if self.is_cuda else -1,
        "to": to,
        "cpu": lambda self, *_, **__: self.to("cpu"),
        "cuda": lambda self, device="cuda", *_, **__: self.to(named(device)),
        "pin_memory": lambda self, *_: self,
        "numpy": numpy,
        "__array__": array,
        "tolist": tolist,
    }
    state = torch.zeros(16, dtype=torch.uint8)
    properties = SimpleNamespace(name="Pretended", total_memory=48 * GIB, major=9, minor=0, multi_processor_count=132)
    said = {
        **dict.fromkeys(("is_available", "is_initialized", "_is_compiled", "is_bf16_supported"), True),
        **dict.fromkeys(("_lazy_init", "init", "empty_cache", "set_device", "manual_seed", "manual_seed_all"), None),
        **dict.fromkeys(("_lazy_call", "set_rng_state", "set_rng_state_all", "set_per_process_memory_fraction"), None),
        **{
            "device_count": len(CARDS),
            "current_device": 0,
            "get_device_name": "Pretended",
            "get_device_capability": (9, 0),
        },
        **{"get_device_properties": properties, "get_rng_state": state, "get_rng_state_all": [state]},
    }
    measured = {
        "memory_allocated": lambda *_: card.held,
        "memory_reserved": lambda *_: card.held,
        "max_memory_allocated": lambda *_: card.peak,
        "max_memory_reserved": lambda *_: card.peak,
        "mem_get_info": lambda *_: (48 * GIB - card.held, 48 * GIB),
        "reset_peak_memory_stats": lambda *_: setattr(card, "peak", card.held),
        "synchronize": synchronize,
    }
    return [
        *((torch.Tensor, name, value) for name, value in shown.items()),
        *((torch.cuda, name, lambda *_, value=value, **__: value) for name, value in said.items()),
        *((torch.cuda, name, value) for name, value in measured.items()),
        (torch.autocast, "__init__", autocast),
        (torch, "is_autocast_enabled", lambda kind="cuda": REAL_IS_AUTOCAST(of_cpu(kind))),
        (torch, "get_autocast_dtype", lambda kind: REAL_AUTOCAST_DTYPE(of_cpu(kind))),
        (torch, "tensor", tensor),
        (torch, "as_tensor", as_tensor),
        (torch._C, "_group_tensors_by_device_and_dtype", groups),
        (bitsandbytes.functional, "get_paged", get_paged),
        (bitsandbytes.functional, "fill", lambda pages, value, **_: pages.fill_(value)),
        (bitsandbytes.functional, "prefetch_tensor", lambda *_, **__: None),
    ]
