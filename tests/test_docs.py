"""The documents: their commands run, their links resolve, generated files are up to date."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from conftest import (
    ROOT,
    checkout_files,
    clean_environment,
    copy_checkout,
    digit_images,
    write_datasets,
    write_h5,
)

sys.path.insert(0, str(ROOT / "docs"))
import generate

from DJSW import results

#: Pages in docs/ that docs/conf.py writes.
COPIES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "commands.md")
PAGES = ["README.md"] + [
    path.relative_to(ROOT).as_posix()
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.name not in COPIES
]
#: Commands that run the tests, and so would start themselves.
OWN = ("uv run pytest", ".ci/run")
BLOCK = re.compile(r"(<!-- needs LUMI -->\n)?```bash\n(.*?)```", re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the shell blocks of a page that can run here."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block for elsewhere, block in BLOCK.findall(text) if not elsewhere]
    return [block for block in blocks if not any(own in block for own in OWN)]


@pytest.fixture
def clone(tmp_path):
    """A checkout with results and tiny datasets, in which ``uv run`` runs this Python."""
    folder = copy_checkout(tmp_path / "clone")
    write_datasets(folder / "data" / "processed")
    shims = tmp_path / "bin"
    shims.mkdir()
    scripts = Path(sys.executable).parent
    with processes.serving() as python:
        for name, text in {
            "pip": '[ "$*" = "install uv" ]',
            "uv": '[ "$1" = run ] && shift\ncase $1 in\n'
            f'*.py) exec {shlex.join(python)} "$@" ;;\n'
            f'*) exec {shlex.quote(str(scripts))}/"$@" ;;\nesac',
        }.items():
            (shims / name).write_text(f"#!/bin/sh\n{text}\n")
            (shims / name).chmod(0o755)
        environment = clean_environment()
        environment["PATH"] = f"{shims}{os.pathsep}{environment['PATH']}"
        yield folder, environment


def python_blocks(page):
    """Return the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def add_examples(folder):
    """Add the README's network and person, and the dataset of docs/extending.md."""
    readme, extending = map(python_blocks, ("README.md", "docs/extending.md"))
    (folder / "models" / "mine.py").write_text(readme[0])
    tables = folder / "DJSW" / "pipelines.py"
    text = tables.read_text()
    for table, entry in (("PEOPLE = {\n", readme[1]), ("DATASETS = {\n", extending[0])):
        assert text.count(table) == 1
        text = text.replace(table, table + entry)
    tables.write_text(text)
    images = digit_images(tuple(range(10)), (28, 28), 120)
    for name in ("mnist_0_9.h5", "mnist_test_0_9.h5"):
        write_h5(folder / "data" / "processed" / name, *images)


@pytest.mark.skipif(shutil.which("bash") is None, reason="the commands are bash's")
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_every_command_runs(page, clone, request):
    folder, environment = clone
    if "datasetprep/" in "".join(commands(page)):
        shutil.copytree(request.getfixturevalue("raw_data"), folder / "data" / "raw")
    if page in ("README.md", "docs/extending.md"):
        add_examples(folder)
    if page == "docs/extending.md":  # continues from the README
        (folder / "weights" / "MyMLP").mkdir()
    for block in commands(page):
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"
    if page == "README.md":
        assert (folder / "docs" / "_build" / "index.html").exists()


def test_script_from_python_runs(clone, run_script):
    """The script of docs/python.md trains, evaluates and prints the accuracy."""
    folder, environment = clone
    (block,) = python_blocks("docs/python.md")
    statements = [line for line in block.splitlines() if line and "import" not in line.split()]
    assert len(statements) <= 5
    (folder / "script.py").write_text(block)
    ran = run_script(folder / "script.py", cwd=folder, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    metrics = json.loads((folder / "reports" / "notebook_metrics.json").read_text())
    assert float(ran.stdout.splitlines()[-1]) == metrics["metrics"]["accuracy"]


def test_no_command_is_left_out():
    """All shell blocks are marked as bash and run; only those for the cluster are exempt."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not re.search(r"^[ \t]+```bash|```(sh|shell|console)\b", text, re.MULTILINE), page
        assert len(BLOCK.findall(text)) == text.count("```bash"), page
        assert "<!-- needs" not in text or page in ("README.md", "docs/lumi.md"), page
    assert "uv run DJSW/main.py" in commands("README.md")[0] and len(commands("README.md")) >= 4


def test_links_resolve():
    """Links within the repository lead to files; Sphinx checks the headings that they name."""
    for page in checkout_files():
        if page.endswith(".md"):
            for link in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8")):
                if "://" not in link:
                    assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


def test_drawings_are_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", copy_checkout(tmp_path, "reports", "weights"))
    for path, text in generate.drawings().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: uv run docs/generate.py"


def test_troubleshooting_quotes_messages():
    """Each quoted message is in the code, its parts in order."""
    code = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in checkout_files()
        if re.fullmatch(r"(DJSW|utils|datasetprep|models)/.*\.py|run\.sh", name)
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    code = re.sub(r"\{[^{}\n]*\}", "", code)
    others = "the following arguments are required: --output_dir No space left on device"
    others += " error: externally-managed-environment"
    table = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert len(rows) >= 12
    for row in rows:
        for quoted in re.findall(r"`(.+?)`", row):
            parts = [re.escape(part.strip()) for part in quoted.split("…") if part.strip()]
            assert parts and re.search(".{0,200}?".join(parts), code + others), quoted
