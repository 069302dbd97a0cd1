"""The documents: their commands run, their links resolve, generated files are up to date."""

import dataclasses
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import processes
import pytest
from conftest import (
    ROOT,
    checkout_files,
    clean_environment,
    copy_checkout,
    digit_images,
    python_blocks,
    write_datasets,
    write_h5,
)
from torch import nn

sys.path.insert(0, str(ROOT / "docs"))
import drawing
import generate

from datasetprep import create_svhn_dataset
from DJSW import recipes, results
from DJSW.pipelines import DATASETS
from utils.errors import MissingData
from utils.mnist_dataset import MnistH5Dataset

#: Pages in docs/ that docs/conf.py writes.
COPIES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "commands.md", "results.md")
PAGES = ["README.md"] + [
    path.relative_to(ROOT).as_posix()
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.name not in COPIES
]
#: Commands that run the tests, and so would start themselves.
OWN = ("uv run pytest", ".ci/run")
#: An identity for commits.
COMMITTER = {
    f"GIT_{who}_{what}": text
    for who in ("AUTHOR", "COMMITTER")
    for what, text in (("NAME", "reader"), ("EMAIL", "reader@example.org"))
}
BLOCK = re.compile(r"(<!-- needs LUMI -->\n)?```bash\n(.*?)```", re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the shell blocks of a page that can run here."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block for elsewhere, block in BLOCK.findall(text) if not elsewhere]
    return [block for block in blocks if not any(own in block for own in OWN)]


@pytest.fixture
def clone(tmp_path):
    """A clone with results and tiny datasets, in which ``uv run`` runs this Python."""
    folder = copy_checkout(tmp_path / "clone")
    write_datasets(folder / "data" / "processed")
    shims = tmp_path / "bin"
    shims.mkdir()
    scripts = Path(sys.executable).parent
    with processes.serving() as python:
        for name, text in {
            "pip": '[ "$*" = "install uv" ]',
            "uv": '[ "$1" = run ] && shift\ncase $1 in --group | --extra) shift 2 ;; esac\n'
            "case $1 in\n"
            f'*.py) exec {shlex.join(python)} "$@" ;;\n'
            f'*) exec {shlex.quote(str(scripts))}/"$@" ;;\nesac',
        }.items():
            (shims / name).write_text(f"#!/bin/sh\n{text}\n")
            (shims / name).chmod(0o755)
        environment = clean_environment() | COMMITTER
        environment["PATH"] = f"{shims}{os.pathsep}{environment['PATH']}"
        git(folder, "init", "--quiet")
        commit(folder)
        yield folder, environment


def git(folder, *arguments):
    """Run git in a clone and return its output."""
    environment = clean_environment() | COMMITTER
    ran = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def commit(folder):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=all")


def add_examples(folder, page):
    """Add the network and the person of a page, and its dataset, if it has one."""
    network, *entries = python_blocks(page)
    (name,) = re.findall(r'model="models\.(\w+):', entries[0])
    (folder / "models" / f"{name}.py").write_text(network)
    tables = folder / "DJSW" / "pipelines.py"
    text = tables.read_text()
    for table, entry in zip(("PEOPLE = dict(\n", "DATASETS = {\n"), entries, strict=False):
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
        add_examples(folder, page)
    if page == "README.md":  # docs/extending.md commits the network itself
        commit(folder)
    for block in commands(page):
        if "sphinx-build" in block:  # test_documentation_builds
            continue
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"
    left = git(folder, "status", "--porcelain", "--untracked-files=all").splitlines()
    if page == "docs/extending.md":  # what is to be published
        published = r"weights/CNet/|reports/standard/cnet_|weights/\w+/\w+_mine_?|README.md$"
        published += "|docs/pictures/newcomer.svg"
        left = [line for line in left if not re.match(rf".. ({published})", line)]
    assert not left, "git lists what a reader of the page leaves"


@pytest.mark.docs
@pytest.mark.skipif(
    find_spec("sphinx") is None or shutil.which("bash") is None,
    reason="needs Sphinx (uv run --group docs pytest -m docs) and bash",
)
def test_documentation_builds(clone):
    """The README's command builds the site, whose pages are whole and need no other host."""
    folder, environment = clone
    (command,) = [block for block in commands("README.md") if "sphinx-build" in block]
    ran = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        timeout=300,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "WARNING" not in ran.stderr and "ERROR" not in ran.stderr, ran.stderr
    assert (folder / "docs" / "_build" / "index.html").exists()
    for page, figure in (
        ("training", "smlp_standard_4_curves"),
        ("getting_started", "smlp_standard_4_confusion"),
        ("reports/robustness/published_robustness", "published_robustness_mnist_4_9"),
    ):
        text = (folder / "docs" / "_build" / f"{page}.html").read_text()
        assert f"_images/{figure}.svg" in text and f"{figure}.png" not in text
        assert (folder / "docs" / "_build" / "_images" / f"{figure}.svg").exists()
        assert "_static/djsw.css" in text
    assert not git(folder, "status", "--porcelain")
    site = folder / "docs" / "_build"
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    for path, text in pages.items():
        assert not re.search(r"<(?!a )[^>]*(src|href)=.(https?:)?//", text), f"{path}: another host"
        assert not re.search(r"[\u2013\u2014](?=[a-z_]+\b)", re.sub("<[^>]*>", "", text)), path
        for link in re.findall(r'(?:src|href)="([^"#?]+)', text):
            if not re.match(r"\w+:", link):
                assert (path.parent / html.unescape(link)).exists(), f"{path}: {link}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\W*(https?:)?//", path.read_text()), path
    assert "<math" in pages[site / "evaluation.html"] and "$" not in pages[site / "evaluation.html"]
    check_results(folder, pages[site / "results.html"])
    for page in PAGES:
        check_commands(page, pages[site / page.removeprefix("docs/").replace(".md", ".html")])


