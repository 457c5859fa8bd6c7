"""Which prompts a model can read and go on from, told before anything is generated."""

from collections.abc import Container, Iterator, Sequence

SHOWN = 8


def prompt_problems(
    prompts: Sequence[Sequence[int]],
    max_lengths: Sequence[int],
    *,
    vocab_size: int,
    context: int | None,
    unnamed: Container[int] = (),
) -> Iterator[str]:
    """What is wrong with each row, in words: empty, ids outside 0 to ``vocab_size`` − 1 or among the ``unnamed``, or no
    room in the ``context`` (tokens; None is no limit) for a response of its ``max_lengths`` tokens."""
    for row, (prompt, most) in enumerate(zip(prompts, max_lengths, strict=True)):
        outside = [token for token in prompt if not 0 <= token < vocab_size]
        if not prompt:
            yield f"row {row} is empty (give it at least a beginning-of-text token)"
        if outside:
            yield f"row {row} holds ids {outside[:3]} outside the vocabulary of {vocab_size}"
        nameless = [token for token in prompt if token in unnamed and token < vocab_size]
        if nameless:
            yield f"row {row} holds ids {nameless[:3]}, for which the tokenizer has no token"
        if context is not None and len(prompt) + most > context:
            yield f"row {row}: {len(prompt)} prompt + {most} response tokens exceed the context {context}"


def listed(problems: Sequence[str]) -> str:
    """The first few in one line, and how many more there are."""
    more = len(problems) - SHOWN
    return "; ".join(problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
