"""A row of a comparison's table: one quantity, with its value for every arm."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.reporting.statistics import Difference, Summary

Number = Summary | Difference | float | int


@dataclass(frozen=True)
class ArmsRow:
    """One quantity: its value for every arm."""

    key: str
    title: str
    values: Mapping[str, Number]
