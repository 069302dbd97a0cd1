"""Sphinx configuration: ``uv run --group docs sphinx-build docs docs/_build`` writes the site.

Its first page is ``docs/_build/index.html``.

The README, contributing, changelog, model cards and report pages are copied here first, so that the
site includes them and checks links to them, and the page of flags is generated. Git ignores all of
these.
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
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
#: Copied from the repository's root, with the pictures that the pages show.
COPIED = (*PAGES, "reports/**/*.md", "reports/**/*.png", "weights/*/*.md", "weights/*/*.png")
#: Folders of ``reports/`` that git ignores.
NOT_COPIED = {"scratch", "reproduced"}
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
    """Copy the pages outside ``docs/`` into it."""
    for folder in ("reports", "weights"):
        shutil.rmtree(DOCS / folder, ignore_errors=True)
    for pattern in COPIED:
        for path in ROOT.glob(pattern):
            name = path.relative_to(ROOT)
            if NOT_COPIED.intersection(name.parts):
                continue
            copy = DOCS / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def link_within(app: Sphinx, docname: str, source: list[str]) -> None:
    """Rewrite links from and to the copied pages to their places in the site."""
    copied = tuple(page.removesuffix(".md") for page in PAGES)
    if docname in copied:  # files that are not part of the site become downloads
        outside = rf"\]\((?!docs/|reports/|weights/|#|\w+:|{'|'.join(PAGES)})"
        source[0] = re.sub(outside, "](../", source[0])
    if docname.startswith((*copied, "reports/", "weights/")):
        source[0] = re.sub(r"(\]\((?:\.\./)*)docs/", r"\1", source[0])
    else:
        inside = rf"(\]\((?:\.\./)*)\.\./({'|'.join(copied)}|reports/|weights/)"
        source[0] = re.sub(inside, r"\1\2", source[0])


def setup(app: Sphinx) -> None:
    """Prepare the pages; Sphinx calls this."""
    import generate  # docs/generate.py

    copy_pages()
    (DOCS / "commands.md").write_text(generate.commands_page(), encoding="utf-8")
    app.connect("source-read", link_within)
