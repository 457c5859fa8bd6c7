"""Checks that settings share. Each error names the setting, what it may be, and what it is."""

from collections.abc import Collection
from typing import Any

from rlhf_core.names import nearest


def require_at_least(settings: Any, **smallest: int) -> None:
    """Raise ValueError unless each setting named here, or every number in it, is so large or larger."""
    for name, least in smallest.items():
        value = getattr(settings, name)
        if min(value if isinstance(value, tuple) else (value,), default=least) < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")


def require_known(settings: Any, **known: Collection[str]) -> None:
    """Raise ValueError unless each setting named here holds one or more of the known names, and no other."""
    for name, names in known.items():
        given = getattr(settings, name)
        unknown = [one for one in given if one not in names]
        if unknown or not given:
            meant = nearest(unknown[0], names) if unknown else ""
            raise ValueError(f"{name} must be of {'; '.join(names)}, got {given}{meant}")
