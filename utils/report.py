"""The page that one evaluation leaves."""

from collections.abc import Mapping
from typing import Any

from utils.record import ran_on
from utils.tables import confused, interval, markdown, number, settings_text, title

#: Of confused pairs; more are in the picture.
PAIRS = 10


def report(record: Mapping[str, Any]) -> str:
    """An evaluation's record (the content of its metrics file) as Markdown."""
    name, dataset = record["exp_name"], record["dataset"]["name"]
    accuracy = number(record["metrics"]["accuracy"])
    ends = interval(record["intervals"]["accuracy"])
    parts = [
        f"# {name}: {record['model']['layers']} on the test set of {dataset}",
        f"**{record['correct']} of {record['images']} images right: accuracy {accuracy}, "
        f"95 % interval {ends}.**",
        *(f"> **Warning:** {warning}." for warning in record["warnings"]),
        _metrics(record, "metrics", "metric"),
        _metrics(record, "probabilities", "of the probabilities"),
        "## Digits",
        markdown(
            ("digit", "precision", "recall", "95 % of the recall", "F1", "images", "wrong"),
            [_digit(record, row) for row in range(len(record["classes"]))],
        ),
        "## Errors",
        *_errors(record),
        "## Confidence",
        f"![accuracy against confidence]({name}_reliability.png)",
        f"The network tells {_list(record['classes'])} apart, and nothing else: an image of "
        "something else is taken for one of them, often with high confidence.",
        "## Digits as quantities",
        "For comparison with the group's earlier tables. They count a 4 taken for a 9 as much "
        "worse than one taken for a 5, which it is not.",
        _metrics(record, "label_distance", "label distance"),
        "## What ran",
        markdown(("what", "which"), _provenance(record)),
    ]
    return "\n\n".join(parts) + "\n"


def _metrics(record: Mapping[str, Any], group: str, heading: str) -> str:
    return markdown(
        (heading, "value", "95 % interval"),
        [
            (title(name), number(value), interval(record["intervals"][name]))
            for name, value in record[group].items()
        ],
    )


def _digit(record: Mapping[str, Any], column: int) -> tuple[str, ...]:
    row = record["per_class"][column]
    wrong = row["support"] - record["confusion"][column][column]
    return (
        str(row["digit"]),
        number(row["precision"]),
        number(row["recall"]),
        interval(row["intervals"]["recall"]),
        number(row["f1"]),
        str(row["support"]),
        str(wrong),
    )


def _errors(record: Mapping[str, Any]) -> list[str]:
    confusion, digits = record["confusion"], record["classes"]
    picture = f"![images by true and predicted digit]({record['exp_name']}_confusion.png)"
    pairs = confused(record)
    if not pairs:
        return ["No image was wrong.", picture]
    images = dict(zip(digits, map(sum, confusion), strict=True))
    rows = [
        (str(digit), str(other), str(count), f"{count / images[digit]:.2%}")
        for digit, other, count in pairs[:PAIRS]
    ]
    return [
        "Most confused:",
        markdown(("digit", "taken for", "images", "of that digit's"), rows),
        picture,
        "The errors that the network was surest of:",
        f"![errors]({record['exp_name']}_errors.png)",
    ]


def _provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    checkpoint, data, session = record["checkpoint"], record["dataset"], record["session"]
    training, git = record["training"], session["git"]
    rows = [
        ("weights", f"`{checkpoint['file']}`, SHA-256 `{checkpoint['sha256']}`"),
        ("parameters", f"{record['model']['parameters']:,}"),
    ]
    if training:
        settings = settings_text(training["settings"])
        trained = f"`{training['exp_name']}` on {training['dataset']['name']}"
        rows.append(("training", f"{trained}, epoch {checkpoint['epoch']} ({settings})"))
    commit = f"commit {git['commit']}{' with changes' * git['changed']}" if git else "no commit"
    return [
        *rows,
        ("test set", f"`{data['file']}`, images `{data['images_sha256']}`"),
        ("its labels", f"`{data['labels_sha256']}`"),
        ("command", f"`{session['command']}`"),
        ("code", f"{commit}, sources `{session['source_sha256'][:12]}`"),
        ("ran on", f"{ran_on(session)}, {session['started']}"),
        ("metrics, intervals", "defined in `docs/evaluation.md`"),
    ]


def _list(digits: list[int]) -> str:
    return f"{', '.join(map(str, digits[:-1]))} and {digits[-1]}"
