"""Demonstrations and comparisons as token ids; every row is checked and every fault counted."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.data.hold_out import by_hold_out
from benchmarks.data.preference_formats import Conversation, Example, comparison, demonstration, key
from benchmarks.data.records import Faults, RowFault, Sieve, read_rows, source_name
from benchmarks.data.rendering import fitted, render, response_ids

Ids = tuple[int, ...]
Pair = tuple[str, frozenset[str]]


@dataclass(frozen=True, kw_only=True)
class TokenisedExample:
    """An example whose prompt is as the policy and as the reward model read it; responses end with EOS unless cut.

    ``written`` is the row as people read it, before any cut; ``text`` is the last message, cut where it is too long.
    """

    key: str
    text: str
    prompt: Ids
    reward_prompt: Ids
    responses: tuple[Ids, ...]
    written: Example

    @property
    def best(self) -> list[int]:
        """The only response or the preferred one after its prompt, as the language model reads it."""
        return [*self.prompt, *self.responses[0]]

    @property
    def reward_inputs(self) -> list[list[int]]:
        """Each response after the reward model's own prompt: what it reads in training, and in PPO."""
        return [[*self.reward_prompt, *response] for response in self.responses]

    @property
    def longer_wins(self) -> bool | None:
        """Whether the preferred of two responses is the longer one; None if both have the same number of tokens."""
        chosen, rejected = map(len, self.responses)
        return None if chosen == rejected else chosen > rejected


def split_prompts(rows: Sequence[TokenisedExample]) -> dict[str, list[dict[str, Any]]]:
    """Every prompt once, as both models read it, by split: held out where the hash of its text says so."""
    splits = by_hold_out({row.key: row for row in rows}.values(), lambda row: row.key)
    return {
        split: [{"ids": list(row.prompt), "reward_ids": list(row.reward_prompt), "text": row.text} for row in some]
        for split, some in splits.items()
    }


def read_demonstrations(sources: Sequence[str]) -> Sieve[Example]:
    """Every demonstration once; raises like :func:`benchmarks.data.records.read_rows`, or where a source has none."""
    return _read_once(_rows(sources), demonstration)


def read_comparisons(sources: Sequence[str]) -> Sieve[Example]:
    """Every comparison once, without those that another row answers the other way round; raises like
    :func:`benchmarks.data.records.read_rows`, or where a source has none."""
    rows = _rows(sources)
    preferred = _preferred(row for _, some in rows for row in some)

    def use(row: object) -> Example:
        found = comparison(row)
        if len(preferred[_pair(found)]) > 1:
            raise RowFault("another row prefers the other of the same two responses")
        return found

    return _read_once(rows, use)


def _rows(sources: Sequence[str]) -> list[tuple[str, list[object]]]:
    """The rows of every source, by its name."""
    return [(source_name(source), read_rows(source)) for source in sources]


def _responses(example: Example) -> tuple[str, ...]:
    return tuple(response.strip() for response in example.responses)


def _pair(example: Example) -> Pair:
    """A prompt and two responses, whichever was preferred."""
    return key(example.prompt), frozenset(_responses(example))


def _preferred(rows: Iterable[object]) -> dict[Pair, set[str]]:
    """Of each pair, the responses that some row prefers; faulty rows prefer none."""
    found: dict[Pair, set[str]] = {}
    for row in rows:
        with suppress(RowFault):
            example = comparison(row)
            found.setdefault(_pair(example), set()).add(_responses(example)[0])
    return found


def _read_once(rows: Sequence[tuple[str, Sequence[object]]], parse: Callable[[object], Example]) -> Sieve[Example]:
    """The rows that ``parse`` accepts, each once."""
    sieve: Sieve[Example] = Sieve()
    seen: set[tuple[str, ...]] = set()

    def use(row: object) -> Example:
        found = parse(row)
        identity = key(found.prompt), *_responses(found)
        if identity in seen:
            raise RowFault("seen before")
        seen.add(identity)
        return found

    for source, some in rows:
        sieve.sift(source, some, use)
    return sieve


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokenisation:
    """How texts become token ids, and which are too long."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    reads: str
    """The reward model's template."""
    max_prompt_tokens: int
    max_response_tokens: int
    faults: Faults

    def examples(self, found: Sieve[Example], what: str) -> Sieve[TokenisedExample]:
        """The rows that fit, with the faults found before; ``what`` they are is how messages name them."""
        sieve: Sieve[TokenisedExample] = Sieve(rejected=found.rejected)

        def use(row: Example) -> TokenisedExample:
            prompt = self._fitted(row.prompt, sieve)
            ours, theirs = (tuple(render(template, prompt, self.tokenizer)) for template in (self.template, self.reads))
            responses = tuple(self._response(response, sieve) for response in row.responses)
            if len(set(responses)) < len(responses):
                raise RowFault("both responses are the same once cut")
            return TokenisedExample(
                key=key(row.prompt),
                text=prompt[-1].content.strip(),
                prompt=ours,
                reward_prompt=theirs,
                responses=responses,
                written=row,
            )

        sieve.sift(what, found.kept, use)
        return sieve

    def _fitted(self, whole: Conversation, sieve: Sieve[TokenisedExample]) -> Conversation:
        """Short enough in both templates."""
        prompt = whole
        for template in dict.fromkeys((self.template, self.reads)):
            if len(render(template, prompt, self.tokenizer)) > self.max_prompt_tokens:
                self._require_cutting(f"prompt longer than {self.max_prompt_tokens} tokens")
                prompt = fitted(template, prompt, self.tokenizer, self.max_prompt_tokens)
        if prompt != whole:
            sieve.truncated.append(f"prompt: {whole[-1].content[:60]!r}")
        return prompt

    def _response(self, text: str, sieve: Sieve[TokenisedExample]) -> Ids:
        """Cut without EOS where it is too long, as a response in PPO is."""
        ids = response_ids(self.template, text, self.tokenizer)
        if len(ids) > self.max_response_tokens:
            self._require_cutting(f"response longer than {self.max_response_tokens} tokens")
            sieve.truncated.append(f"response: {text[:60]!r}")
        return tuple(ids[: self.max_response_tokens])

    def _require_cutting(self, fault: str) -> None:
        if self.faults != "truncate":
            raise RowFault(fault)
