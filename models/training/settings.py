"""How long and how fast to train; this file imports no model library, so a command line is quick."""

from dataclasses import dataclass

from models.weights.dtype_names import Autocast
from rlhf_core.names import naming_nearest


@naming_nearest({"lr": "learning_rate", "max_steps": "steps", "num_train_epochs": "epochs"})
@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how fast to train. AdamW, linear warmup, cosine decay to 0, gradient norm clipped to 1.

    Raises:
        TypeError: an unknown setting, with the one that may have been meant.
        ValueError: unless exactly one of ``steps`` and ``epochs`` is given, and everything is positive.
    """

    steps: int | None = None
    """Optimizer steps."""
    epochs: float | None = None
    """Passes over the rows."""
    batch_size: int = 16
    """Rows (for preferences: pairs) of one optimizer step."""
    micro_batch_size: int | None = None
    """Rows of one forward pass, which must divide ``batch_size``; null is all of them. A smaller one saves memory; the
    step then averages the means of its micro-batches, which weighs tokens of short rows a little more."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    beta2: float = 0.999
    """AdamW's memory of squared gradients; short runs from scratch want less of it (0.98)."""
    autocast: Autocast | None = None
    """What the float32 weights are multiplied in; null: float32. Processors with instructions for bfloat16 need about
    half the time with it."""
    seed: int = 0
    """Seed of the order of the rows and of dropout."""
    progress: bool = False
    """Show Trainer's progress bar."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"TrainingSettings: give exactly one of steps ({self.steps}) and epochs ({self.epochs})")
        for name in ("steps", "epochs", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"TrainingSettings: {name} must be above 0, got {value}")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise ValueError(
                f"TrainingSettings: micro_batch_size {self.micro_batch_size} must divide batch_size {self.batch_size}"
            )
        if not (0 <= self.warmup < 1 and 0 <= self.beta2 < 1 and self.weight_decay >= 0):
            raise ValueError(
                f"TrainingSettings: warmup {self.warmup} and beta2 {self.beta2} must lie in [0, 1), "
                f"weight_decay {self.weight_decay} must be 0 or more"
            )
