"""The check of settings that hold names, of which only some are known."""

from collections.abc import Collection

from rlhf_core.names import nearest


def require_known(settings: object, **known: Collection[str]) -> None:
    """Raise ValueError unless each setting named here holds one or more of its known names, and no other; says the
    nearest one."""
    for name, names in known.items():
        given = getattr(settings, name)
        unknown = [one for one in given if one not in names]
        if unknown or not given:
            meant = nearest(unknown[0], names) if unknown else ""
            raise ValueError(f"{name} must be of {', '.join(map(repr, names))}, got {given}{meant}")
