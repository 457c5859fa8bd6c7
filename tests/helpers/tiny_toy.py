"""The smallest settings of the embedded task."""

from benchmarks.tasks.toy_models import ToyRecipe
from models.training.settings import TrainingSettings

TINY = ToyRecipe(
    layers=1,
    width=8,
    heads=1,
    reviews=64,
    held_out=16,
    language=TrainingSettings(steps=2, batch_size=8),
    reward=TrainingSettings(steps=2, batch_size=8),
)
