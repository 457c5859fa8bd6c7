"""Report the faithfulness of credit as a table, curves and a figure."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.base.interruption import stoppable
from benchmarks.base.json_files import write_json
from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.run_folder import RECORD, measurement_folder, read_record
from benchmarks.credit.faithfulness import spearman_brown
from benchmarks.credit.faithfulness_study import RANDOM, TRUTH, Study, methods_of, ranked_alike, study, with_methods
from benchmarks.credit.settings import FaithfulnessSettings
from benchmarks.reporting import figures, tables
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.statistics import Array, Summary, band, summarise
from benchmarks.reporting.tables import Table, Value, text
from benchmarks.runs.ppo_settings import PAPER_SETTINGS, with_settings
from benchmarks.tasks.definitions import make_task
from rlhf_core.names import counted
from rlhf_core.probe import Absence

VERBS = {"deletion": "taken away", "insertion": "given alone"}


def run(settings: FaithfulnessSettings, made_by: str) -> None:
    """Study the credit, write tables, curves and figure to the out folder of command ``made_by``, and show the tables.

    Raises:
        ValueError, OSError: settings or models that cannot be, before anything is measured.
    """
    settings = with_methods(settings)
    methods_of(settings)
    task = make_task(settings.task, models=settings.models, cache=settings.cache, loading=settings.loading)
    quiet_libraries()
    loaded, config = task.load(), with_settings(PAPER_SETTINGS, {**task.ppo, "seed": settings.seed})
    out, console = measurement_folder(settings, made_by), Console()
    with stoppable(f"{out} is incomplete: pass --overwrite true to begin again"):
        found = study(loaded, config, settings)
    write_json(out / RECORD, {**read_record(out), "datasets": {"prompts and models": loaded.fingerprint}})
    tables.write(curve_table(found), out, "curves")
    publish(over_random(found), {}, out, console, name="over_random")
    publish(table(found), {"curves": figure(found)}, out, console)


def defined(values: Array) -> Summary | None:
    """Mean and interval over the responses where there is a value; None if there is none."""
    known = values[np.isfinite(values)]
    return summarise(known) if len(known) else None


def table(study: Study) -> Table:
    """A row for every method, then the references and the random order."""
    kinds, references = study.settings.kinds, study.frozen.references
    columns = (
        "method",
        *(f"{name} AOPC, {absent}" for absent, name in kinds),
        *(f"ρ with {name}" for name in references),
        *("credited tokens", "flipped signs", "forwards", "backwards", "evidence, ms", "method, ms"),
    )

    def row(label: str) -> tuple[Value, ...]:
        found = study.findings[label]
        correlations = [None if label == name else defined(found.correlations[name]) for name in references]
        areas = [summarise(found.aopc[kind]) for kind in kinds]
        return (label, *areas, *correlations, defined(found.tokens), defined(found.opposed), *_cost(study, label))

    n, mask = len(study.frozen.rollout.sequences), study.frozen.rollout.sequences.response_mask
    return Table(
        title=f"{study.settings.task}: credit for {counted(n, 'response')} of {float(mask.sum() / n):.1f} tokens "
        "on average",
        columns=columns,
        rows=tuple(row(label) for label in (*study.credits, *references, RANDOM)),
        notes=tuple(notes(study)),
    )


def over_random(study: Study) -> Table:
    """Every account's areas against the random order's of the same response, which their spread does not blur."""
    kinds = study.settings.kinds
    rows: list[tuple[Value, ...]] = [
        (label, *(summarise(finding.aopc[kind] - study.findings[RANDOM].aopc[kind]) for kind in kinds))
        for label, finding in study.findings.items()
        if label != RANDOM
    ]
    return Table(
        title=f"{study.settings.task}: AOPC less that of the random order, paired by response",
        columns=("method", *(f"{name}, {absent}" for absent, name in kinds)),
        rows=tuple(rows),
    )


def _cost(study: Study, label: str) -> tuple[Value, ...]:
    if label not in study.credits:
        return (None,) * 4
    n, credit = len(study.frozen.rollout.sequences), study.credits[label]
    spent = credit.evidence
    passes = (None,) * 3 if spent is None else (spent.forwards / n, spent.backwards / n, 1e3 * spent.seconds / n)
    return (*passes, 1e3 * credit.seconds / n)


def notes(study: Study) -> list[str]:
    """Explanations of the columns."""
    signs = TRUTH if TRUTH in study.frozen.references else "the response's score"
    return [
        "Means are over responses, with 95 % t-intervals (range below 4); undefined values are left out. Scores r are "
        "the reward model's raw scores. Tokens are taken in order of credit, the most positive first. Equal credit, "
        f"and the random order, average {study.settings.orders} shuffles.",
        f"Deletion AOPC: r(x) − r(x without its first tokens), mean over shares 0, 1/{study.settings.points}, ..., 1 "
        "(ERASER's comprehensiveness). Insertion AOPC: r(first tokens alone) − r(no tokens), likewise; ERASER's "
        "sufficiency is r(x) − r(no tokens) minus it. Higher is more faithful. delete: tokens are cut out; replace: "
        "they become the reward model's null token.",
        f"ρ: Spearman's, over the tokens of a response. Leaving one out: r(x) − r(x without the token), "
        f"{study.settings.absent[0]}. Credited tokens: (Σ|c|)²/Σc².",
        f"Flipped signs: the share of Σ|c| on tokens where credit and {signs} have opposite signs.",
        "Passes and evidence: per response, beyond the passes that every method needs; attention and hidden states "
        "are read from those. A continuation counts as the pass that scores it. –: not counted, as for passes of a "
        "second language model. Method: the redistributor "
        f"itself. {torch.get_num_threads()} threads.",
        f"Methods that learn had observed {study.settings.warm} rollouts.",
        *_oracle_note(study),
        *(f"Refused: {label}: {reason}" for label, reason in study.refused.items()),
    ]


def _oracle_note(study: Study) -> list[str]:
    values = study.frozen.values
    if values is None:
        return []
    first, second = values.halves
    half = defined(ranked_alike(first, second, study.frozen.rollout))
    whole = spearman_brown(half.mean) if half else None
    return [
        "Value differences: V(s after the token) − V(s before it), V the mean score of "
        f"{study.settings.continuations} continuations of the policy ({values.tokens} tokens drawn). Its halves "
        f"agree with ρ = {text(half)}, so that the whole has a reliability of about {text(whole)}, and even a perfect "
        f"account would reach about {text(max(whole, 0.0) ** 0.5 if whole else None)}."
    ]


def curve_table(study: Study) -> Table:
    """Every curve's mean and interval at every share."""
    rows = tuple(
        (label, absent, name, float(share), summarise(line[:, point]))
        for label, finding in study.findings.items()
        for (absent, name), line in finding.curves.items()
        for point, share in enumerate(np.linspace(0, 1, line.shape[1]))
    )
    return Table(title="curves", columns=("method", "absent", "curve", "share of tokens", "score"), rows=rows)


