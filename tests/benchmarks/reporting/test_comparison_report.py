"""The table and its verdict: numbers by hand, no winner where intervals meet, files that agree with each other."""

import csv
import io
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.cells import cell_len
from rich.console import Console
from scipy import stats

from benchmarks.experiments import sampling_mismatch
from benchmarks.experiments.settings import SamplingMismatch
from benchmarks.reporting import arm_columns, figures, tables
from benchmarks.reporting.comparison_report import as_json, build, write
from benchmarks.reporting.comparison_verdict import verdict
from benchmarks.reporting.curve_readings import LAST
from benchmarks.reporting.power import detectable_difference, smallest_found
from benchmarks.reporting.primary_outcome import differences_to_reference
from benchmarks.reporting.statistics import Results, Summary, summarise
from benchmarks.runs.comparison import ComparisonResults
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.tasks.definitions import Toy
from rlhf_core.config import PPOConfig
from rlhf_core.pages.heat_map import CreditMap

STEPS = 20


def curve(level, spread, seeds, turn=0):
    """Seeds spread evenly around a level, constant over steps; ``turn`` is where the lowest stands."""
    return np.repeat(level + spread * np.roll(np.linspace(-1, 1, seeds), turn)[:, None], STEPS, axis=1)


def results(levels, spread=0.1, seeds=5, **more):
    curves = {
        arm: {
            "score": curve(level, spread, seeds, turn=i),
            "length": curve(10 + i, 0, seeds),
            "kl": curve(3 - i, 0, seeds),
            "value_loss": curve(1.0, 0.1, seeds),
            "value_loss_normalised": curve(1.0, 0.1, seeds),
            "explained_variance": curve(0.2, 0.1, seeds),
            "explained_variance_over_position": curve(-4.0, 0.1, seeds),
            **{name: values[arm] for name, values in more.items() if arm in values},
        }
        for i, (arm, level) in enumerate(levels.items())
    }
    return Results(task="toy", seeds=tuple(range(seeds)), curves=curves)


def table(report):
    return {row.key: row.values for row in report.rows}


def test_average_and_final_score_by_hand():
    score = np.tile(np.arange(STEPS, dtype=float), (5, 1))
    found = results({"sparse": 0.0})
    found.curves["sparse"]["score"] = score
    rows = table(build(found))
    assert rows["average_score"]["sparse"].mean == 9.5
    assert rows["final_score"]["sparse"].mean == np.arange(STEPS)[-LAST:].mean() == 14.5
    assert rows["score_variance_across_seeds"]["sparse"] == 0


def test_iqm_ignores_a_diverged_seed():
    found = results({"sparse": 1.0}, spread=0)
    found.curves["sparse"]["score"][0] = -100
    rows = table(build(found))
    assert rows["iqm"]["sparse"] == 1
    assert rows["average_score"]["sparse"].mean == pytest.approx(-19.2)


def test_rows_that_would_repeat_the_average_are_left_out():
    found = results({"sparse": 0.0}, seeds=3)
    assert {"average_score", "final_score", "score_variance_across_seeds"} <= table(build(found)).keys()
    assert "iqm" not in table(build(found))
    short = {name: values[:, :LAST] for name, values in found.curves["sparse"].items()}
    rows = table(build(Results(task="toy", seeds=(0, 1, 2), curves={"sparse": short})))
    assert "final_score" not in rows
    assert "kl" in rows
    assert "score_variance_across_seeds" not in table(build(results({"sparse": 0.0}, seeds=1)))


def test_difference_to_sparse_is_paired_and_corrected():
    rows = table(build(results({"sparse": 1.0, "uniform": 1.5, "abc": 2.0})))
    differences = 1 + 0.1 * (np.roll(np.linspace(-1, 1, 5), 2) - np.linspace(-1, 1, 5))
    tested = stats.ttest_1samp(differences, 0)
    assert rows["difference"]["abc"].mean == pytest.approx(1)
    assert rows["difference"]["abc"].low == pytest.approx(tested.confidence_interval().low)
    assert tables.text(rows["difference"]["sparse"]) == "–"
    assert rows["p_holm"]["abc"] == pytest.approx(2 * tested.pvalue)


