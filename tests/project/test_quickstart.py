"""docs/quickstart.ipynb runs from top to bottom, and what is stored of it is small and fit to be read."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs/quickstart.ipynb"


def stored() -> list[dict[str, object]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_its_stored_outputs_are_small_complete_and_of_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert [cell["execution_count"] for cell in stored()] == [*range(1, len(stored()) + 1)]
    assert not re.search(r"/(?:home|root|tmp|work|Users)/|stderr|\"error\"", text)


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([\w./]+\.md)", NOTEBOOK.read_text(encoding="utf-8"))
    assert len(links) > 2
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []


def test_the_book_shows_its_texts_its_code_and_what_that_printed():
    page = runpy.run_path(str(ROOT / "docs/conf.py"))["notebook_as_markdown"](NOTEBOOK.read_text(encoding="utf-8"))
    blocks = re.findall(r"^```(\w+)\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE)
    outputs = [output for cell in stored() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream"}  # the page holds no other kind
    assert [text for language, text in blocks if language == "python"] == ["".join(cell["source"]) for cell in stored()]
    printed = ["".join("".join(output["text"]) for output in cell["outputs"]).rstrip() for cell in stored()]
    assert [text for language, text in blocks if language == "text"] == [text for text in printed if text]
    assert page.startswith("# Quick start\n")


@pytest.mark.slow
def test_it_runs_and_the_policy_learns(toy_cache, tmp_path, monkeypatch):
    """The models are those of the other tests, so that only the training is waited for."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/dense-rlhf").symlink_to(toy_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads that wait for each other beside other tests take minutes
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    printed = "".join(
        o.get("text", "") for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stdout"
    )
    before, after = re.search(r"^score +(\S+) -> +(\S+)$", printed, re.MULTILINE).groups()
    assert float(after) > float(before) + 1
