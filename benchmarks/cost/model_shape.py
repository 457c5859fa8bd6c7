"""What the prediction of memory knows of a model: its sizes, without its weights."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What memory depends on in an architecture. Sizes of weights are in numbers, not bytes."""

    name: str
    family: str
    layers: int
    hidden: int
    inner: int
    """Width inside the MLP."""
    heads: int
    key_heads: int
    head_size: int
    vocab: int
    context: int
    linear: tuple[int, ...]
    """Each linear layer of the trunk: what 4-bit loading quantises."""
    other: tuple[int, ...]
    """Every other parameter: embeddings, norms, biases, head."""
    head: tuple[int, ...] = ()
    """Of these, what stands on top of the trunk and is not tied to it."""
    buffer_bytes: int
    adapted: tuple[tuple[int, int], ...]
    """Input and output width of each module that PEFT adapts by default."""

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones once."""
        return sum(self.linear) + sum(self.other)

    @property
    def trunk(self) -> tuple[int, ...]:
        """Size of each parameter below the head."""
        sizes = [*self.linear, *self.other]
        for size in self.head:
            sizes.remove(size)
        return tuple(sizes)
