"""A preparation of positive generation, made once."""

import json

import numpy as np
import pytest

from benchmarks.tasks.preparation_settings import ReviewPreparation
from benchmarks.tasks.prepare_reviews import prepare_positive_generation
from models.training.settings import TrainingSettings

QUICK = TrainingSettings(steps=3, batch_size=4)


def write_reviews(file, number=80, labels=True):
    """Made-up reviews of more than 200 characters, all different."""
    generator = np.random.default_rng(number)
    with file.open("w") as lines:
        for i in range(number):
            words = generator.choice(["fine", "dull", "film", "we", "saw", "it", "twice"], 60)
            row = {"text": f"{i} " + " ".join(words)}
            lines.write(json.dumps({**row, "label": i % 2} if labels else row) + "\n")
    return str(file)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder made by ``prepare`` in a few steps."""
    folder = tmp_path_factory.mktemp("prepare")
    data = [write_reviews(folder / "labelled.jsonl"), write_reviews(folder / "more.jsonl", 30, labels=False)]
    prepare_positive_generation(
        ReviewPreparation(data=data, out=str(folder / "out"), size="micro", language=QUICK, reward=QUICK, max_tokens=32)
    )
    return folder / "out"
