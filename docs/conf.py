"""Sphinx: ``uv run sphinx-build docs docs/_build``, then open ``docs/_build/index.html``.

The README, the model cards and the pages of reports are part of the site: they are copied beside
the pages here, so that links to them are checked too, and the page of flags is written. Git ignores
all of these.
"""

import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

project = html_title = "DJSW"
author = copyright = "sigurd, waly, dennis"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", ".*"]
#: Copied from the repository's root, with the pictures that the pages show.
COPIED = ("README.md", "reports/**/*.md", "reports/**/*.png", "weights/*/*.md", "weights/*/*.png")
suppress_warnings = ["toc.not_included"]  # reports are reached by links
html_theme = "furo"

myst_heading_anchors = 3

apidoc_modules = [
    {"path": f"../{package}", "destination": f"api/{package}", "separate_modules": True}
    for package in ("DJSW", "models", "datasetprep", "utils")
]
autodoc_member_order = "bysource"
apidoc_automodule_options = {"members", "show-inheritance"}


def copy_pages() -> None:
    """Copy what is not in ``docs/`` into it."""
    for folder in ("reports", "weights"):
        shutil.rmtree(DOCS / folder, ignore_errors=True)
    for pattern in COPIED:
        for path in ROOT.glob(pattern):
            copy = DOCS / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def link_within(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links from and to the copied pages to where they are in the site."""
    if docname == "README":  # what is not in the site is downloaded
        source[0] = re.sub(r"\]\((?!docs/|reports/|weights/|#|\w+:)", "](../", source[0])
    if docname.startswith(("README", "reports/", "weights/")):
        source[0] = re.sub(r"(\]\((?:\.\./)*)docs/", r"\1", source[0])
    else:
        source[0] = re.sub(r"(\]\((?:\.\./)*)\.\./(README|reports/|weights/)", r"\1\2", source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    import generate  # docs/generate.py

    copy_pages()
    (DOCS / "commands.md").write_text(generate.commands_page(), encoding="utf-8")
    app.connect("source-read", link_within)
