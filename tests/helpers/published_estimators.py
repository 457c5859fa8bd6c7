"""Golden vectors of the published stacks' estimators and losses, where they are at hand (they are not committed)."""

import gzip
import json
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[3] / "shared/reference/estimators_oracle.json.gz"
FOUND = json.loads(gzip.decompress(FILE.read_bytes())) if FILE.is_file() else {"batches": {}, "cases": []}
needs_golden_vectors = pytest.mark.skipif(not FOUND["cases"], reason=f"{FILE.name} is not at hand")


def cases(stack, *groups, functions=(), takes=lambda batch: True):
    """Cases of a stack in float64 whose batch we take too, as test parameters."""
    chosen = [
        case
        for case in FOUND["cases"]
        if case["stack"] == stack
        and case["group"] in groups
        and case["dtype"] == "float64"
        and (not functions or case["function"].rpartition(".")[2] in functions)
    ]
    found = [pytest.param(case, FOUND["batches"].get(case["batch"]), id=case["id"]) for case in chosen]
    return [one for one in found if takes(one.values[1])]
