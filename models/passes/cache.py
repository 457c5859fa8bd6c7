"""A key-value cache with room for the whole response, so that a new token is written in place.

transformers' own cache concatenates: every token then copies the keys and values of all tokens before it.
"""

import inspect
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

NAMES = ("cache_params", "cache", "past_key_values")


@final
class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A ``DynamicLayer`` in a buffer with room for further tokens; ``keys`` and ``values`` are views of what is used.

    Sampling appends and drops rows; the other ways to change a ``DynamicLayer`` are not for this one.

    Raises:
        RuntimeError: more tokens than there is room for.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: Any, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(layer.keys, layer.values)
        self._buffers = tuple(_with_room(states, room) for states in (layer.keys, layer.values))
        self._show(layer.get_seq_length())

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write the new columns, and return all that are used."""
        start = self.get_seq_length()
        end, room = start + key_states.shape[-2], self._buffers[0].shape[-2]
        if end > room:
            raise RuntimeError(f"a cache with room for {room} tokens was given token {end}")
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Int[Tensor, " kept"]) -> None:
        """Keep the given rows, in the same buffer."""
        end = self.get_seq_length()
        kept = [states.index_select(0, beam_idx) for states in (self.keys, self.values)]
        self._buffers = tuple(buffer[: len(beam_idx)] for buffer in self._buffers)
        for buffer, states in zip(self._buffers, kept, strict=True):
            buffer[:, :, :end] = states
        self._show(end)

    def _show(self, end: int) -> None:
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)


def cache_name(lm: PreTrainedModel) -> str:
    """What the model calls its cache, as an argument and in its output: ``cache`` in most, since transformers 5.24."""
    arguments = inspect.signature(lm.forward).parameters
    return next((name for name in NAMES if name in arguments), NAMES[-1])


def make_room(cache: Any, room: int) -> None:
    """Give every plain layer of a filled cache room for ``room`` more tokens; with none, it goes on concatenating.

    Sliding windows, recurrent states and whatever else a model keeps stay as they are.
    """
    if room < 1 or not isinstance(cache, Cache):
        return
    layers = getattr(cache, "layers", [])  # an encoder-decoder's cache has none of its own
    for i in range(len(layers)):  # one at a time: the old layer is let go before the next is copied
        if type(layers[i]) is DynamicLayer and layers[i].get_seq_length():
            layers[i] = RoomyLayer(layers[i], room)


def _with_room(states: Float[Tensor, "row head token channel"], room: int) -> Tensor:
    rows, heads, tokens, channels = states.shape
    buffer = torch.empty(rows, heads, tokens + room, channels, dtype=states.dtype, device=states.device)
    buffer[:, :, :tokens] = states
    return buffer


def without_cache(model: PreTrainedModel) -> dict[str, bool]:
    """The argument that keeps a trunk from making a cache; most encoders have none."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.base_model.forward).parameters else {}
