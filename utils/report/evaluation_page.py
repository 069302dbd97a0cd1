"""The Markdown page of an evaluation."""

from typing import Literal

from utils.records.evaluation import EvaluationRecord, MetricValues
from utils.records.provenance import describe_platform
from utils.report.tables import (
    align,
    confused_pairs,
    describe_settings,
    interval,
    markdown,
    number,
    title,
)

#: Confused pairs in the table; the picture shows all of them.
PAIRS = 10


def evaluation_page(record: EvaluationRecord) -> str:
    """Return the page of an evaluation."""
    name, dataset = record["exp_name"], record["dataset"]["name"]
    accuracy = number(record["metrics"]["accuracy"])
    ends = interval(record["intervals"]["accuracy"])
    digits = [str(digit) for digit in record["classes"]]
    parts = [
        f"# {name}: {record['model']['layers']} on the test set of {dataset}",
        f"**{record['correct']} of {record['images']} images right: accuracy {accuracy}, "
        f"95 % interval {ends}.**",
        *(f"> **Warning:** {warning}." for warning in record["warnings"]),
        _metrics(record, "metrics", "metric"),
        _metrics(record, "probabilities", "of the probabilities"),
        "## Digits",
        _digits(record),
        "## Errors",
        *_errors(record),
        "## Confidence",
        f"![accuracy against confidence]({name}_reliability.png)",
        f"The network tells {', '.join(digits[:-1])} and {digits[-1]} apart, and nothing else: an "
        "image of something else is taken for one of them, often with high confidence.",
        "## Digits as quantities",
        "For comparison with the group's earlier tables. They count a 4 taken for a 9 as much "
        "worse than one taken for a 5, which it is not.",
        _metrics(record, "label_distance", "label distance"),
        "## What ran",
        markdown(("what", "which"), _provenance(record)),
    ]
    return "\n\n".join(parts) + "\n"


def evaluation_summary(record: EvaluationRecord) -> str:
    """Return the results as text for a terminal: metrics, digits, warnings."""
    ends = record["intervals"]

    def lines(values: MetricValues) -> list[str]:
        return [
            f"{title(name):<28}{value:8.4f}   {ends[name][0]:.4f} to {ends[name][1]:.4f}"
            for name, value in values.items()
        ]

    rows = ["", f"{record['correct']} of {record['images']} images correct", ""]
    rows += [f"{'':<28}{'':8}   95 % interval", *lines(record["metrics"])]
    rows += lines(record["probabilities"])
    rows += ["", "label distance (digits as quantities)", *lines(record["label_distance"]), ""]
    digits: list[tuple[str, ...]] = [("digit", "precision", "recall", "f1", "images")]
    for row in record["per_class"]:
        scores = [f"{score:.4f}" for score in (row["precision"], row["recall"], row["f1"])]
        digits.append((str(row["digit"]), *scores, str(row["support"])))
    rows += [*align(digits, right=range(5)), ""]
    return "\n".join([*rows, *(f"warning     {warning}" for warning in record["warnings"])])


def _metrics(
    record: EvaluationRecord,
    group: Literal["metrics", "probabilities", "label_distance"],
    heading: str,
) -> str:
    rows = [
        (title(name), number(value), interval(record["intervals"][name]))
        for name, value in record[group].items()
    ]
    return markdown((heading, "value", "95 % interval"), rows)


def _digits(record: EvaluationRecord) -> str:
    header = ("digit", "precision", "recall", "95 % of the recall", "F1", "images", "wrong")
    rows = [
        (
            str(row["digit"]),
            number(row["precision"]),
            number(row["recall"]),
            interval(row["intervals"]["recall"]),
            number(row["f1"]),
            str(row["support"]),
            str(row["support"] - record["confusion"][column][column]),
        )
        for column, row in enumerate(record["per_class"])
    ]
    return markdown(header, rows)


def _errors(record: EvaluationRecord) -> list[str]:
    picture = f"![images by true and predicted digit]({record['exp_name']}_confusion.png)"
    pairs = confused_pairs(record)
    if not pairs:
        return ["No image was wrong.", picture]
    images = {row["digit"]: row["support"] for row in record["per_class"]}
    rows = [
        (str(digit), str(predicted), str(count), f"{count / images[digit]:.2%}")
        for digit, predicted, count in pairs[:PAIRS]
    ]
    return [
        "Most confused:",
        markdown(("digit", "taken for", "images", "of that digit's"), rows),
        picture,
        "The errors that the network was surest of:",
        f"![errors]({record['exp_name']}_errors.png)",
    ]


def _provenance(record: EvaluationRecord) -> list[tuple[str, str]]:
    checkpoint, data, session = record["checkpoint"], record["dataset"], record["session"]
    training, git = record["training"], session["git"]
    rows = [
        ("weights", f"`{checkpoint['file']}`, SHA-256 `{checkpoint['sha256']}`"),
        ("parameters", f"{record['model']['parameters']:,}"),
    ]
    if training:
        settings = describe_settings(training["settings"])
        trained = f"`{training['exp_name']}` on {training['dataset']['name']}"
        rows.append(("training", f"{trained}, epoch {checkpoint['epoch']} ({settings})"))
    commit = f"commit {git['commit']}{' with changes' * git['changed']}" if git else "no commit"
    return [
        *rows,
        ("test set", f"`{data['file']}`, images `{data['images_sha256']}`"),
        ("its labels", f"`{data['labels_sha256']}`"),
        ("command", f"`{session['command']}`"),
        ("code", f"{commit}, sources `{session['source_sha256'][:12]}`"),
        ("ran on", f"{describe_platform(session)}, {session['started']}"),
        ("metrics, intervals", "defined in `docs/evaluation.md`"),
    ]
