"""Arms: a labelled redistributor with changes to the task's PPO settings, as written on the command line."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from redistributors import REDISTRIBUTORS
from rlhf_core.config import PPOConfig
from rlhf_core.types import Redistributor

ARM = re.compile(r"(?P<method>[\w-]+)(\((?P<settings>[^()]*)\))?(?P<changes>(@[\w.]+=[^@]+)*)")

BETWEEN = r",(?![^\[\]]*\])"
"""A comma outside a list."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A redistributor by registry name with its settings, and what it changes in the PPO settings."""

    label: str
    method: str
    settings: Mapping[str, Any]
    changes: Mapping[str, Any]

    def redistributor(self) -> Redistributor:
        """A new instance; raises ValueError or TypeError for settings the method does not take."""
        return REDISTRIBUTORS[self.method](**self.settings)


def parse_arms(given: str | Sequence[str]) -> tuple[Arm, ...]:
    """``sparse, uniform(beta=0.8), sparse@lam=1``, as one text or a list of arms, into arms.

    Brackets hold the redistributor's settings, each ``@`` changes one PPO setting (``@kl.init_coef=0.1``). The label is
    made of both: ``uniform-beta0.8``, ``sparse-lam1``.

    Raises:
        ValueError: an unreadable arm, an unknown method, settings it refuses, or two arms of one label.
    """
    texts = re.split(rf"{BETWEEN}(?![^()]*\))", given) if isinstance(given, str) else given
    arms = tuple(_arm(text.strip()) for text in texts if text.strip())
    labels = [arm.label for arm in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"the arm {label} is named {labels.count(label)} times; once is enough")
    return arms


def _arm(text: str) -> Arm:
    match = ARM.fullmatch(text)
    if match is None:
        raise ValueError(f"cannot read the arm {text!r}; write name, name(setting=value) or name@ppo_setting=value")
    method = match["method"]
    if method not in REDISTRIBUTORS:
        raise ValueError(f"no redistributor {method!r}; one of {', '.join(REDISTRIBUTORS)}")
    settings = _assignments(re.split(BETWEEN, match["settings"] or ""), text)
    changes = _assignments(match["changes"].split("@"), text)
    if "seed" in changes:
        raise ValueError(f"arm {text!r}: every arm runs under every seed of --seeds, so it cannot set its own")
    parts = [f"{name.rpartition('.')[2]}{value}" for name, value in {**settings, **changes}.items()]
    label = re.sub(r"[^\w.+-]", "", "-".join([method, *parts]))
    arm = Arm(label=label, method=method, settings=settings, changes=changes)
    try:
        arm.redistributor()
    except (TypeError, ValueError) as error:
        raise ValueError(f"arm {text!r}: {error}") from error
    return arm


def _assignments(texts: Sequence[str], arm: str) -> dict[str, Any]:
    pairs = [text.partition("=") for text in texts if text.strip()]
    for name, equals, value in pairs:
        if not (name.strip() and equals and value.strip()):
            raise ValueError(f"arm {arm!r}: expected setting=value, got {name + equals + value!r}")
    try:
        return {name.strip(): yaml.safe_load(value) for name, _, value in pairs}
    except yaml.YAMLError as error:
        raise ValueError(f"arm {arm!r}: a value cannot be read ({str(error).splitlines()[0]})") from error


def with_settings(base: PPOConfig, changes: Mapping[str, Any]) -> PPOConfig:
    """``base`` with settings changed by (dotted or nested) name, converted to each field's type and checked.

    Raises:
        ValueError: an unknown name, a value of another type, or one out of range.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PPOConfig, "ppo")
    merged = {**_flat(dataclasses.asdict(base)), **_flat(changes)}
    try:
        config: PPOConfig = parser.instantiate(parser.parse_object({"ppo": merged})).ppo
    except ValueError:
        raise
    except Exception as error:  # argparse's own error type says what is wrong, but is not a ValueError
        raise ValueError(f"PPO settings {dict(changes)}: {error}") from error
    return config


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