def check_results(folder, page):
    """Every record has its row, with what it says; a run and its evaluation share one."""
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)[1:]
    records = [path for top in ("weights", "reports") for path in (folder / top).rglob("*.json")]
    left = len(rows)
    for path in records:
        record, name = json.loads(path.read_text()), path.relative_to(folder).as_posix()
        if path.name.endswith("_metrics.json"):
            (row,) = [row for row in rows if f'href="{name}"' in row]
            assert f"{record['metrics']['accuracy']:.4f}" in row and record["username"] in row
            assert f"{record['intervals']['accuracy'][1]:.4f}" in row and "_report.html" in row
            left -= 1
        elif path.name.endswith("_run.json"):
            (row,) = [row for row in rows if f'href="{name}"' in row]
            assert record["sessions"][-1]["git"]["commit"][:7] in row
            assert f"<td><p>{record['settings']['seed']}</p></td>" in row
            left -= "_metrics.json" not in row
    assert left == 0 and len(rows) > 40


def check_commands(page, built):
    """The commands that a reader copies from the site are those of the file, in shorter lines."""
    blocks = re.findall(r'<div class="highlight-bash.*?<pre>(.*?)</pre>', built, re.DOTALL)
    found = [html.unescape(re.sub("<[^>]*>", "", block)) for block in blocks]
    wanted = [block for _, block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))]
    for block, text in zip(found, wanted, strict=True):
        assert shlex.split(block.replace("\\\n", ""), True) == shlex.split(text, True)
        assert all(len(line) < 61 or line.startswith("  ") for line in block.splitlines()), block


@pytest.fixture
def run_block(clone, run_script):
    """Run a Python block of docs/python.md as a script; return the last line of its output."""
    folder, environment = clone

    def run(number, most):
        block = python_blocks("docs/python.md")[number]
        lines = [line for line in block.splitlines() if line and "import" not in line.split()]
        assert len(lines) <= most
        (folder / "script.py").write_text(block)
        ran = run_script(folder / "script.py", cwd=folder, env=environment)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return (ran.stdout.splitlines() or [""])[-1]

    return run


def test_published_network_from_python(clone, run_block, run_script):
    """The page's ten lines give the metrics of ``DJSW/main.py``; plain torch loads the weights."""
    folder, environment = clone
    printed = [float(word) for word in run_block(0, 10).split()]
    flags = ("--username=sigurd", "--exp_name=same", "--output_dir=reports/scratch")
    weights = "--load_checkpoint=weights/SMLP/smlp_standard_4_checkpoint_best.pt"
    ran = run_script(folder / "DJSW" / "main.py", *flags, weights, cwd=folder, env=environment)
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads((folder / "reports/scratch/same_metrics.json").read_text())["metrics"]
    assert printed == [metrics["accuracy"], metrics["balanced_accuracy"]]
    assert run_block(1, 3) == ""


def test_training_from_python(clone, run_block):
    """The script of docs/python.md trains, evaluates and prints the accuracy."""
    folder, _ = clone
    assert len(python_blocks("docs/python.md")) == 3
    accuracy = float(run_block(2, 5))
    record = json.loads((folder / "reports" / "scratch" / "notebook_metrics.json").read_text())
    assert accuracy == record["metrics"]["accuracy"]
    assert record["model"]["arguments"]["hidden_size"] == 100


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


def test_recipe_of_the_page_is_an_entry():
    (entry,) = python_blocks("docs/recipes.md")
    ((name, own),) = eval(f"{{{entry}}}", vars(recipes)).items()
    assert name not in recipes.RECIPES and own.keys() < recipes.RECIPES["standard"].keys()
    assert all(isinstance(each, recipes.Recipe) for each in own.values())


def test_drawings_are_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", copy_checkout(tmp_path, "reports", "weights"))
    for path, text in generate.drawings().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: uv run docs/generate.py"


