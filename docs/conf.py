"""Sphinx configuration: ``uv run --group docs sphinx-build docs docs/_build`` writes the site.

Its first page is ``docs/_build/index.html``.

The README, contributing, changelog, model cards and report pages are copied here first, so that the
site includes them and checks links to them, and pages of flags and of results are generated. Git
ignores all of these.
"""

import re
import shutil
import sys
from pathlib import Path
from textwrap import wrap
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import drawing  # docs/drawing.py
import generate

project = html_title = "DJSW"
author = copyright = "sigurd, waly, dennis"
extensions = ["myst_parser", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.apidoc"]
exclude_patterns = ["_build", ".*"]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
#: Copied from the repository's root, with the pictures that the pages show, and what they link to.
COPIED = (*PAGES, "reports/**/*.md", "reports/**/*.png", "weights/*/*.md", "weights/*/*.png")
LINKED = [f"{top}/**/*.{end}" for top in ("reports", "weights") for end in ("csv", "json", "png")]
suppress_warnings = ["toc.not_included"]  # reports are reached by links
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["djsw.css"]
html_math_renderer = "mathml"  # Sphinx's own renderers need a network or LaTeX
smartquotes_action = "qe"  # no dashes, which flags would become
copybutton_selector = "div.highlight-bash pre, div.highlight-python pre"

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

apidoc_modules = [
    {"path": f"../{package}", "destination": f"api/{package}", "separate_modules": True}
    for package in ("DJSW", "models", "datasetprep", "utils")
]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 240
apidoc_automodule_options = {"members", "show-inheritance"}


def copy_files(folder: Path, *patterns: str) -> None:
    """Copy files of the repository to their places in a folder."""
    for pattern in patterns:
        for path in ROOT.glob(pattern):
            name = path.relative_to(ROOT)
            if generate.NOT_PUBLISHED.isdisjoint(name.parts):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)


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

    source[0] = generate.with_vector_figures(DOCS / docname, source[0])


def wrap_commands(app: Sphinx, docname: str, source: list[str]) -> None:
    """Wrap commands of over 60 columns for a telephone; tests and GitHub read them on one line."""

    def wrapped(line: re.Match[str]) -> str:
        command, _, comment = line[0].partition("   #")
        together = r"'[^']*'|\"[^\"]*\"|--\w+ (?!-)|>+ "  # quoted text; a flag and its value
        whole = re.sub(together, lambda found: found[0].replace(" ", "\0"), command.rstrip())
        parts = wrap(whole, 41, break_long_words=False, break_on_hyphens=False)
        return (f"#{comment}\n" if comment else "") + " \\\n  ".join(parts).replace("\0", " ")

    texts = re.split(r"(?<=```bash\n)(.*?)(?=```)", source[0], flags=re.DOTALL)
    texts[1::2] = [re.sub(r"(?m)^(?!#).{61,}$", wrapped, block) for block in texts[1::2]]
    source[0] = "".join(texts)


def shorten_reference(app: Sphinx, doctree: nodes.document) -> None:
    """Remove values of constants that take more than two lines; set colons after parameters."""
    for dash in [text for text in doctree.findall(nodes.Text) if text == " -- "]:
        dash.parent.replace(dash, nodes.Text(": "))
    for value in list(doctree.findall(addnodes.desc_annotation)):
        if len(value.astext()) > 160:
            value.parent.remove(value)


def visit_math(writer: Any, node: nodes.Element) -> None:
    """Write a formula as MathML."""
    writer.body.append(tex2mathml(node.astext(), isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Prepare the pages; Sphinx calls this."""
    for folder in ("reports", "weights"):
        shutil.rmtree(DOCS / folder, ignore_errors=True)
    copy_files(DOCS, *COPIED)
    copy_files(app.outdir, *LINKED)
    for page, text in generate.site_pages().items():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    # Now, since autodoc replaces the defaults of functions.
    (Path(app.outdir) / "try.html").write_text(drawing.page(), encoding="utf-8")
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("source-read", link_within)
    app.connect("source-read", wrap_commands)
    app.connect("doctree-read", shorten_reference)
