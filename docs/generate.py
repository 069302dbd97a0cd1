"""Write the pages that follow from the code and the records: ``uv run docs/generate.py``.

They are a page for each person with published results (``people/``) and a drawing of their network
(``pictures/``); a test fails if one of them is out of date. The command line's reference
(``commands.md``) is not kept: ``docs/conf.py`` has it written when the site is built.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import argparse
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from math import log2

from torch import nn

from DJSW.pipelines import DATASETS, PEOPLE, build_model
from DJSW.recipes import RECIPES, Recipe
from DJSW.results import Result, results, write
from utils.checkpoint import describe
from utils.command_line import Parser, run_command
from utils.tables import interval, markdown, number

DOCS = ROOT / "docs"


def commands_page() -> str:
    """Every flag of every command."""
    scripts = [*(ROOT / "DJSW").glob("*.py"), *(ROOT / "datasetprep").glob("*.py")]
    modules = {
        path.relative_to(ROOT).as_posix(): import_module(f"{path.parent.name}.{path.stem}")
        for path in scripts
        if "def main(" in path.read_text(encoding="utf-8")
    }
    parts = ["# Commands", "From the commands' own `--help`."]
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
    return flag, value, required + (action.help or "")


def person_page(username: str, model: nn.Module, own: Sequence[Result], *, drawn: bool) -> str:
    """Task, network, data, results and commands of one person.

    :param drawn: whether there is a drawing of the network.
    """
    person = PEOPLE[username]
    entry = DATASETS[person.dataset]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    module = person.model.partition(":")[0].replace(".", "/") + ".py"
    height, width = entry.image_size
    parts = [
        f"# {username}: {person.model_name}",
        f"{person.model_name} tells the digits {entry.digits[0]} to {entry.digits[-1]} of "
        f"{entry.source.upper()} apart, in images of {width} x {height} pixels.",
    ]
    if drawn:
        parts.append(f"![{describe(model)}](../pictures/{username}.svg)")
    parts.append(
        f"{describe(model)}: {parameters:,} parameters ([{module}](../../{module})). Data: "
        f"`data/processed/{entry.train_file}` and `{entry.test_file}`, made when they are needed "
        "([Data](../data.md))."
    )
    if own:
        parts += _results(own, person.model_name)
    command = f"uv run DJSW/main.py --username {username} --exp_name {username}_1 --output_dir"
    folder = f"weights/{person.model_name}"
    best = f"{folder}/{username}_1_checkpoint_best.pt"
    epochs = f" --num_epochs {entry.epochs}" if entry.epochs != Recipe.num_epochs else ""
    lines = [f"{command} {folder} --train{epochs}", f"{command} reports --load_checkpoint {best}"]
    parts += ["## Run it", "\n".join(["```bash", *lines, "```"])]
    if person.dataset in RECIPES["tuned"]:
        parts.append("`--recipe tuned` trains longer and better ([Recipes](../recipes.md)).")
    parts.append("Written by `docs/generate.py`.")
    return "\n\n".join(parts) + "\n"


def _results(own: Sequence[Result], model_name: str) -> list[str]:
    rows = [
        (
            result.recipe,
            str(result.records[result.name]["settings"]["num_epochs"]),
            str(len(result.records)),
            result.accuracy,
            f"`{result.name}`",
            f"{number(result.published['metrics']['accuracy'])} "
            f"({interval(result.published['intervals']['accuracy'])})",
        )
        for result in own
    ]
    header = ("recipe", "epochs", "seeds", "test accuracy", "published", "of this: accuracy")
    best = min(own, key=lambda each: each.records[each.name]["results"]["best"]["validation_loss"])
    reports = ", ".join(f"[{each.recipe}](../../reports/{each.name}_report.md)" for each in own)
    return [
        "## Results",
        markdown(header, rows),
        f"More numbers are in the [model card](../../weights/{model_name}/README.md) and in the "
        f"reports: {reports}.",
        f"Of `{best.name}`, the losses and the accuracy by epoch, and the test images by true and "
        "predicted digit:",
        f"![curves](../../weights/{model_name}/{best.name}_curves.png)",
        f"![confusion matrix](../../reports/{best.name}_confusion.png)",
        "The errors that it is surest of:",
        f"![errors](../../reports/{best.name}_errors.png)",
    ]


def drawing(model: nn.Module) -> str | None:
    """The network as SVG: a bar for each layer, as high as its number of units (logarithmic).

    None for a network that is not linear layers one after the other.
    """
    layers = [module for module in model.modules() if any(True for _ in module.parameters(False))]
    if not all(isinstance(layer, nn.Linear) for layer in layers) or any(
        before.out_features != after.in_features for before, after in pairwise(layers)
    ):
        return None
    sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
    names = ["pixels", *["hidden"] * (len(sizes) - 2), "logits"]
    step, middle = 110, 80
    shapes = []
    for k, (size, name) in enumerate(zip(sizes, names, strict=True)):
        x, height = 30 + k * step, 12 * log2(size)
        if k:
            left, before = x - step + 16, 6 * log2(sizes[k - 1])
            shapes.append(
                f'<path d="M{left} {middle - before:.0f}L{x} {middle - height / 2:.0f}V'
                f'{middle + height / 2:.0f}L{left} {middle + before:.0f}z" fill="#dde6f0"/>'
            )
        colour = "#4878a8" if name == "hidden" else "#a85848"
        shapes.append(
            f'<rect x="{x}" y="{middle - height / 2:.0f}" width="16" height="{height:.0f}" '
            f'rx="3" fill="{colour}"/>'
            f'<text x="{x + 8}" y="158">{size}</text><text x="{x + 8}" y="174">{name}</text>'
        )
    width = 76 + (len(sizes) - 1) * step
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 184" width="{width}">\n'
        f'<rect width="{width}" height="184" fill="white"/>\n'
        '<g font-family="sans-serif" font-size="12" text-anchor="middle">\n'
        + "\n".join(shapes)
        + "\n</g>\n</svg>\n"
    )


def pages() -> dict[Path, str]:
    """What the pages should hold, by file."""
    written = {}
    for username, own in results().items():
        model, _ = build_model(username, PEOPLE[username].dataset)
        picture = drawing(model)
        page = person_page(username, model, own, drawn=picture is not None)
        written[DOCS / "people" / f"{username}.md"] = page
        if picture is not None:
            written[DOCS / "pictures" / f"{username}.svg"] = picture
    return written


def command(args: argparse.Namespace) -> None:
    """Write what is out of date."""
    write(pages())


if __name__ == "__main__":
    flags = Parser("Write the pages that follow from the code and the records.")
    sys.exit(run_command(command, flags.parse_args()))
