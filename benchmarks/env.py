"""The details for a bug report: versions, torch's build, devices, the repository's state and the platform.

``dense-rlhf env`` prints a line for each; it names no folder of yours, so that the text can be posted as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.base.command_line import parse


@dataclass(frozen=True, kw_only=True)
class EnvSettings:
    """Print what a bug report needs: versions, torch's build, devices, the repository's state and the platform."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parse(EnvSettings, "benchmarks.env", argv)
    from benchmarks.base.environment import environment

    for name, value in environment().items():
        print(f"{name:<14}{value}")


if __name__ == "__main__":
    main()