def test_effects_are_in_initial_standard_deviations():
    levels = {"sparse": 1.0, "abc": 2.0}
    assert "effect" not in table(build(results(levels)))
    found = results(levels, score_std={"sparse": curve(4.0, 0, 5), "abc": curve(9.0, 0, 5)})
    rows = table(build(found))
    for part in ("mean", "low", "high"):
        assert getattr(rows["effect"]["abc"], part) == pytest.approx(getattr(rows["difference"]["abc"], part) / 4)
    assert "initial standard deviations" in verdict(
        results({"sparse": 1.0, "abc": 1.05}, score_std={"sparse": curve(4.0, 0, 5)})
    )


def test_without_sparse_nothing_is_compared_with_it():
    assert "difference" not in table(build(results({"uniform": 1.0, "abc": 2.0})))


def test_an_undecided_difference_comes_with_the_smallest_one_that_would_be_found():
    found = results({"sparse": 1.0, "abc": 1.05})
    said = verdict(found)
    assert said.startswith("No arm is shown to score higher or lower on average than sparse: abc 0.0500 [-0.0")
    difference = differences_to_reference(found)["abc"]
    least = tables.number(detectable_difference(difference.spread, 5))
    assert f". With these 5 seeds, a true difference of less than {least} would be missed in more than 20 % of" in said
    assert said.endswith(
        ". At the end, responses have 10.0 (sparse) to 11.0 (abc) tokens and 2.00 (abc) to 3.00 (sparse) nats of KL."
    )


def test_decided_and_undecided_differences_stand_side_by_side():
    said = verdict(results({"sparse": 1.0, "abc": 3.0, "uniform": 0.2, "abc-d": 1.02}))
    assert said.startswith(
        "abc scores higher on average than sparse; uniform scores lower on average than sparse. By how much: abc 2.00 ["
    )
    assert ", uniform -0.800 [-" in said
    assert ". No other difference to sparse is shown: abc-d 0.0200 [" in said


def test_several_arms_on_one_side_share_a_sentence():
    said = verdict(results({"sparse": 1.0, "abc": 3.0, "uniform": 2.0, "abc-d": 4.0}))
    assert said.startswith("abc, uniform and abc-d score higher on average than sparse. By how much: abc 2.00 [")


def test_arms_with_seeds_of_their_own_are_compared_by_welchs_test():
    many, few = results({"sparse": 1.0}, seeds=9), results({"abc": 2.0, "uniform": 1.02}, spread=0.3)
    own = {"sparse": tuple(range(9)), "abc": tuple(range(5)), "uniform": tuple(range(5))}
    found = Results(task="t", seeds=own["sparse"], own_seeds=own, curves={**many.curves, **few.curves})
    tested = stats.ttest_ind(found.per_seed("abc", "score"), found.per_seed("sparse", "score"), equal_var=False)
    report = build(found)
    rows = table(report)
    assert rows["difference"]["abc"].low == pytest.approx(tested.confidence_interval().low)
    assert rows["p_holm"]["abc"] == pytest.approx(2 * tested.pvalue)
    assert rows["seeds"] == {"sparse": 9, "abc": 5, "uniform": 5}
    assert "average score, difference to sparse (Welch)" in [row.title for row in report.rows]
    assert "over 5 to 9 seeds; arms have seeds of their own, so a difference is tested by Welch's" in report.notes[1]
    undecided = differences_to_reference(found)["uniform"]
    least = tables.number(smallest_found(undecided.error, undecided.freedom, 2))
    assert f"With these 5 to 9 seeds and Welch's t-test, a true difference of less than {least} would" in report.verdict
    assert report.verdict.startswith(
        "abc scores higher on average than sparse. By how much (Welch's t-test): abc 1.00 ["
    )
    saved = as_json(report)
    assert saved["own_seeds"] == {arm: list(seeds) for arm, seeds in own.items()}
    assert saved["table"]["difference"]["abc"]["kind"] == "95 % interval, Welch"
    assert [len(saved["per_seed"][arm]["average_score"]) for arm in own] == [9, 5, 5]


