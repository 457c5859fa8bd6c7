"""Demonstrations and comparisons as token ids, every row checked, and every fault counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from benchmarks.data.formats import Comparison, Demonstration, Prompt, comparison, demonstration, key
from benchmarks.data.records import Faults, RowFault, Sieve, read_rows, source_name
from benchmarks.data.reviews import held_out
from benchmarks.data.templates import fitted, render, response_ids

Read = TypeVar("Read", Demonstration, Comparison)
Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tokenised:
    """A demonstration: the prompt as the policy and as the reward model read it, and the response with EOS."""

    key: str
    text: str
    prompt: Ids
    reward_prompt: Ids
    response: Ids

    @property
    def whole(self) -> list[int]:
        """What the language model reads."""
        return [*self.prompt, *self.response]


@dataclass(frozen=True, kw_only=True)
class TokenisedPair:
    """A comparison, as :class:`Tokenised`; ``longer_wins`` is None where both have the same number of tokens."""

    key: str
    text: str
    prompt: Ids
    reward_prompt: Ids
    chosen: Ids
    rejected: Ids
    confidence: int | None

    @property
    def best(self) -> list[int]:
        """The preferred text, as the language model reads it."""
        return [*self.prompt, *self.chosen]

    @property
    def longer_wins(self) -> bool | None:
        """Whether the chosen response is the longer one."""
        gap = len(self.chosen) - len(self.rejected)
        return None if gap == 0 else gap > 0


def reading(row: TokenisedPair, response: Ids) -> list[int]:
    """A response after the reward model's own prompt: what it reads in training, and in PPO."""
    return [*row.reward_prompt, *response]


def split_prompts(rows: Sequence[Tokenised | TokenisedPair]) -> dict[str, list[dict[str, Any]]]:
    """Every prompt once, as both models read it, by split: held out where the hash of its text says so."""
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "held_out": []}
    for row in {row.key: row for row in rows}.values():
        entry = {"ids": list(row.prompt), "reward_ids": list(row.reward_prompt), "text": row.text}
        splits["held_out" if held_out(row.key) else "train"].append(entry)
    return splits


def read_demonstrations(sources: Sequence[str]) -> Sieve[Demonstration]:
    """Every demonstration once; raises as :func:`benchmarks.data.records.read_rows`, or where a source has none."""
    return _read(sources, demonstration, lambda row: (key(row.prompt), row.completion.strip()))


def read_comparisons(sources: Sequence[str]) -> Sieve[Comparison]:
    """Every comparison once; raises as :func:`benchmarks.data.records.read_rows`, or where a source has none."""
    return _read(sources, comparison, lambda row: (key(row.prompt), row.chosen.strip(), row.rejected.strip()))


def _read(
    sources: Sequence[str], parse: Callable[[object], Read], identity: Callable[[Read], tuple[str, ...]]
) -> Sieve[Read]:
    sieve: Sieve[Read] = Sieve()
    seen: set[tuple[str, ...]] = set()

    def use(row: object) -> Read:
        found = parse(row)
        if identity(found) in seen:
            raise RowFault("seen before")
        seen.add(identity(found))
        return found

    for source in sources:
        sieve.sift(source_name(source), read_rows(source), use)
    return sieve


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens:
    """How texts become token ids, and which are too long."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    reads: str
    """The reward model's template."""
    max_prompt_tokens: int
    max_response_tokens: int
    faults: Faults

    def demonstrations(self, rows: Sieve[Demonstration]) -> Sieve[Tokenised]:
        """The rows that fit, with the faults found before."""
        sieve: Sieve[Tokenised] = Sieve(rejected=rows.rejected)

        def use(row: object) -> Tokenised:
            assert isinstance(row, Demonstration)
            prompt, of_reward, text = self._prompt(row.prompt, sieve)
            response = self._response(row.completion, sieve)
            return Tokenised(key=key(row.prompt), text=text, prompt=prompt, reward_prompt=of_reward, response=response)

        sieve.sift("demonstrations", rows.kept, use)
        return sieve

    def pairs(self, rows: Sieve[Comparison]) -> Sieve[TokenisedPair]:
        """The rows that fit, with the faults found before."""
        sieve: Sieve[TokenisedPair] = Sieve(rejected=rows.rejected)

        def use(row: object) -> TokenisedPair:
            assert isinstance(row, Comparison)
            prompt, of_reward, text = self._prompt(row.prompt, sieve)
            chosen, rejected = self._response(row.chosen, sieve), self._response(row.rejected, sieve)
            if chosen == rejected:
                raise RowFault("both responses are the same once cut")
            return TokenisedPair(
                key=key(row.prompt),
                text=text,
                prompt=prompt,
                reward_prompt=of_reward,
                chosen=chosen,
                rejected=rejected,
                confidence=row.confidence,
            )

        sieve.sift("comparisons", rows.kept, use)
        return sieve

    def _prompt(self, prompt: Prompt, sieve: Sieve[Tokenised] | Sieve[TokenisedPair]) -> tuple[Ids, Ids, str]:
        """As the policy reads it, as the reward model reads it, and its last message."""
        whole = prompt
        for template in dict.fromkeys((self.template, self.reads)):
            if len(render(template, prompt, self.tokenizer)) > self.max_prompt_tokens:
                if self.faults != "truncate":
                    raise RowFault(f"prompt longer than {self.max_prompt_tokens} tokens")
                prompt = fitted(template, prompt, self.tokenizer, self.max_prompt_tokens)
        if prompt != whole:
            sieve.truncated.append(f"prompt: {whole[-1].content[:60]!r}")
        ours, theirs = (tuple(render(template, prompt, self.tokenizer)) for template in (self.template, self.reads))
        return ours, theirs, prompt[-1].content.strip()

    def _response(self, text: str, sieve: Sieve[Tokenised] | Sieve[TokenisedPair]) -> Ids:
        """Cut without EOS where it is too long, as a response in PPO is."""
        eos_id = self.tokenizer.eos_token_id
        ids = response_ids(self.template, text, self.tokenizer, eos_id=eos_id)
        if len(ids) > self.max_response_tokens:
            if self.faults != "truncate":
                raise RowFault(f"response longer than {self.max_response_tokens} tokens")
            sieve.truncated.append(f"response: {text[:60]!r}")
        return tuple(ids[: self.max_response_tokens])
