"""Sphinx makes one book of these pages and the API reference: ``make docs``. It needs no network.

The pages are plain Markdown, with relative links, so that they also read well where no one has built anything.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "dense-rlhf"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
source_suffix = {".md": "markdown", ".ipynb": "markdown"}

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False
myst_heading_anchors = 4

autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False

LINK = re.compile(r"\[([^\]]+)\]\(([\w./-]+)(?:#[\w-]*)?\)")


def notebook_as_markdown(notebook):
    """The text of a notebook: its Markdown, its code, and what each cell printed. Ours store no other output."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = "".join("".join(output["text"]) for output in cell.get("outputs", ()))
        parts += [f"```text\n{printed.rstrip()}\n```"] if printed else []
    return "\n\n".join(parts)


def notebooks(app, name, text):
    """Read a notebook as a page, before anything else looks at its links."""
    file = Path(app.env.doc2path(name))
    if file.suffix == ".ipynb":
        text[0] = f"{notebook_as_markdown(text[0])}\n\n{{download}}`This page as a notebook <{file.name}>`\n"


def files_beside_the_book(app, name, text):
    """Turn links to files that are no pages (README.md, say) into downloads, which the built book brings along."""
    folder = Path(app.srcdir, name).parent

    def link(match):
        target = (folder / match[2]).resolve()
        inside = target.is_relative_to(app.srcdir)
        return match[0] if inside or not target.is_file() else f"{{download}}`{match[1]} <{match[2]}>`"

    text[0] = LINK.sub(link, text[0])


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", notebooks)
    app.connect("source-read", files_beside_the_book)
