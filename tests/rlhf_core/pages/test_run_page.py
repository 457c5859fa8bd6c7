"""The page of a run, from its folder alone: what it says, and that no text of a model becomes markup."""

import json
import math
from html.parser import HTMLParser

import pytest
from run_folders import HOSTILE, run_folder

from rlhf_core.pages.document import is_ours
from rlhf_core.pages.health import health, ruin, table
from rlhf_core.pages.run_page import page, summary
from rlhf_core.pages.run_record import as_number, read_run


class Reader(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path / "run")


def append(folder, **figures):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")


def changed(folder, name, **values):
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**found, **values}))


def test_a_page_has_every_section_and_says_where_the_run_stands(folder):
    content = page(read_run(folder))
    for heading in ("Curves", "What changed", "Credit", "Health", "How to repeat it"):
        assert f">{heading}</h2>" in content
    assert "Step 12 of 20, written 2026-01-02 03:04 UTC." in content
    assert "rose from 0.1 (step 1) to 1.3 (step 12)" in content
    assert "All health figures are as they should be." in content
    for title in ("Score", "KL, nats per response", "Length, tokens", "Policy loss", "Value loss", "Entropy"):
        assert f"<h3>{title}" in content
    assert ">target</text>" in content
    assert "response 0 of step 0" in content
    assert "response 0 of step 12" in content
    assert is_ours(content)
    assert '<span class="word">--ppo.learning_rate</span> 1e-5' in content


def test_texts_of_models_become_no_markup_and_nothing_is_fetched_or_run(folder):
    content = page(read_run(folder))
    read = Reader(content)
    assert not read.tags & {"script", "img", "link", "iframe", "object", "form", "base"}
    assert not {name for name in read.attributes if name.startswith("on")} | (read.attributes & {"src", "action"})
    assert "\u202e" not in content
    assert content.count("default-src 'none'") == 1
    assert any("<script>alert(1)</script>" in text for text in read.texts)  # as text


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    folder = run_folder(tmp_path / "run")
    for name in ("metrics.jsonl", "report.json"):
        (folder / name).unlink()
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(lines[:2]))
    content = page(read_run(folder))
    assert "Step 0." in content
    assert "Responses before the first step." in content
    assert "Health" not in content


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_named(folder):
    whole = page(read_run(folder))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "sco')
    assert page(read_run(folder)) == whole
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 13 is not a record"):
        read_run(folder)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no settings\.json"):
        read_run(tmp_path)


def test_damaged_credit_is_refused_by_name(folder):
    changed(folder, "report.json", credit=[{"prompt": "p", "tokens": ["a"], "score": 1.0, "rows": {"sparse": [1, 2]}}])
    with pytest.raises(ValueError, match=r"report\.json: its credit is damaged \(CreditMap: sparse has 2 values"):
        page(read_run(folder))


@pytest.mark.parametrize(
    ("figures", "concern"),
    [
        ({"clip_fraction": 0.31}, "tokens clipped"),
        ({"conservation_error": 2e-4}, "conservation error"),
        ({"skipped_minibatches": 1.0}, "minibatches skipped"),
        ({"refused_minibatches": 2.0}, "minibatches refused"),
        ({"skipped_rollout": 1.0}, "steps skipped"),
        ({"entropy": 1e-6}, "entropy"),
        ({"kl": 61.0}, "KL from the reference"),
        ({"value_loss": 20.1, "return_mean": 1.0, "return_variance": 1.0}, "value loss"),
        ({"score": -5.0, "score_std": 1.0}, "score"),
    ],
)
def test_a_figure_out_of_bounds_is_said_on_top_and_in_the_table(folder, figures, concern):
    append(folder, step=13, **figures)
    run = read_run(folder)
    [row] = [row for row in health(run) if row.advice]
    assert row.name.startswith(concern)
    assert f"Look at: {row.name}." in page(run)


def row_of(folder, name):
    (row,) = [row for row in health(read_run(folder)) if row.name.startswith(name)]
    return row


