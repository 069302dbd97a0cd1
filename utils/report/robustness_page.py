"""The page of networks beyond their test sets."""

from collections.abc import Iterable, Mapping
from typing import Any

from utils.report.tables import csv_text, markdown, number, percent

#: Shares of the least sure images that are set aside.
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1)
#: The one whose lowest confidence is the threshold of ``predict.py``.
UNSURE = 0.05
#: Largest threshold: nobody reads 99.998 % as not sure.
MOST = 0.99


ENDS = ("value", "low", "high")


def robustness_page(exp_name: str, datasets: Mapping[str, Any]) -> str:
    """Return the page (Markdown) of the numbers of ``DJSW.robustness.measure``, by dataset."""
    corruptions = next(iter(datasets.values()))["corruptions"]
    parts = [
        f"# {exp_name}: beyond the test set",
        "Accuracy with 95 % intervals. A corruption's is the mean of five strengths:",
        markdown(
            ("corruption", "strengths", "what they are"),
            [
                (kind, ", ".join(f"{each:g}" for each in strengths), text)
                for kind, (text, strengths) in corruptions.items()
            ],
        ),
        "Pixels are of an image 28 pixels high. Images of another source, if of another size, are "
        "digits cropped to their ink, resized and placed as in the network's own dataset.",
    ]
    for name, found in datasets.items():
        parts += [f"## {name}", *_section(exp_name, name, found)]
    return "\n\n".join(parts) + "\n"


def robustness_csv(datasets: Mapping[str, Any]) -> str:
    """Return a row for each network, condition and strength."""
    rows: list[dict[str, object]] = []
    for dataset, found in datasets.items():
        for network, own in found["networks"].items():
            same = {"dataset": dataset, "network": network}
            for condition, values in own["accuracy"].items():
                strengths = found["corruptions"].get(condition, ("", ()))[1]
                for strength, ends in zip(
                    ("mean" if strengths else "", *strengths), values, strict=True
                ):
                    row = {"measure": "accuracy", "condition": condition, "strength": strength}
                    rows.append({**same, **row, **dict(zip(ENDS, ends, strict=True))})
            for condition, (_, *ends, _) in own["unknown"].items():
                row = {"measure": "auroc", "condition": condition}
                rows.append({**same, **row, **dict(zip(ENDS, ends, strict=True))})
            for share, (accuracy, _) in zip(SHARES, own["selective"], strict=True):
                row = {"measure": "accuracy without least sure", "condition": share}
                rows.append({**same, **row, "value": accuracy})
            rows.append({**same, "measure": "threshold", "value": own["threshold"]})
    return csv_text(rows)


def _section(exp_name: str, dataset: str, found: Mapping[str, Any]) -> list[str]:
    networks = found["networks"]
    first = next(iter(networks.values()))

    def table(heading: str, conditions: Iterable[str], field: str, at: int = 0) -> str:
        rows = []
        for condition in conditions:
            cells = []
            for own in networks.values():
                values = own[field][condition]
                mean, low, high = values[0] if field == "accuracy" else values[at : at + 3]
                cells.append(f"{number(mean)} ({number(low)} to {number(high)})")
            rows.append((condition, *cells))
        return markdown((heading, *networks), rows)

    selective = [
        (percent(share), *(number(own["selective"][row][0]) for own in networks.values()))
        for row, share in enumerate(SHARES)
    ]
    marked = [("threshold", *(number(own["threshold"]) for own in networks.values()))]
    marked += [
        (f"own, {kind}", *(_percent(own["unsure"][kind]) for own in networks.values()))
        for kind in ("correct", "wrong")
    ]
    marked += [
        (condition, *(_percent(own["unknown"][condition][4]) for own in networks.values()))
        for condition in first["unknown"]
    ]
    return [
        f"{found['images']} test images. Intervals are of a bootstrap over {found['clusters']}; "
        "those of others, over their own writers or runs of images.",
        table("corruption, or another source", first["accuracy"], "accuracy"),
        f"![accuracy by strength]({exp_name}_robustness_{dataset}.png)",
        "How well confidence tells own test images from others (AUROC: 0.5 is chance):",
        table("others", first["unknown"], "unknown", 1),
        "Accuracy if the least sure test images are set aside:",
        markdown(("set aside", *networks), selective),
        "Share of images that `predict.py` marks as not sure: their confidence is below that of "
        f"all but {percent(UNSURE)} of the network's own test images, or below {MOST}:",
        markdown(("images", *networks), marked),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else percent(share)
