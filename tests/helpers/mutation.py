"""What a line of the mutation lists (``mutations.py`` in a folder of tests) says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """Replace ``original``, which stands exactly once in ``file``, by ``mutated``; ``test`` must fail."""

    file: str
    original: str
    mutated: str
    test: str
