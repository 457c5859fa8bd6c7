"""Training settings for the models of a preparation, by size or base.

``language`` trains on whole texts, ``supervised`` on demonstrations, ``reward`` on labels or comparisons. A base model
learns from no whole texts before its demonstrations.
"""

from collections.abc import Mapping
from functools import partial

from models.training.settings import TrainingSettings

Recipes = Mapping[str, Mapping[str, TrainingSettings]]

quick, shown = TrainingSettings, partial(TrainingSettings, progress=True)
long = shown(epochs=3, batch_size=32, learning_rate=6e-4)
large = partial(shown, epochs=1, batch_size=32)

REVIEWS: Recipes = {
    "micro": {"language": quick(steps=50, learning_rate=4e-3), "reward": quick(steps=50, learning_rate=2e-3)},
    "tiny": {"language": shown(steps=1500, learning_rate=2e-3), "reward": shown(steps=2000, learning_rate=1e-3)},
    "small": {"language": long, "reward": large(learning_rate=1e-4)},
    "gpt2": {"language": long, "reward": large(learning_rate=5e-5)},
    "base": {"language": shown(epochs=1, learning_rate=5e-5), "reward": shown(epochs=1, learning_rate=2e-5)},
}
PREFERENCES: Recipes = {
    "micro": {
        "language": quick(steps=20, batch_size=4, learning_rate=4e-3),
        "supervised": quick(steps=10, batch_size=4, learning_rate=2e-3),
        "reward": quick(steps=10, batch_size=4, learning_rate=2e-3),
    },
    "tiny": {
        "language": shown(steps=600, batch_size=8, learning_rate=2e-3),
        "supervised": shown(steps=150, batch_size=8, learning_rate=1e-3),
        "reward": shown(steps=200, batch_size=8, learning_rate=5e-4),
    },
    "small": {"language": long, "supervised": large(epochs=2, learning_rate=3e-4), "reward": large(learning_rate=1e-4)},
    "gpt2": {"language": long, "supervised": large(epochs=2, learning_rate=1e-4), "reward": large(learning_rate=5e-5)},
    "base": {
        "supervised": large(micro_batch_size=4, learning_rate=5e-5),
        "reward": large(micro_batch_size=4, learning_rate=2e-5),
    },
    "lora": {
        "supervised": large(micro_batch_size=2, learning_rate=2e-4),
        "reward": large(micro_batch_size=2, learning_rate=1e-4),
    },
}