def test_an_arm_with_too_few_seeds_of_its_own_is_not_tested():
    many, few = results({"sparse": 1.0}, seeds=9), results({"abc": 2.0}, seeds=3)
    own = {"sparse": tuple(range(9)), "abc": (0, 1, 2)}
    report = build(Results(task="t", seeds=own["sparse"], own_seeds=own, curves={**many.curves, **few.curves}))
    assert report.verdict.startswith("Arms with fewer than 4 seeds have ranges only, so no method is called better")
    assert report.notes[1].startswith("Brackets: range over 3 to 9 seeds, from 4 on the 95 % t-interval; below 4 seeds")
    assert "p_holm" not in table(report)


def test_what_is_not_tested_stands_under_a_heading():
    score = np.tile(np.arange(STEPS, dtype=float), (5, 1))
    kl = np.tile(np.arange(STEPS) / 10, (5, 1))
    seconds = {"sparse": np.full((5, STEPS), 1.0), "abc": np.full((5, STEPS), 2.0)}
    found = results({"sparse": 0.0, "abc": 0.0}, seconds=seconds)
    found.curves["sparse"].update(score=score, kl=kl)
    found.curves["abc"].update(score=2 * score, kl=2 * kl)
    report = build(found)
    keys = [row.key for row in report.secondary]
    assert keys[:8] == [
        *("early_score", "early_score_difference", "final_score", "final_score_difference"),
        *("step_of_the_best", "score_at_equal_kl", "score_at_equal_kl_difference", "score_in_equal_time"),
    ]
    assert {row.key for row in report.primary} <= {"average_score", "iqm", "difference", "effect", "p_holm"}
    rows = table(report)
    # sparse reaches its best, 19, at its step 20; abc has 18 at step 10 and 20 at step 11
    assert rows["step_of_the_best"] == {"sparse": 20, "abc": 11}
    # runs of sparse reach 1.9 nats, at step 20 with 19, and those of abc, at .2 k, at step 11 with 20
    assert {arm: one.mean for arm, one in rows["score_at_equal_kl"].items()} == {"sparse": 19.0, "abc": 20.0}
    # in the 20 s of sparse, abc takes 10 steps: mean of 0, 2, ..., 18
    assert {arm: one.mean for arm, one in rows["score_in_equal_time"].items()} == {"sparse": 9.5, "abc": 9.0}
    # abc has twice the score of sparse, whose first ten steps average 4.5 and last ten 14.5
    for name, mean in (("early_score", 4.5), ("final_score", 14.5)):
        assert {arm: one.mean for arm, one in rows[name].items()} == {"sparse": mean, "abc": 2 * mean}
        assert rows[f"{name}_difference"]["abc"].mean == mean
        assert np.isnan(rows[f"{name}_difference"]["sparse"])
    assert rows["score_at_equal_kl_difference"]["abc"].mean == 1.0
    lines = tables.markdown(report.table).splitlines()
    heading = lines.index("| **secondary, not tested** |  |  |")
    assert lines[heading + 1].startswith("| score of the first 10 steps |")
    assert lines[heading + 2].startswith("| … paired difference to sparse |")
    console = Console(width=200, record=True, file=io.StringIO())
    tables.show(report.table, console)
    assert "(secondary, not tested)" in console.export_text()


