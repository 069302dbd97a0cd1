"""Write the pages that follow from the code and the records: ``uv run docs/generate.py``.

They are the command line's reference (``commands.md``), a page for each person (``people/``) and a
drawing of each network (``pictures/``). A test fails if one of them is out of date.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from DJSW.pipelines import DATASETS, PEOPLE, build_model  # noqa: E402
from DJSW.results import Result, results  # noqa: E402
from utils.checkpoint import describe  # noqa: E402
from utils.files import writing  # noqa: E402
from utils.tables import interval, markdown, number  # noqa: E402

COMMANDS = (
    "DJSW/main.py",
    "DJSW/compare.py",
    "DJSW/predict.py",
    "DJSW/runs.py",
    "DJSW/reproduce.py",
    "DJSW/results.py",
    "datasetprep/create_mnist_dataset.py",
    "datasetprep/create_usps_dataset.py",
)


def commands_page() -> str:
    """Every flag of every command."""
    parts = ["# Commands", "Written by `docs/generate.py` from the commands' own `--help`."]
    for path in COMMANDS:
        flags = import_module(path.removesuffix(".py").replace("/", ".")).parser()
        rows = []
        for action in flags._actions[1:]:  # not --help
            value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
            if action.choices:
                value = ", ".join(f"`{choice}`" for choice in action.choices)
            elif value:
                value = f"`{value}`"
            flag = f"`{action.option_strings[-1]}`" if action.option_strings else ""
            required = "required; " if action.required and action.option_strings else ""
            rows.append((flag, str(value), required + (action.help or "")))
        parts += [f"## {path}", flags.description, markdown(("flag", "value", "meaning"), rows)]
    return "\n\n".join(parts) + "\n"


def person_page(username: str, found: Sequence[Result]) -> str:
    """Task, network, data, results and commands of one person."""
    person = PEOPLE[username]
    entry = DATASETS[person.dataset]
    model, _ = build_model(username, person.dataset)
    own = [result for result in found if result.username == username]
    name, small = person.model_name, person.model_name.lower()
    digits = f"{entry.digits[0]} to {entry.digits[-1]}"
    height, width = entry.image_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = [
        f"# {username}: {name}",
        f"{name} tells the digits {digits} of {entry.source.upper()} apart, in images of "
        f"{width} x {height} pixels.",
        f"![{describe(model)}](../pictures/{small}.svg)",
        f"{describe(model)}: {parameters:,} parameters "
        f"([models/{small}.py](../../models/{small}.py)). Data: "
        f"`data/processed/{entry.train_file}` and `{entry.test_file}`, made when they are needed "
        "([Data](../data.md)).",
    ]
    if own:
        rows = [
            (
                result.recipe,
                str(len(result.records)),
                result.accuracy,
                f"`{result.name}`",
                f"{number(result.published['metrics']['accuracy'])} "
                f"({interval(result.published['intervals']['accuracy'])})",
            )
            for result in own
        ]
        header = ("recipe", "seeds", "test accuracy", "published", "its accuracy")
        parts += [
            "## Results",
            markdown(header, rows),
            f"More numbers are in the [model card](../../weights/{name}/README.md) and in the "
            "reports: "
            + ", ".join(f"[{each.recipe}](../../reports/{each.name}_report.md)" for each in own)
            + ".",
            *_pictures(own[-1], name),
        ]
    checkpoint = f"weights/{name}/{own[-1].name if own else 'mine'}_checkpoint_best.pt"
    train = f"uv run DJSW/main.py --username {username} --exp_name mine --output_dir"
    parts += [
        "## Run it",
        "```bash\n"
        f"{train} weights/{name} --train\n"
        f"{train} reports --load_checkpoint weights/{name}/mine_checkpoint_best.pt\n"
        f"uv run DJSW/predict.py photo.jpg --load_checkpoint {checkpoint}\n"
        "```",
        "Add `--recipe tuned` for the better and slower training. Written by `docs/generate.py`.",
    ]
    return "\n\n".join(parts) + "\n"


def _pictures(result: Result, model_name: str) -> Iterator[str]:
    yield (
        f"Of `{result.name}`, the losses and the accuracy by epoch, and the test images by "
        "true and predicted digit:"
    )
    yield f"![curves](../../weights/{model_name}/{result.name}_curves.png)"
    yield f"![confusion matrix](../../reports/{result.name}_confusion.png)"
    yield "The errors that it is surest of:"
    yield f"![errors](../../reports/{result.name}_errors.png)"


def drawing(username: str) -> str:
    """The network as SVG: a bar for each layer, as high as its number of units (logarithmic)."""
    from math import log2

    person = PEOPLE[username]
    model, _ = build_model(username, person.dataset)
    sizes = [int(size) for size in describe(model).split()[1].split("-")]
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
    docs, found = ROOT / "docs", results()
    written = {docs / "commands.md": commands_page()}
    for username, person in PEOPLE.items():
        written[docs / "people" / f"{username}.md"] = person_page(username, found)
        written[docs / "pictures" / f"{person.model_name.lower()}.svg"] = drawing(username)
    return written


if __name__ == "__main__":
    for path, text in pages().items():
        with writing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
