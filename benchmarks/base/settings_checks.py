"""Checks that settings share. Each error names the setting, what it may be, and what it is."""

from collections.abc import Collection

from rlhf_core.names import nearest


def require_at_least(settings: object, **smallest: float) -> None:
    """Raise ValueError unless each setting named here, or every number in it, is so large or larger."""
    for name, least in smallest.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not number >= least:
                raise ValueError(f"{name} must be {least} or more, got {number}")


def require_known(settings: object, **known: Collection[str]) -> None:
    """Raise ValueError unless each setting named here holds one or more of its known names, and no other."""
    for name, names in known.items():
        given, listed = getattr(settings, name), ", ".join(map(repr, names))
        if not given:
            raise ValueError(f"{name} must hold at least one of {listed}")
        for one in given:
            if one not in names:
                raise ValueError(f"{name} must be of {listed}, got {one!r}{nearest(one, names)}")
