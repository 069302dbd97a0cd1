"""Sphinx: ``uv run sphinx-build -W -c docs . docs/_build``, then open
``docs/_build/docs/index.html``.

The source is the whole repository, so that links to results and model cards are checked too.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = html_title = "DJSW"
author = copyright = "sigurd, waly, dennis"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["README.md", "docs/**", "reports/**.md", "weights/*/README.md"]
exclude_patterns = ["docs/_build", ".*", "data"]
suppress_warnings = ["toc.not_included"]  # reports are reached by links
html_theme = "furo"

myst_heading_anchors = 3

apidoc_modules = [
    {"path": f"../{package}", "destination": f"docs/api/{package}", "separate_modules": True}
    for package in ("DJSW", "models", "datasetprep", "utils")
]
autodoc_member_order = "bysource"
apidoc_automodule_options = {"members", "show-inheritance"}
