"""The differences between two sets of settings, in words."""

from collections.abc import Collection, Mapping
from typing import Any


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, free: Collection[str] = (), prefix: str = ""
) -> list[str]:
    """A line for every setting that changed, such as "kl.target was 6.0 and is 2.0". A missing setting counts as None.

    ``free`` are dotted names that may change, including everything below them.
    """
    lines: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        was, is_now, path = old.get(name), new.get(name), f"{prefix}{name}"
        if path in free or was == is_now:
            continue
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            lines += differences(was, is_now, free=free, prefix=f"{path}.")
        else:
            lines.append(f"{path} was {was!r} and is {is_now!r}")
    return lines