@figures.style()
def figure(study: Study) -> Figure:
    """A panel for every kind of absence and direction, a line for every account."""
    kinds = study.settings.kinds
    drawn = figures.grid(len(kinds), columns=2, width=3.6)
    for axes, kind in zip(drawn.axes, kinds, strict=True):
        _panel(study, axes, kind)
    figures.legend(drawn, drawn.axes[0], f"{study.settings.task} (means; band of the random order: 95 %)")
    return drawn


def _panel(study: Study, axes: Axes, kind: tuple[Absence, str]) -> None:
    """Methods in their colours; references thin and grey; the random order broad."""
    styles = figures.line_styles(list(study.credits))
    thin = dict(zip(study.frozen.references, figures.DASHES[1:], strict=False))
    share = np.linspace(0, 1, study.settings.points + 1)
    for label, finding in study.findings.items():
        mean, low, high, _ = band(finding.curves[kind])
        if label in styles:
            colour, dash = styles[label]
            axes.plot(share, mean, color=colour, linestyle=dash, label=label)
        elif label in thin:
            axes.plot(share, mean, color="0.45", linestyle=thin[label], linewidth=0.8, label=label)
        else:
            axes.fill_between(share, low, high, color="0.6", alpha=0.25, linewidth=0)
            axes.plot(share, mean, color="0.75", linewidth=2.5, label=label, zorder=1)
    absent, name = kind
    axes.set_title(f"{name}, {absent}", loc="left")
    axes.set_xlabel(f"share of tokens {VERBS[name]}")
    axes.set_ylabel("raw score")
