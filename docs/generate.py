"""Write the drawings of the networks to ``docs/pictures/``: ``uv run docs/generate.py``.

A test fails if one of them is out of date. The pictures of data, which need it, and of the page to
draw on, which needs Chromium and ``--group browser``, are drawn again if one is deleted. The pages
of flags and of results are not committed: ``docs/conf.py`` writes them when the site is built.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import argparse
import io
import re
import shutil
from collections.abc import Mapping
from html import escape
from importlib import import_module
from math import log2
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.fx import symbolic_trace
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _NormBase

from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE, open_split
from DJSW.recipes import RECIPES
from DJSW.results import list_row, read_records, results, write
from utils.cli import Parser, run_command
from utils.engine.augmentation import augmenter
from utils.errors import MissingData
from utils.report import figures
from utils.report.evaluation_page import evaluation_page
from utils.report.sweep_page import settings_text
from utils.report.tables import interval, markdown, number

DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"
#: Folders of ``reports/`` that git ignores.
NOT_PUBLISHED = {"scratch", "reproduced"}
#: Columns of the page of results, and endings of the files that its second one links to.
COLUMNS = (
    *("experiment", "files", "test accuracy (95 %)", "user", "network", "recipe", "dataset"),
    *("seed", "validation loss", "job", "commit"),
)
FILES = ("report", "confusion", "errors", "curves", "history", "metrics", "run")
RESULTS = """---\nhide-toc: true\n---\n\n# Results\n
Every evaluation in `reports/`, and every run without one. Validation loss, job (Slurm's) and commit
are those of the run. The [README](README.md#results) has the means over seeds, and
[Evaluation](evaluation.md#metrics) explains the numbers.

{}\n\n<script src="_static/results.js"></script>
"""
Records = Mapping[Path, Any]


def commands_page() -> str:
    """Return a page with every flag of every command."""
    scripts = [*(ROOT / "DJSW").glob("*.py"), *(ROOT / "datasetprep").glob("*.py")]
    modules = {
        path.relative_to(ROOT).as_posix(): import_module(f"{path.parent.name}.{path.stem}")
        for path in scripts
        if "sys.exit(main())" in path.read_text(encoding="utf-8")
    }
    parts = ["# Commands", "All commands and their flags, from `--help`."]
    for script in sorted(modules, key=lambda name: (name != "DJSW/main.py", name)):
        flags = modules[script].parser()
        parts += [f"## {script}", flags.description]
        for group in flags._mutually_exclusive_groups:
            names = ", ".join(f"`{action.option_strings[0]}`" for action in group._group_actions)
            parts.append(f"One of {names} is required.")
        rows = [_row(action) for action in flags._actions[1:]]  # without --help
        if rows:
            parts.append(markdown(("flag", "value", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _row(action: argparse.Action) -> tuple[str, str, str]:
    value = f"`{action.metavar or action.dest.upper()}`" if action.nargs != 0 else ""
    if action.choices:
        value = ", ".join(f"`{choice}`" for choice in action.choices)
    if action.nargs in ("*", "+"):
        value += " …"
    flag = f"`{action.option_strings[-1]}`" if action.option_strings else ""
    required = "required; " if action.required and flag else ""
    return flag, value, required + re.sub(r"(?<!`)--\w+", r"`\g<0>`", action.help or "")


def site_pages() -> dict[Path, str]:
    """Return the pages that only the site has, by path."""
    records: Records = {
        path: record
        for path, record in read_records([ROOT / "weights", ROOT / "reports"])
        if NOT_PUBLISHED.isdisjoint(path.relative_to(ROOT).parts)
    }
    pages = {DOCS / "commands.md": commands_page(), DOCS / "results.md": results_page(records)}
    for path, record in records.items():
        report = path.with_name(f"{record['exp_name']}_report.md")
        if "settings" not in record and not report.exists():  # most seeds have no pictures either
            text = re.sub(r"(The errors that .*\n\n)?!\[.*\n\n?", "", evaluation_page(record))
            pages[DOCS / report.relative_to(ROOT)] = text
    return pages


def results_page(records: Records) -> str:
    """Return a page with a row for each evaluation, and for each run that has none."""
    runs = {each["exp_name"]: path for path, each in records.items() if "settings" in each}
    found = {
        path: runs.get((each["training"] or each)["exp_name"])
        for path, each in records.items()
        if "settings" not in each
    }
    found |= {path: path for path in records if path not in {*found, *found.values()}}
    rows = [_result_row(records, path, run) for path, run in found.items()]
    rows.sort(key=lambda row: row[COLUMNS.index("dataset")])
    return RESULTS.format(markdown(COLUMNS, rows))


def _result_row(records: Records, path: Path, run: Path | None) -> list[str]:
    """Return the cells of an evaluation, whose run may be unknown, or of a run alone."""
    record, row, accuracy, files = records[path], list_row(records[run or path]), "-", {}
    settings = row["settings"] or {}
    recipe = settings.pop("recipe", "standard" if run else "-")
    for each in filter(None, (run, path)):
        start = f"{records[each]['exp_name']}_"
        for file in each.parent.glob(f"{start}*"):
            files[file.stem.removeprefix(start)] = file.relative_to(ROOT).as_posix()
    if path != run:
        ends = interval(record["intervals"]["accuracy"])
        accuracy = f"{number(record['metrics']['accuracy'])} ({ends})"
        files["report"] = files["metrics"].replace("_metrics.json", "_report.html")
    cells = (
        *(accuracy, record["username"]),
        re.sub(r" [0-9]+-[0-9-]+$", "", record["model"].get("layers", record["model"]["name"])),
        ", ".join(filter(None, (recipe, settings_text(settings)))),
        *(record["dataset"]["name"], row["seed"], number(row["validation_loss"])),
        *(row["job"], row["commit"]),
    )
    links = " ".join(f'<a href="{files[name]}">{name}</a>' for name in FILES if name in files)
    texts = ("-" if each is None else escape(str(each)) for each in cells)
    return [escape(record["exp_name"]), links, *texts]


def stages(model: nn.Module, image: tuple[int, ...]) -> list[tuple[str, torch.Size]] | None:
    """Return name and shape of the input and of what each layer passes on, after any pooling.

    Return None for a network that is not a sequence of linear and convolutional layers: one with
    branches, a layer used twice, or other layers.

    :param image: the shape (C, H, W) of the input.
    """
    unused = [module for module in model.modules() if any(True for _ in module.parameters(False))]
    try:
        traced = symbolic_trace(model.eval())
    except Exception:  # whatever depends on the images' values
        return None
    ShapeProp(traced).propagate(torch.zeros(1, *image))
    found = [("image", torch.Size(image))]
    tensors = {node for node in traced.graph.nodes if "tensor_meta" in node.meta}
    for node in (node for node in traced.graph.nodes if node in tensors):
        shape = getattr(node.meta["tensor_meta"], "shape", ())[1:]
        layer = traced.get_submodule(node.target) if node.op == "call_module" else nn.Identity()
        if any(True for _ in layer.parameters()):
            if layer not in unused or not isinstance(layer, (nn.Linear, nn.Conv2d, _NormBase)):
                return None
            unused.remove(layer)
        if not shape or len(tensors & node.users.keys()) != (node.op != "output"):
            return None
        if isinstance(layer, nn.Linear) and len(found) == 1:
            found = [("pixels", torch.Size((layer.in_features,)))]
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            name = (
                "conv {} x {}".format(*layer.weight.shape[2:])
                if layer.weight.ndim > 2
                else "hidden"
            )
            found.append((name, shape))
        elif shape.numel() != found[-1][1].numel():  # pooling; flattening keeps the number
            found[-1] = found[-1][0], shape
    return None if unused else [*found[:-1], ("logits", found[-1][1])]


def drawing(model: nn.Module, image: tuple[int, ...]) -> str | None:
    """Return the network as SVG, or None where :func:`stages` of images (C, H, W) finds none.

    The height of a bar is the logarithm of the layer's units; maps (C, H, W) are to scale.
    """
    found = stages(model, image)
    if found is None:
        return None
    x, before, drawn = 30.0, "", []
    for name, shape in found:
        sides = [84 * side / max(image[1:]) for side in shape[1:]] or [12 * log2(shape[0]), 16]
        top, bottom, right = 80 - sides[0] / 2, 80 + sides[0] / 2, x + sides[1]
        if before:
            drawn.append(f'<path d="{before.format(x, top, bottom)}" fill="#dde6f0"/>')
        color = "#4878a8" if name.startswith(("hidden", "conv")) else "#a85848"
        color += '" stroke="white' * (len(shape) == 3)
        for shift in (6, 3, 0) if len(shape) == 3 and shape[0] > 1 else (0,):  # for all maps
            drawn.append(
                f'<rect x="{x + shift:.0f}" y="{top - shift:.0f}" width="{sides[1]:.0f}" '
                f'height="{sides[0]:.0f}" rx="3" fill="{color}"/>'
            )
        for y, text in (158, " x ".join(map(str, shape))), (174, name):
            drawn[-1] += f'<text x="{(x + right) / 2:.0f}" y="{y}">{text}</text>'
        before = f"M{right:.0f} {top:.0f}L{{:.0f}} {{:.0f}}V{{:.0f}}L{right:.0f} {bottom:.0f}z"
        x = right + 94
    width = f"{x - 64:.0f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 184" width="{width}">\n'
        f'<rect width="{width}" height="184" fill="white"/>\n'
        '<g font-family="sans-serif" font-size="12" text-anchor="middle">\n'
        + "\n".join(drawn)
        + "\n</g>\n</svg>\n"
    )


def drawings() -> dict[Path, str]:
    """Return the drawings of published networks, by path."""
    written = {}
    for username in (username for username, own in results().items() if own):
        dataset = PEOPLE[username].dataset
        entry = DATASETS[dataset]
        model, _ = build_model(username, dataset)
        picture = drawing(model, (entry.channels, *entry.image_size))
        if picture is not None:
            written[PICTURES / f"{username}.svg"] = picture
    return written


def with_vector_figures(page: Path, text: str) -> str:
    """Draw figures of a page of the site as SVG, too; return the text that shows these."""

    def vector(link: re.Match[str]) -> str:
        svg = (page.parent / f"{link[1]}.svg").resolve()
        if not svg.exists():
            figures.redraw(ROOT / svg.relative_to(DOCS), svg)
        return f"]({link[1]}.svg)" if svg.exists() else link[0]

    return re.sub(r"\]\((\S+)\.png\)", vector, text)


def save_images() -> None:
    """Draw the first training image of each class, and what the tuned recipe makes of a digit."""
    images, captions = [], []
    for name, entry in DATASETS.items():
        try:
            data = open_split(name, train=True)
        except MissingData as error:  # SVHN cannot be fetched everywhere
            print(f"left out    {name}: {error}")
            continue
        captions += [f"{name}\n{text}" if entry.names else name for text in entry.classes.values()]
        for label in entry.labels:  # 112 pixels are 4 times 28 and 7 times 16
            image = Image.fromarray(data.images[data.labels == label][0])
            images.append(image.resize((112, 112), Image.Resampling.NEAREST))
    mode = max((image.mode for image in images), key=len)  # "RGB" if one is in color
    stack = np.stack([np.asarray(image.convert(mode)) for image in images])
    title = "the first image of each class in the training files"
    figures.save_mosaic(PICTURES / "data.png", title, stack, captions, 9)
    five = torch.tensor(open_split("mnist_4_9", train=True).images[:1, None]) / 255
    augment = augmenter(RECIPES["tuned"]["mnist_4_9"].augmentation, (28, 28), five.device)
    seen = torch.cat([five, augment(five.expand(8, 1, 28, 28), 8, 0)])[:, 0].numpy()
    title = "a digit, and eight times as the recipe tuned shows it to the network"
    figures.save_mosaic(PICTURES / "tuned.png", title, seen, [""] * 9, 9)


def save_screenshot() -> None:
    """Draw a digit on the page to draw on, in Chromium, and save what it shows."""
    sys.path.append(str(DOCS))
    import drawing
    from playwright.sync_api import expect, sync_playwright  # of the group browser

    html, picture = PICTURES / ".try.html", PICTURES / "try.png"
    html.write_text(drawing.page(), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1120, "height": 560})
        page.goto(html.as_uri())
        expect(page.locator("#status")).to_have_text("Draw a digit.")
        box = page.locator("#paper").bounding_box()
        assert box is not None
        for stroke in ((0.5, 0.2), (0.3, 0.55), (0.7, 0.55)), ((0.6, 0.4), (0.56, 0.85)):
            for number, (x, y) in enumerate(stroke):
                page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
                if number == 0:
                    page.mouse.down()
            page.mouse.up()
        expect(page.locator("#status")).to_contain_text("4 (of 4 to 9)")
        screenshot = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    html.unlink()
    screenshot.convert("RGB").quantize(64).save(picture, optimize=True)


def command(args: argparse.Namespace) -> None:
    """Write the drawings that are out of date, and other pictures that are missing."""
    write(drawings())
    if not all((PICTURES / name).exists() for name in ("data.png", "tuned.png")):
        save_images()
    if not (PICTURES / "try.png").exists():
        save_screenshot()


if __name__ == "__main__":
    flags = Parser("Write the drawings of the networks.")
    sys.exit(run_command(command, flags.parse_args()))
