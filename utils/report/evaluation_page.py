"""The Markdown page of an evaluation."""

import math

from utils.records.evaluation import EvaluationRecord, MetricValues, class_names, class_word
from utils.records.provenance import describe_platform
from utils.report.tables import (
    align,
    confused_pairs,
    describe_settings,
    interval,
    markdown,
    number,
    percent,
    title,
)

QUANTITIES = (
    "## Digits as quantities\n\nFor comparison with the group's earlier tables. They count a 4 "
    "taken for a 9 as much worse than one taken for a 5, which it is not."
)
#: Confused pairs in the table; the picture shows all of them.
PAIRS = 10


def evaluation_page(record: EvaluationRecord) -> str:
    """Return the page of an evaluation."""
    name, layers, ends = record["exp_name"], record["model"]["layers"], record["intervals"]
    *others, last = class_names(record)
    named = "class_names" in record

    def metrics(heading: str, values: MetricValues) -> str:
        rows = [(title(name), number(each), interval(ends[name])) for name, each in values.items()]
        return markdown((heading, "value", "95 % interval"), rows)

    parts = [
        f"# {name}: {layers} on the test set of {record['dataset']['name']}",
        f"**{record['correct']} of {record['images']} images correct: accuracy "
        f"{number(record['metrics']['accuracy'])}, 95 % interval {interval(ends['accuracy'])}.**",
        *(f"> **Warning:** {warning}." for warning in record["warnings"]),
        *_clusters(record),
        metrics("metric", record["metrics"]),
        metrics("of the probabilities", record["probabilities"]),
        f"## {class_word(record).title()}{'es' if named else 's'}",
        _digits(record),
        "## Errors",
        *_errors(record),
        "## Confidence",
        f"![accuracy against confidence]({name}_reliability.png)",
        f"The network tells {', '.join(others)} and {last} apart, and nothing else: an "
        "image of something else is taken for one of them, often with high confidence.",
        *([] if named else [QUANTITIES, metrics("label distance", record["label_distance"])]),
        "## What ran",
        markdown(("what", "which"), _provenance(record)),
    ]
    return "\n\n".join(parts) + "\n"


def evaluation_summary(record: EvaluationRecord) -> str:
    """Return the results as text for a terminal: metrics, digits, warnings."""

    def metrics(values: MetricValues) -> list[str]:
        return [
            f"{title(name):<28}{number(value):>8}   {interval(record['intervals'][name])}"
            for name, value in values.items()
        ]

    header = (class_word(record), "precision", "recall", "f1", "images")
    digits: list[tuple[str, ...]] = [header]
    for name, row in zip(class_names(record), record["per_class"], strict=True):
        scores = (f"{score:.4f}" for score in (row["precision"], row["recall"], row["f1"]))
        digits.append((name, *scores, str(row["support"])))
    lines = [
        f"\n{record['correct']} of {record['images']} images correct\n",
        _clusters_line(record),
        f"{'':<28}{'':8}   95 % interval",
        *metrics(record["metrics"]),
        *metrics(record["probabilities"]),
        *(["\nlabel distance (digits as quantities)"] if record["label_distance"] else []),
        *metrics(record["label_distance"]),
        "",
        *align(digits, right=range(5)),
        "",
        *(f"warning     {warning}" for warning in record["warnings"]),
    ]
    return "\n".join(lines)


def _clusters_line(record: EvaluationRecord) -> str:
    clusters = record["clusters"]
    ends = interval(clusters["wilson"])
    unknown = clusters["kind"] != "writers" and "class_names" not in record
    return (
        f"intervals by a bootstrap over {clusters['count']} {clusters['kind']}; that of the "
        f"accuracy\nwould be {ends} if images were independent (Wilson's)\n"
        + "who wrote the digits is not known here (docs/data.md)\n"
        * unknown
    )


def _clusters(record: EvaluationRecord) -> list[str]:
    """Return what the intervals assume, and the errors by series."""
    clusters = record["clusters"]
    parts = [
        f"Intervals are of a bootstrap over {clusters['count']} {clusters['kind']}, whose errors "
        "come together. If images were independent, that of the accuracy would be "
        f"{interval(clusters['wilson'])} (Wilson's); its standard error is "
        f"{math.sqrt(clusters['design_effect']):.2f} times as large."
    ]
    if record.get("series"):
        rows = [
            (str(row["series"]), row["by"], str(row["images"]), str(row["errors"]))
            for row in record["series"]
        ]
        parts.append(markdown(("series", "written by", "images", "errors"), rows))
    return parts


def _digits(record: EvaluationRecord) -> str:
    rows, names = [], class_names(record)
    for column, row in enumerate(record["per_class"]):
        recall = (number(row["recall"]), interval(row["intervals"]["recall"]))
        errors = row["support"] - record["confusion"][column][column]
        scores = (number(row["precision"]), *recall, number(row["f1"]))
        rows.append((names[column], *scores, str(row["support"]), str(errors)))
    header = ("precision", "recall", "95 % of the recall", "F1", "images", "errors")
    return markdown((class_word(record), *header), rows)


def _errors(record: EvaluationRecord) -> list[str]:
    word = class_word(record)
    picture = f"![images by true and predicted {word}]({record['exp_name']}_confusion.png)"
    rows = [
        (true, predicted, str(count), percent(share))
        for true, predicted, count, share in confused_pairs(record)[:PAIRS]
    ]
    if not rows:
        return ["No errors.", picture]
    return [
        "Most confused:",
        markdown((word, "taken for", "images", f"of that {word}'s"), rows),
        picture,
        "The errors that the network was surest of:",
        f"![errors]({record['exp_name']}_errors.png)",
    ]


def _provenance(record: EvaluationRecord) -> list[tuple[str, str]]:
    checkpoint, data, session = record["checkpoint"], record["dataset"], record["session"]
    training, git = record["training"], session["git"]
    commit = f"commit {git['commit']}{' with changes' * git['changed']}" if git else "no commit"
    teachers = training.get("teachers", []) if training else []
    trained = training and (
        f"`{training['exp_name']}` on {training['dataset']['name']}, epoch {checkpoint['epoch']} "
        f"({describe_settings(training['settings'])})"
    )
    return [
        *(
            ("weights", f"`{each['file']}`, SHA-256 `{each['sha256']}`")
            for each in record.get("members", [checkpoint])
        ),
        ("parameters", f"{record['model']['parameters']:,}"),
        *([("training", trained)] if trained else []),
        *(("teacher", f"`{each['file']}`, SHA-256 `{each['sha256']}`") for each in teachers),
        ("test set", f"`{data['file']}`, images `{data['images_sha256']}`"),
        ("its labels", f"`{data['labels_sha256']}`"),
        ("command", f"`{session['command']}`"),
        ("code", f"{commit}, sources `{session['source_sha256'][:12]}`"),
        ("ran on", f"{describe_platform(session)}, {session['started']}"),
        ("metrics, intervals", "defined in `docs/evaluation.md`"),
    ]