class Twice(nn.Module):
    """A layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(784, 784), nn.Linear(784, 6)

    def forward(self, x):
        return self.last(self.first(self.first(x.flatten(1))))


class Residual(Twice):
    """A branch around a layer."""

    def forward(self, x):
        x = x.flatten(1)
        return self.last(x + self.first(x))


class Conditional(Twice):
    """A layer that depends on the images."""

    def forward(self, x):
        return self.last(self.first(x.flatten(1)) if x.sum() > 1 else x.flatten(1))


class Reshaping(Twice):
    """A sequence that uses the number of images."""

    def forward(self, x):
        return self.last(self.first(x.view(x.shape[0], -1)).relu())


def test_drawing_of_a_cnn_has_its_stages():
    """The CNN of docs/extending.md, with the shapes that its comments and layers give."""
    module: dict[str, Any] = {}
    exec(python_blocks("docs/extending.md")[0], module)
    text = str(generate.drawing(module["CNet"](channels=1, classes=6), (1, 28, 28)))
    assert re.findall(r">([^<>\n]+)</text>", text) == [
        *("1 x 28 x 28", "image", "16 x 14 x 14", "conv 3 x 3"),
        *("32 x 4 x 4", "conv 3 x 3", "6", "logits"),
    ]
    sides = re.findall(r'width="(\d+)" height="(\d+)" rx', text)
    assert sides == [("84", "84"), *[("42", "42")] * 3, *[("12", "12")] * 3, ("16", "31")]
    ElementTree.fromstring(text)
    text = str(generate.drawing(module["CNet"](channels=3, classes=10), (3, 32, 32)))
    assert ">3 x 32 x 32</text>" in text and text.count('width="84" height="84" rx') == 3


@pytest.mark.parametrize("network", [Twice, Residual, Conditional])
def test_only_sequences_are_drawn(network):
    assert generate.drawing(network(), (1, 28, 28)) is None


def test_other_layers_are_not_drawn():
    attention = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.TransformerEncoderLayer(8, 2))
    unused = Reshaping()
    unused.rest = nn.Linear(1, 1)
    pooled = nn.Sequential(nn.Conv2d(1, 6, 5, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert generate.drawing(attention, (1, 28, 28)) is None
    assert generate.drawing(unused, (1, 28, 28)) is None
    assert ">784<" in str(generate.drawing(Reshaping(), (1, 28, 28)))
    assert ">6 x 1 x 1</text>" in str(generate.drawing(pooled, (1, 28, 28)))


def test_pictures_of_images_are_small():
    for name in ("data", "tuned"):
        assert 2000 < (ROOT / "docs" / "pictures" / f"{name}.png").stat().st_size < 27_000


@pytest.mark.parametrize("fetched", [True, False])
def test_picture_of_the_data_has_what_is_at_hand(fetched, tmp_path, processed, monkeypatch, capsys):
    """The first image of each class with its dataset, and its name; in color if one is."""
    if not fetched:
        (processed / "svhn.h5").unlink()

        def fetch(*_):
            raise MissingData("no network here")

        monkeypatch.setattr(create_svhn_dataset.raw_files, "fetch", fetch)
    saved = []
    monkeypatch.setattr(generate.figures, "save_mosaic", lambda *given: saved.append(given))
    generate.save_images()
    (_, _, images, captions, _), _ = saved
    assert images.shape[:3] == (37 if fetched else 27, 112, 112) and len(captions) == len(images)
    assert images.shape[3:] == ((3,) if fetched else ())
    assert captions[0] == "mnist_4_9" and "fashion\nankle boot" in captions
    assert ("left out    svhn: no network here" in capsys.readouterr().out) == (not fetched)
    first = MnistH5Dataset(processed / "usps_0_6.h5").images[0]
    expected = first.repeat(7, 0).repeat(7, 1)
    assert (images[6].reshape(112, 112, -1) == expected[..., None]).all()


def test_only_digits_are_drawn_on_the_page(monkeypatch):
    """A network of anything else is left out, and the page says so."""
    monkeypatch.setitem(
        DATASETS, "usps_0_6", dataclasses.replace(DATASETS["usps_0_6"], digit_size=0)
    )
    monkeypatch.setattr(drawing, "describe_dataset", lambda name, _: {"name": name})
    data = json.loads(re.findall(r"const DATA = (.*);\n", drawing.page())[0])
    assert "WMLP standard (it reads no handwritten digits)" in data["missing"]
    assert {network["name"] for network in data["networks"]} == {"SMLP", "DMLP"}
    assert data["datasets"].keys() == {"mnist_4_9", "mnist_0_3"}
    assert data["networks"][0]["classes"] == ["4", "5", "6", "7", "8", "9"]


@pytest.mark.parametrize(("page", "least"), [("troubleshooting.md", 12), ("extending.md", 10)])
def test_tables_of_errors_quote_messages(page, least):
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
    table = (ROOT / "docs" / page).read_text(encoding="utf-8").partition("| message (`")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert len(rows) >= least
    for row in rows:
        for quoted in re.findall(r"`(.+?)`", row):
            parts = [re.escape(part.strip()) for part in quoted.split("…") if part.strip()]
            assert parts and re.search(".{0,200}?".join(parts), code + others), quoted
