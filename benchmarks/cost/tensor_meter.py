"""Bytes of tensors alive on a CPU, where no allocator counts them."""

import weakref
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


@final
class TensorMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own __init_subclass__
    """Follows every storage made inside the context from the operation that makes it to its end.

    What an operation allocates and frees within itself is not seen, nor what was there before.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self._now = self._most = self._highest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: set[int] = set()
        tree_map_only(Tensor, lambda tensor: self._note(tensor, given), (args, kwargs))
        out = func(*args, **(kwargs or {}))
        # a result in the storage of an argument (a view, an operation in place) is nothing new
        tree_map_only(Tensor, lambda tensor: self._follow(tensor, given), out)
        self._most, self._highest = max(self._most, self._now), max(self._highest, self._now)
        return out

    def reset(self) -> None:
        """Start a new peak from what is alive."""
        self._most = self._now

    def peak(self) -> int:
        """Most bytes alive since the last reset."""
        return self._most

    def held(self) -> int:
        """Most bytes alive ever."""
        return self._highest

    def _note(self, tensor: Tensor, given: set[int]) -> None:
        if not tensor.is_sparse:
            given.add(tensor.untyped_storage()._cdata)

    def _follow(self, tensor: Tensor, given: set[int]) -> None:
        if tensor.is_sparse:  # has no storage of its own, and its parts have been met
            return
        storage = tensor.untyped_storage()
        if tensor.device == torch.device("cpu") and storage._cdata not in given and storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key)