@pytest.fixture
def bare(folder):
    """The same run before its first step, with limits of responses."""
    (folder / "metrics.jsonl").write_text("")
    return folder


def limited(folder, low, high):
    config = json.loads((folder / "settings.json").read_text())["config"]
    changed(folder, "settings.json", config={**config, "max_length": [low, high]})


@pytest.mark.parametrize(
    ("name", "values", "verdict"),
    [
        ("ratio_max", [112.0, 4.0, 5.0], "fine"),  # the embedded task's first step
        ("ratio_max", [112.0, 14.0, 5.0], "note"),
        ("ratio_max", [112.0] * 4, "note"),  # too few steps
        ("ratio_max", [29.9] * 5, "note"),
        ("ratio_max", [30.1] * 5, "look"),
        ("kl", [0.0, 30.1], "note"),
        ("kl", [0.0, 60.1, 0.0], "look"),
        ("entropy", [0.003, 0.003], "look"),  # gone in the first step
        ("entropy", [2.0, 0.21], "fine"),
        ("score", [1.0, 0.0, 0.0, 0.0, 0.1], "fine"),
        ("score", [1.0, 0.0, 0.0, 0.0, -0.1], "look"),
        ("explained_variance_over_position", [0.1, 0.2], "fine"),
        ("explained_variance_over_position", [0.1, -1.0], "note"),
        ("explained_variance_over_position", [0.1, -45.0], "look"),
        ("explained_variance_over_position", [-70.0, -45.0], "note"),  # a critic at 0 and scores far from it
        ("explained_variance_over_position", [-27.0, -21.0, -60.0, -101.0], "note"),
        ("explained_variance_over_position", [-27.0, -121.0, -160.0, -101.0], "look"),
        ("explained_variance_over_position", [-70.0] * 51, "look"),
        ("explained_variance_over_position", [0.1] * 4 + [-45.0] + [0.1] * 3, "fine"),
    ],
)
def test_limits_part_runs_that_learn_from_runs_that_are_ruined(bare, name, values, verdict):
    titles = {"ratio_max": "largest", "kl": "KL", "explained_variance_over_position": "explained variance over"}
    for step, value in enumerate(values, 1):
        append(bare, step=step, **{"score_std": 1.0, name: value})
    row = row_of(bare, titles.get(name, name))
    assert row.verdict == verdict
    assert bool(row.advice) == (verdict == "look")
    assert f'<span class="{"ok" if verdict == "fine" else verdict}">{verdict}</span>' in table([row])


@pytest.mark.parametrize(
    ("limits", "values", "note"),
    [
        ((24, 24), [0.6, 0.4], "cut off and scored unfinished"),
        ((16, 24), [0.6, 0.4], ""),  # drawn limits cut responses off on purpose
        ((16, 24), [0.6, 0.1], "it fell from 0.6"),
        ((24, 24), [0.6, 0.6], ""),
    ],
)
def test_the_share_that_ends_with_eos_is_held_against_the_limits_of_responses(bare, limits, values, note):
    limited(bare, *limits)
    for step, value in enumerate(values, 1):
        append(bare, step=step, finished=value)
    row = row_of(bare, "responses that end with EOS")
    assert note in row.note
    assert row.verdict == ("note" if note else "fine")


def test_a_value_loss_is_held_against_the_returns_at_the_start_and_now(bare):
    """A critic that says 0 has half the mean square of the returns as its loss."""
    append(bare, step=1, value_loss=2.5, return_mean=2.0, return_variance=1.0)
    append(bare, step=2, value_loss=40.0, return_mean=0.0, return_variance=0.1)
    append(bare, step=3, value_loss=90.0, return_mean=3.0, return_variance=0.1)
    row = row_of(bare, "value loss")
    assert (row.worst, row.verdict) == ("90 at step 3", "fine")
    append(bare, step=4, value_loss=3000.0, return_mean=3.0, return_variance=0.1)
    row = row_of(bare, "value loss")
    assert row.worst == "3000 at step 4"
    assert row.advice.startswith("the critic has diverged (step 4)")


