"""Sphinx makes one book of these pages and the API reference: ``make docs``. It needs no network.

The pages are plain Markdown, with relative links, so that they also read well where no one has built anything.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "dense-rlhf"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
source_suffix = {".md": "markdown"}

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
    app.connect("source-read", files_beside_the_book)