def test_equal_kl_is_one_that_every_run_reaches():
    kl = np.tile(np.arange(STEPS, dtype=float), (5, 1))
    score = kl + np.arange(5)[:, None]
    found = results({"sparse": 0.0, "abc": 0.0})
    found.curves["sparse"].update(score=score, kl=kl)
    kl_of_abc = kl.copy()
    kl_of_abc[3] = np.minimum(kl[3], 7.0)  # one run stays at 7 nats
    found.curves["abc"].update(score=score + 1, kl=kl_of_abc)
    report = build(found)
    row = next(row for row in report.secondary if row.key == "score_at_equal_kl")
    assert row.title == "score at equal KL, 7.00 nats"
    assert row.values["abc"] == summarise(np.arange(8.0, 13.0))


def test_a_step_without_numbers_is_left_out_of_outcomes_too():
    kl, score = (np.tile(np.arange(STEPS, dtype=float), (5, 1)) for _ in range(2))
    found = results({"sparse": 0.0, "abc": 0.0})
    found.curves["sparse"].update(score=score.copy(), kl=kl.copy())
    found.curves["abc"].update(score=score + 1, kl=kl)
    for metric in ("score", "kl"):
        found.curves["sparse"][metric][2, 4] = np.nan
    rows = table(build(found))
    half = np.arange(STEPS // 2)
    assert rows["early_score"]["sparse"] == summarise(np.array([4.5, 4.5, half[half != 4].mean(), 4.5, 4.5]))
    assert rows["score_at_equal_kl_difference"]["abc"].mean == 1.0
    found.curves["sparse"]["kl"][2] = np.nan
    assert "score_at_equal_kl" not in table(build(found))


def test_an_arm_that_never_reaches_the_best_of_sparse_has_a_dash():
    report = build(results({"sparse": 1.0, "abc": 0.5}))
    assert np.isnan(table(report)["step_of_the_best"]["abc"])
    assert "– where an arm's mean never gets there" in report.notes[2]


def test_without_sparse_a_winner_must_clear_every_other_arm():
    said = verdict(results({"uniform": 1.0, "abc": 3.0, "sparse-lam1": 2.98}))
    assert said.startswith("No winner: the interval of abc")
    assert "sparse-lam1" in said
    said = verdict(results({"uniform": 1.0, "abc": 3.0, "sparse-lam1": 2.0}))
    assert said.startswith("abc has the highest average score")


def test_a_tie_is_not_called_the_highest():
    said = verdict(results({"sparse": 1.0, "abc": 1.0, "uniform": 0.5}, seeds=2))
    assert "no method is called better (sparse and abc tie at the average score 1.00). " in said
    assert "highest" not in said


def test_three_seeds_never_give_a_winner_or_an_interval():
    report = build(results({"sparse": 1.0, "abc": 50.0}, seeds=3))
    assert "no method is called better" in report.verdict
    rows = table(report)
    assert rows["average_score"]["abc"].kind == "range"
    assert tables.text(rows["difference"]["abc"]) == "49.0"
    assert "p_holm" not in rows
    assert any("no intervals and no p-values" in note for note in report.notes)


@pytest.mark.parametrize(("steps", "said"), [(3, "last 3"), (10, "last 10"), (40, "last 10")])
def test_titles_say_how_many_steps_the_last_ones_are(steps, said):
    curves = {name: np.ones((2, steps)) for name in ("score", "kl", "length")}
    found = Results(task="toy", seeds=(0, 1), curves={"sparse": curves})
    titles = [row.title for row in build(found).rows]
    assert (f"final score ({said} steps)" in titles) is (steps > LAST)
    assert f"length, tokens ({said})" in titles
    headings = arm_columns.headings(arm_columns.LAST_KL_AND_LENGTH, found)
    assert headings == (f"KL, {said}", f"length, {said}")


def test_the_table_of_samplers_shows_each_arms_difference_to_sparse():
    ours, theirs = results({"sparse": 1.0, "abc": 2.0}), results({"sparse": 1.0, "abc": 0.5})
    options = SamplingMismatch(samplers=("matched", "dropout"), lengths=((1, 4),))
    panels = {"1-4-matched": ours, "1-4-dropout": theirs}
    done = ComparisonResults(settings=ComparisonSettings(), task=Toy(), config=PPOConfig(), results=panels)
    made = sampling_mismatch.table(done, options)
    place = made.columns.index("average score, difference to sparse")
    shown = [row[place] for row in made.rows]
    assert shown == [None, differences_to_reference(ours)["abc"], None, differences_to_reference(theirs)["abc"]]
    assert [each.mean for each in shown[1::2]] == pytest.approx([1.0, -0.5])
    assert arm_columns.rows(arm_columns.DIFFERENCE, results({"abc": 2.0})) == [("abc", None)]


def test_zero_has_no_sign():
    assert [tables.number(x) for x in (-0.0, 0.0, -0.5)] == ["0", "0", "-0.500"]
    assert tables.text(Summary(mean=-0.0, low=-0.5, high=0.0, kind="range")) == "0 [-0.500, 0]"


def test_one_arm_and_undefined_scores():
    assert verdict(results({"sparse": 1.0})) == "One arm ran; there is nothing to compare."
    assert "nothing is concluded" in verdict(results({"sparse": 1.0, "abc": np.nan}))


def test_undefined_numbers_are_dashes_and_nulls(tmp_path):
    found = results({"sparse": 1.0, "uniform": 1.0}, credit_truth={"sparse": np.full((5, 1), 0.5)})
    report = build(found)
    assert tables.text(table(report)["credit_truth"]["uniform"]) == "–"
    write(report, tmp_path)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["table"]["credit_truth"]["uniform"]["value"] is None
    assert saved["per_seed"]["sparse"]["credit_truth"] == [0.5] * 5


def test_files_say_the_same(tmp_path):
    report = build(results({"sparse": 1.0, "abc": 2.0}))
    write(report, tmp_path)
    saved = json.loads((tmp_path / "results.json").read_text())
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()))
    for row, line in zip(report.rows, lines, strict=True):
        for arm, value in saved["table"][row.key].items():
            written = {
                part: line.get(f"{arm}{end}") for part, end in (("value", ""), ("low", " low"), ("high", " high"))
            }
            known = {part: float(text) for part, text in written.items() if text not in (None, "", "nan")}
            assert known == {part: value[part] for part in written if value[part] is not None}
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert saved["verdict"] in text
    assert "| average score | 1.00 [0.902, 1.10] | 2.00 [1.90, 2.10] |" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.23456, "1.23"),
        (0.99999, "1.00"),
        (-0.01234, "-0.0123"),
        (0.0, "0"),
        (123.4, "123"),
        (1e7, "1e+07"),
        (1e-9, "1e-09"),
    ],
)
def test_numbers(value, shown):
    assert tables.number(value) == shown


