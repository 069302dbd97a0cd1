"""Write the drawings of the networks to ``docs/pictures/``: ``uv run docs/generate.py``.

A test fails if one of them is out of date. The page of all flags, ``commands.md``, is not
committed: ``docs/conf.py`` generates it when the site is built.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import argparse
from importlib import import_module
from itertools import pairwise
from math import log2

from torch import nn

from DJSW.networks import build_model
from DJSW.pipelines import PEOPLE
from DJSW.results import results, write
from utils.cli import Parser, run_command
from utils.report.tables import markdown

DOCS = ROOT / "docs"


def commands_page() -> str:
    """Return a page with every flag of every command."""
    scripts = [*(ROOT / "DJSW").glob("*.py"), *(ROOT / "datasetprep").glob("*.py")]
    modules = {
        path.relative_to(ROOT).as_posix(): import_module(f"{path.parent.name}.{path.stem}")
        for path in scripts
        if "def main(" in path.read_text(encoding="utf-8")
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
    return flag, value, required + (action.help or "")


def drawing(model: nn.Module) -> str | None:
    """Return the network as SVG: a bar per layer, whose height is the logarithm of its units.

    Return None for a network that is not a sequence of linear layers.
    """
    layers = [module for module in model.modules() if any(True for _ in module.parameters(False))]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear) < len(layers) or any(
        before.out_features != after.in_features for before, after in pairwise(linear)
    ):
        return None
    sizes = [linear[0].in_features, *(layer.out_features for layer in linear)]
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
        color = "#4878a8" if name == "hidden" else "#a85848"
        shapes.append(
            f'<rect x="{x}" y="{middle - height / 2:.0f}" width="16" height="{height:.0f}" '
            f'rx="3" fill="{color}"/>'
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


def drawings() -> dict[Path, str]:
    """Return the drawings of published networks, by path."""
    written = {}
    for username in (username for username, own in results().items() if own):
        picture = drawing(build_model(username, PEOPLE[username].dataset)[0])
        if picture is not None:
            written[DOCS / "pictures" / f"{username}.svg"] = picture
    return written


def command(args: argparse.Namespace) -> None:
    """Write the drawings that are out of date."""
    write(drawings())


if __name__ == "__main__":
    flags = Parser("Write the drawings of the networks.")
    sys.exit(run_command(command, flags.parse_args()))
