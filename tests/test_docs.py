"""The documents: every command in them runs, links lead somewhere, generated pages are fresh."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, clean_environment, write_datasets
from PIL import Image

sys.path.insert(0, str(ROOT / "docs"))
import generate

TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()
PAGES = [name for name in TRACKED if re.fullmatch(r"README\.md|docs/.*\.md", name)]
#: Tests that run tests would not end.
OWN = ("uv run pytest", ".ci/run")
BLOCK = re.compile(r"(<!-- needs LUMI -->\n)?```bash\n(.*?)```", re.DOTALL)


def commands(page: str) -> list[str]:
    """The shell blocks of a page that can run here."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block for elsewhere, block in BLOCK.findall(text) if not elsewhere]
    return [block for block in blocks if not any(own in block for own in OWN)]


@pytest.fixture
def clone(tmp_path):
    """A checkout with results, tiny datasets, a photo and two scans; ``uv run`` is this Python."""
    folder = tmp_path / "clone"
    for name in TRACKED:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    write_datasets(folder / "data" / "processed")
    (folder / "scans").mkdir()
    page = np.full((90, 70), 240, dtype=np.uint8)
    page[20:70, 30:38] = 20
    for name in ("photo.jpg", "scans/one.png", "scans/two.png"):
        Image.fromarray(page).save(folder / name)
    shims = tmp_path / "bin"
    shims.mkdir()
    beside = Path(sys.executable).parent
    for name, text in {
        "pip": '[ "$*" = "install uv" ]',
        "uv": '[ "$1" = run ] && shift\ncase $1 in\n'
        f'*.py) exec "{sys.executable}" "$@" ;;\n*) exec "{beside}/"$@ ;;\nesac',
    }.items():
        (shims / name).write_text(f"#!/bin/sh\n{text}\n")
        (shims / name).chmod(0o755)
    environment = clean_environment()
    environment["PATH"] = f"{shims}{os.pathsep}{environment['PATH']}"
    return folder, environment


@pytest.mark.real
@pytest.mark.skipif(shutil.which("bash") is None, reason="the commands are bash's")
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_every_command_runs(page, clone):
    folder, environment = clone
    if page == "README.md":
        readme = (ROOT / page).read_text(encoding="utf-8")
        model, entry = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        (folder / "models" / "mine.py").write_text(model)
        table = folder / "DJSW" / "pipelines.py"
        table.write_text(table.read_text().replace("PEOPLE = {\n", "PEOPLE = {\n" + entry))
    blocks = commands(page)
    used, made = "weights/SMLP/first_checkpoint", "--exp_name first --output_dir weights/SMLP"
    if used in "".join(blocks) and made not in "".join(blocks):
        blocks = commands("docs/getting_started.md")[:1] + blocks  # what they go on from
    for block in blocks:
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"


def test_commands_are_found():
    assert "uv run DJSW/main.py" in commands("README.md")[0] and len(commands("README.md")) >= 4
    assert sum(len(commands(page)) for page in PAGES) > 20
    assert not commands("docs/lumi.md")


def test_links_lead_somewhere():
    """Those of Markdown pages within the repository; Sphinx checks the headings they name."""
    for page in TRACKED:
        if page.endswith(".md"):
            for link in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8")):
                if "://" not in link:
                    assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


def test_generated_pages_are_up_to_date():
    """Else: ``uv run docs/generate.py``."""
    for path, text in generate.pages().items():
        assert path.read_text(encoding="utf-8") == text, path


def test_troubleshooting_quotes_what_is_said():
    """Each quoted part of a sentence stands in the code, or is Python's own."""
    code = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in TRACKED
        if re.fullmatch(r"(DJSW|utils|datasetprep|models)/.*\.py", name)
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    python = "the following arguments are required: --output_dir No space left on device"
    table = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert len(rows) >= 12
    for row in rows:
        for quoted in re.findall(r"`(.+?)`", row):
            for part in quoted.split("…"):
                plain = part.strip()
                assert plain in re.sub(r"\{[^{}]*\}", "", code) or plain in python, plain
