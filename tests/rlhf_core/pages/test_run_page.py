"""The page of a run, from its folder alone: what it says, and that no text of a model becomes markup."""

import json
import math
from html.parser import HTMLParser

import pytest
from run_folders import HOSTILE, run_folder

from rlhf_core.pages.document import is_ours
from rlhf_core.pages.health import health
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
        ({"ratio_max": 10.1}, "largest probability ratio"),
        ({"conservation_error": 2e-4}, "conservation error"),
        ({"skipped_minibatches": 1.0}, "minibatches skipped"),
        ({"refused_minibatches": 2.0}, "minibatches refused"),
        ({"skipped_rollout": 1.0}, "steps skipped"),
        ({"finished": 0.4}, "responses that end with EOS"),
        ({"entropy": 1e-6}, "entropy"),
        ({"kl": 31.0}, "KL from the reference"),
    ],
)
def test_a_figure_out_of_bounds_is_said_on_top_and_in_the_table(folder, figures, concern):
    append(folder, step=13, **figures)
    run = read_run(folder)
    [row] = [row for row in health(run) if row.advice]
    assert row.name.startswith(concern)
    assert f"Look at: {row.name}." in page(run)


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
