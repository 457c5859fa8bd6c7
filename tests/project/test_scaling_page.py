"""The memory that docs/scaling.md predicts is what benchmarks.memory predicts."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.cost.architectures import shape_of
from benchmarks.cost.memory_prediction import predict
from benchmarks.cost.memory_report import config_of
from benchmarks.cost.memory_settings import GIB, from_preset

PAGE = (Path(__file__).resolve().parents[2] / "docs/scaling.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| [^|]+ \| (?:`([^|`]+)`)? ?\| ([\d.]+) \|$", PAGE, re.MULTILINE)


def test_every_predicted_peak_is_the_memory_models():
    assert len(ROWS) == 8
    settings = from_preset("dialogue")
    policy = shape_of(config_of(settings.policy, "lm"), "lm", settings.policy)
    reward = shape_of(config_of(settings.reward, "classifier"), "classifier", settings.reward)
    for flags, peak in ROWS:
        words = shlex.split(flags)
        changes = {
            name.removeprefix("--"): int(value) if value.isdigit() else value
            for name, value in zip(words[::2], words[1::2])
        }
        predicted = predict(from_preset("dialogue", **changes), policy, reward).peak / GIB
        assert predicted == pytest.approx(float(peak), abs=0.051), flags
