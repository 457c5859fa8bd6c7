"""Checks that several settings classes use. Each error names the setting, the allowed values, and the value."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rlhf_core.names import nearest


def require_at_least(settings: object, **least: float) -> None:
    """Raise ValueError unless each setting named here, or every number in it, is at least the given value; NaN is
    not."""
    for name, smallest in least.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not number >= smallest:
                raise ValueError(f"{name} must be {smallest} or more, got {number}")


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


def require_all(*checks: Callable[[], object]) -> None:
    """Make every check, and raise one ValueError with a line for each that refused, so that one call names all."""
    wrong = []
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            wrong.append(f"{error}")
    if wrong:
        raise ValueError("\n".join(wrong))


@contextmanager
def flag_named(name: str, value: str) -> Iterator[None]:
    """Name the flag in front of what is wrong with its value, which an error may not say: raises ValueError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"--{name} {value}: {error}") from error
