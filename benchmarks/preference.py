"""Which of two checkpoints answers better: the same prompts and random numbers for both, judged pair by pair.

``python -m benchmarks.preference --first DIR --second DIR --prompts FILE --out OUT`` with ``--reward DIR``, or with
``--endpoint URL --model NAME``. OUT then holds run.json, prompts.json (rows used and left out),
responses-first.json and responses-second.json (AlpacaEval's format), verdicts.jsonl, table.md, table.csv and
results.json. Call again to resume, or to ask another judge about the same responses: nothing is drawn or judged twice.
From Python, :func:`benchmarks.judging.pairwise_comparison.compare` takes any judge, or a function.
"""

import sys

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.interruption import stoppable
from benchmarks.judging.settings import PreferenceSettings

NAME = "benchmarks.preference"
SECTIONS = {
    "what is compared": ("first", "second", "prompts", "first_name", "second_name"),
    "how it is judged": ("resamples",),
    "where it goes": ("out", "overwrite"),
}

OF_ENDPOINT = ("api_key_env", "answer_tokens", "timeout_seconds", "attempts", "backoff_seconds", "plain_http")
SHORT = {
    **{"--reward": "--reward.model", "--endpoint": "--endpoint.url", "--model": "--endpoint.model"},
    **{"--reward_score": "--reward.score", "--reward_template": "--reward.template", "--reward_end": "--reward.end"},
    **{f"--{name}": f"--endpoint.{name}" for name in OF_ENDPOINT},
    "--judge_prompt": "--endpoint.prompt",
}
"""Flags that may be written without their group."""


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    settings = parse(PreferenceSettings, NAME, _in_full(sys.argv[1:] if argv is None else argv), sections=SECTIONS)
    with refusals(NAME):
        settings.require_one_judge()
        from rich.console import Console

        from benchmarks.base.quiet_libraries import quiet_libraries
        from benchmarks.judging.chat_endpoint import EndpointError
        from benchmarks.judging.pairwise_comparison import compare

        quiet_libraries()
        try:
            with stoppable("call again to go on from there"):
                compare(settings, Console())
        except EndpointError as error:
            raise SystemExit(f"error: {error}; call again to go on from there") from error


def _in_full(words: list[str]) -> list[str]:
    """The words with every short flag as its long one."""

    def full(word: str) -> str:
        flag, equals, value = word.partition("=")
        return SHORT.get("--" + flag[2:].replace("-", "_"), flag) + equals + value if flag[:2] == "--" else word

    return [full(word) for word in words]


if __name__ == "__main__":
    main()
