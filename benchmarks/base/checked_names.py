"""The check of settings that hold names, of which only some are known."""

from collections.abc import Collection

from rlhf_core.names import nearest


def require_known(settings: object, **known: Collection[str]) -> None:
    """Raise ValueError unless each setting named here holds one or more of its known names, and no other; says the
    nearest one."""
    for name, names in known.items():
        given, listed = getattr(settings, name), ", ".join(map(repr, names))
        if not given:
            raise ValueError(f"{name} must hold at least one of {listed}")
        for one in given:
            if one not in names:
                raise ValueError(f"{name} must be of {listed}, got {one!r}{nearest(one, names)}")
