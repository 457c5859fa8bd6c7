"""Change PPO settings by name, for tasks, panels, arms and the command line. No model library is imported."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from jsonargparse import ArgumentParser

from rlhf_core.config import PPOConfig
from rlhf_core.names import OTHER_WORDS, nearest

PAPER_SETTINGS = PPOConfig.from_paper("positive_generation")
"""What the settings of a task, and those on the command line, change."""


def with_settings(base: PPOConfig, changes: Mapping[str, Any]) -> PPOConfig:
    """``base`` with settings changed by (dotted or nested) name, converted to each field's type and checked.

    Raises:
        ValueError: an unknown name, a value of another type, or one out of range.
    """
    parser = _ppo_parser()
    known, changed = _flat(asdict(base)), _flat(changes)
    for name in changed.keys() - known.keys():
        raise ValueError(f"no PPO setting {name!r}{nearest(name, known, OTHER_WORDS)}")
    merged = known | changed
    try:
        config: PPOConfig = parser.instantiate(parser.parse_object({"ppo": merged})).ppo
    except ValueError:
        raise
    except Exception as error:  # argparse's own error type says what is wrong, but is not a ValueError
        raise ValueError(f"PPO settings {dict(changes)}: {error}") from error
    return config


@cache
def _ppo_parser() -> ArgumentParser:
    """Made once: a plan asks for the settings of every arm under every seed."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PPOConfig, "ppo")
    return parser


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