def test_markup_in_a_label_is_text():
    odd = results({"sparse": 1.0, "[red]a|b": 2.0})
    console = Console(width=120)
    with console.capture() as captured:
        tables.show(build(odd).table, console)
    assert "[red]a|b" in captured.get()
    assert "[red]a\\|b" in tables.markdown(build(odd).table)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_arm_is_printed_at_every_width(width):
    arms = ("sparse", "uniform", "abc", "abc-d", "abc-d2", "sparse-lam1")
    console = Console(width=width)
    with console.capture() as captured:
        tables.show(build(results(dict.fromkeys(arms, 1.0))).table, console)
    assert all(arm in captured.get().split() for arm in arms)


def test_a_method_keeps_its_colour_whoever_else_is_there():
    few, many = (
        figures.line_styles(["abc"]),
        figures.line_styles(["sparse-lam1", "abc-d", "sparse", "abc", "abc-beta1"]),
    )
    assert few["abc"] == many["abc"]
    assert many["sparse"] == (figures.COLOURS["sparse"], "-")
    assert many["sparse-lam1"][0] == many["sparse"][0]
    assert many["abc-beta1"][0] == many["abc"][0] != many["abc-d"][0]
    assert len(set(many.values())) == len(many)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 5])
def test_every_figure_is_written(tmp_path, seeds):
    example = CreditMap(
        prompt="p",
        tokens=("a", "$x^", "<eos>"),
        score=1.0,
        rows={"sparse": (0.0, 0.0, 1.0)},
        reference_rows={"truth": (1.0, 0.0, 0.0)},
    )
    paths = figures.write(results({"sparse": 1.0, "abc": 2.0}, seeds=seeds), example, tmp_path)
    assert {path.name for path in paths} == {
        f"{name}.{kind}"
        for name in ("summary", "reward", "kl", "value_loss", "explained_variance")
        for kind in ("png", "pdf")
    }
    assert all(path.stat().st_size > 5000 for path in paths)
    assert (tmp_path / "summary.pdf").read_bytes().count(b"/Type3") == 0  # fonts stay editable