@pytest.mark.parametrize(
    ("figures", "begins"),
    [
        (
            {"entropy": 0.0, "kl": 168.0},
            "The policy has collapsed to few responses (entropy 0 nats per token, KL 168 nats per response where the "
            "target is 6). Read the responses before you trust the score. Step 13 of 20",
        ),
        ({"kl": 61.0}, "The policy is far from its reference (KL 61 nats per response where the target is 6). Read"),
        ({"kl": 60.0}, "Step 13 of 20"),
    ],
)
def test_a_ruined_policy_is_said_before_its_score(folder, figures, begins):
    append(folder, step=13, score=3.95, **figures)
    said = summary(read_run(folder))
    assert said.startswith(begins)
    assert "rose from 0.1 (step 1) to 3.95" in said


@pytest.mark.parametrize(
    ("scores", "begins"),
    [
        (
            [1.0, 3.0, -0.1],
            "The score has fallen below where it began (1 at first, 3 at its best, −0.1 at the end). Read",
        ),
        ([0.0, 3.0, 1.0], "The score has fallen far below its best (0 at first, 3 at its best, 1 at the end). Read"),
        ([0.0, 3.0, 2.1], "Step 3"),
        (
            [*[3.0] * 8, 1.0, 0.0],
            "The score has fallen below where it began (3 at first, 3 at its best, 0.5 at the end, in means over 2 "
            "steps). Read",
        ),
    ],
)
def test_a_score_that_fell_is_said_first(bare, scores, begins):
    for step, score in enumerate(scores, 1):
        append(bare, step=step, score=score, score_std=1.0)
    run = read_run(bare)
    assert summary(run).startswith(begins)
    assert bool(ruin(run)) == (not begins.startswith("Step"))


def test_means_of_few_responses_may_fall_by_chance(bare):
    config = json.loads((bare / "settings.json").read_text())["config"]
    changed(bare, "settings.json", config={**config, "rollout_batch_size": 8})
    append(bare, step=1, score=-6.1, score_std=1.6)
    append(bare, step=2, score=-9.2, score_std=1.4)
    assert row_of(bare, "score").verdict == "fine"
    append(bare, step=3, score=-9.4, score_std=1.4)  # 2 standard deviations are 4 standard errors
    assert row_of(bare, "score").verdict == "look"


def test_notes_are_no_alarm(folder):
    append(folder, step=13, explained_variance_over_position=-0.6)
    append(folder, step=14, explained_variance_over_position=-0.6)
    append(folder, step=15, explained_variance_over_position=-0.6)
    said = summary(read_run(folder))
    assert "All health figures are as they should be; there are notes on: explained variance over position." in said


def test_a_run_that_ended_with_an_error_says_so_first(folder):
    changed(folder, "report.json", error="Diverged: 4 optimizer steps in a row had to be skipped")
    said = summary(read_run(folder))
    assert "It ended with an error: Diverged: 4 optimizer steps in a row had to be skipped" in said
    assert "rose" not in said
    assert "as they should be" not in said


def test_a_method_that_does_not_conserve_is_not_blamed_for_it(folder):
    append(folder, step=13, conservation_error=3.0)
    assert any(row.advice for row in health(read_run(folder)))
    changed(folder, "report.json", conserving=False)
    run = read_run(folder)
    assert not any(row.advice for row in health(run))
    [row] = [row for row in health(run) if row.name == "conservation error"]
    assert row.worst == "3"


def test_values_that_json_has_not_are_read_and_what_is_no_number_is_undefined():
    assert math.isnan(as_number("nan"))
    assert as_number("-inf") == -math.inf
    assert as_number("0.5") == 0.5
    assert all(math.isnan(as_number(value)) for value in (None, True, "x", [1]))


def test_a_hostile_prompt_is_shown_whole(folder):
    shown = "".join(Reader(page(read_run(folder))).texts)
    assert HOSTILE.replace("\u202e", "\\u202e") in shown
