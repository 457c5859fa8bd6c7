"""Show the credit of any text, token by token, under many methods, without training.

``dense-rlhf credit --policy DIR --reward_model DIR --text FILE --out page.html``. FILE holds JSON lines of prompt and
response (.jsonl), or plain text: a response, to ``--prompt``; or a prompt, a line of ``---`` and a response. A line of
``===`` parts several of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.importing import is_name
from benchmarks.credit.given_texts import Row, checked_rows, read_texts
from models.rewards.score_names import ScoreKind

if TYPE_CHECKING:
    from benchmarks.credit.text_credit import TextCredit

NAME = "benchmarks.credit_of_text"


@dataclass(frozen=True, kw_only=True)
class CreditSettings:
    """Show the credit of any text, token by token, under many methods, without training."""

    policy: str
    """The policy: a folder or a hub name."""
    reward_model: str
    """The reward model: a folder or a hub name of a sequence classifier."""
    text: str
    """A file of JSON lines with prompt and response (.jsonl), or of plain text."""
    prompt: str | None = None
    """The prompt of a response in plain text."""
    methods: str = "all"
    """Methods, such as sparse,abc,uniform(beta=0.8); "all" takes every one that works with these models."""
    out: str | None = None
    """Also write a page (HTML) to this file."""
    overwrite: bool = False
    """Replace the page if it exists."""
    score: ScoreKind | None = None
    """Which number is the reward, if the reward model offers several."""
    label: str | None = None
    """The label whose log-odds are the reward, if the reward model has several."""
    device: str = "cpu"
    """"cuda" on a GPU."""

    def __post_init__(self) -> None:
        if self.out is not None and Path(self.out).exists() and not self.overwrite:
            raise ValueError(f"out: {self.out} exists; give another file, or --overwrite true")
        if ":" in self.reward_model and is_name(self.reward_model):
            raise ValueError(
                f"reward_model {self.reward_model} names a function, and this command takes a classifier, a folder or "
                f"hub name; in Python, {NAME}.credit(policy, function, rows) takes functions too"
            )


def credit(
    policy: Any,
    reward_model: Any,
    rows: Sequence[Row],
    methods: str | Sequence[str] = "all",
    *,
    score: ScoreKind | None = None,
    label: str | None = None,
    device: str = "cpu",
) -> "TextCredit":
    """The credit of texts, from Python.

    ``policy`` and ``reward_model`` are folders, hub names or loaded models; the reward may be a callable, too.
    ``score``, ``label`` and ``device`` are for models that are loaded here. ``rows`` and ``methods`` are those of
    :func:`benchmarks.credit.text_credit.credit_of_texts`.

    Raises:
        ValueError, TypeError, OSError: as ``load_policy``, ``load_reward_model`` and ``credit_of_texts`` do.
    """
    from benchmarks.credit.text_credit import credit_of_texts, named_methods
    from models import load_policy, load_reward_model

    checked_rows(rows)
    named_methods(methods)  # both before any model is read
    if isinstance(policy, str):
        policy = load_policy(policy, device=device)
    if isinstance(reward_model, str):
        reward_model = load_reward_model(reward_model, score=score, label=label, device=device)
    return credit_of_texts(policy, reward_model, rows, methods)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    settings = parse(CreditSettings, NAME, argv)
    with refusals(NAME, CreditSettings):
        rows = read_texts(settings.text, settings.prompt)
        from rich.console import Console

        from benchmarks.base.quiet_libraries import quiet_libraries
        from benchmarks.credit.text_credit import left_out_lines
        from benchmarks.reporting.terminal_heat_map import show

        quiet_libraries()
        found = credit(
            settings.policy,
            settings.reward_model,
            rows,
            settings.methods,
            score=settings.score,
            label=settings.label,
            device=settings.device,
        )
        console = Console()
        show(found.maps(), console)
        for line in left_out_lines(found.left_out):
            console.print(line, markup=False, highlight=False)
        if settings.out is not None:
            found.write(settings.out)
            console.print(f"written to {settings.out}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