def test_a_long_response_shows_its_end():
    tokens = tuple(f"word{i}" for i in range(100))
    example = CreditMap(prompt="p", tokens=tokens, score=1.0, rows={"sparse": (0.0,) * 99 + (1.0,)})
    axes = Figure().add_subplot()
    figures.strip(axes, example)
    shown = [text.get_text() for text in axes.texts]
    assert shown[-1] == "word99"
    assert "word0" not in shown
    assert f"its last {len(shown)} tokens" in axes.get_title(loc="left")


@pytest.mark.parametrize("width", [60, 80, 100, 110, 200])
def test_every_number_of_every_arm_is_in_the_terminal_at_any_width(width):
    arms = ("sparse", "uniform-beta0.8", "abc", "potential-projection-ridge0.01-decay0.9", "x" * 70)
    built = build(results({arm: -1234.5 - 100 * number for number, arm in enumerate(arms)}))
    console = Console(width=width, record=True, file=io.StringIO())
    tables.show(built.table, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    written = "".join(lines)
    titles = sum(row.title.startswith("…") for row in built.rows)  # in every block of arms; a text cut off has one more
    assert written.count("…") % titles == 0
    for row in built.rows:
        for value in row.values.values():
            assert all(part in written for part in tables.text(value).replace(" [", "\n[").splitlines())


def test_one_seed_prints_no_interval():
    built = build(results({"sparse": 1.0, "abc": 50.0}, seeds=1))
    assert tables.text(table(built)["average_score"]["abc"]) == "49.9"
    assert "[" not in tables.markdown(built.table)
    assert built.verdict.startswith("One seed gives no range, so no method is called better")
    assert any("One seed has no range" in note for note in built.notes)


def test_wide_characters_are_measured_by_their_cells():
    console = Console(width=60, record=True, file=io.StringIO())
    tables.show(build(results({"sparse": 1.0, "方法方法方法方法": 2.0, "abc": 3.0})).table, console)
    assert max(map(cell_len, console.export_text().splitlines())) <= 60


def test_the_notes_explain_only_what_is_in_the_table():
    (first, brackets, secondary, _) = build(results({"sparse": 1.0, "abc": 2.0})).notes
    assert "best" in secondary
    assert "Equal time" not in secondary
    assert first.endswith("otherwise. – means undefined: sparse has no difference to itself.")
    assert brackets.startswith("IQM: ")
    (first, brackets, secondary, _) = build(results({"uniform": 1.0, "abc": 2.0}, seeds=3)).notes
    assert "best" not in secondary
    assert first.endswith("unless the row says otherwise.")
    assert "IQM" not in brackets
    known = {"abc": curve(0.1, 0.0, 5)}
    (first, *_) = build(results({"uniform": 1.0, "abc": 2.0}, credit_truth=known)).notes
    assert first.endswith("– means undefined: credit that is equal on all tokens has no ranks.")
