"""Evaluation of a checkpoint on a test set."""

import argparse
import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from DJSW.pipelines import DATASETS, PEOPLE, build_model, open_split
from utils import intervals, metrics, ranks
from utils.batches import load_rows, predict
from utils.checkpoint import Checkpoint, describe, load_checkpoint
from utils.evaluations import FORMAT, predictions_csv, sealed
from utils.failures import UsageError
from utils.files import find_file, find_folder, recorded, writing
from utils.lock import claimed
from utils.mnist_dataset import MnistH5Dataset
from utils.record import facts, spent, write_json
from utils.tables import title


@dataclass
class Evaluation:
    """An evaluation as the command line asks for it, ready to begin; ``about`` is its record's."""

    model: nn.Module
    data: MnistH5Dataset
    dataset: str
    folder: Path
    about: dict[str, Any]

    def file(self, suffix: str) -> Path:
        """``{exp_name}_{suffix}`` in the output folder."""
        return self.folder / f"{self.about['exp_name']}_{suffix}"


def prepare(args: argparse.Namespace) -> Evaluation:
    """Look at all that the command line names, make the data if they are not there, and say so.

    :raises UsageError: a flag is wrong, or the name is taken.
    :raises RunError: there are no data, or they are damaged.
    """
    folder = find_folder(args.output_dir, "--output_dir")
    output = folder / f"{args.exp_name}_metrics.json"
    if output.exists():
        raise _taken(args.exp_name, output)
    checkpoint = load_checkpoint(find_file(args.load_checkpoint, "--load_checkpoint"))
    dataset = args.dataset or _own_dataset(checkpoint) or PEOPLE[args.username].dataset
    model, arguments = build_model(args.username, dataset, checkpoint)
    data = open_split(dataset, train=False)
    print(f"{args.username} evaluates {describe(model)} on the test set of {dataset}")
    print(f"weights     {checkpoint.path}")
    usual, _ = build_model(args.username, dataset)
    if describe(model) != describe(usual):
        print(
            f"note        these weights are {describe(model)}; the network now is {describe(usual)}"
        )
    print(f"data        {data.h5_path}")
    print(f"images      {len(data)}", flush=True)
    about = {
        "format": FORMAT,
        "exp_name": args.exp_name,
        "username": args.username,
        "model": {
            "name": type(model).__name__,
            "arguments": arguments,
            "layers": describe(model),
            "parameters": sum(tensor.numel() for tensor in model.parameters()),
        },
        "checkpoint": {**checkpoint.source(), "epoch": checkpoint.about.get("epoch")},
        "training": _training(checkpoint),
        "dataset": {
            "name": dataset,
            "split": "test",
            "file": recorded(data.h5_path),
            **data.sha256,
        },
        "classes": list(DATASETS[dataset].digits),
    }
    return Evaluation(model, data, dataset, folder, about)


def run(args: argparse.Namespace, device: torch.device, members: ranks.Members) -> None:
    """Evaluate as the command line says, as one of the ranks; ``DJSW/main.py`` has the flags."""
    with ranks.in_turn():
        this = prepare(args)
    print(f"device      {ranks.described(device, members)}", flush=True)
    started = time.perf_counter()
    logits, classes = predict(this.model.to(device), load_rows(this.data, device), device)
    if ranks.rank() > 0:
        return
    if not logits.isfinite().all():
        raise UsageError(
            f"{args.load_checkpoint} gives logits that are not finite: its weights are too large; "
            "give others"
        )
    log_probabilities = logits.cpu().double().log_softmax(1).numpy()
    digits = DATASETS[this.dataset].digits
    results = measure(log_probabilities, classes.cpu().numpy(), digits)
    predictions = predictions_csv(log_probabilities, this.data.labels, digits)
    session = facts(device, members)
    session |= spent(time.perf_counter() - started, session)
    record = sealed(
        {
            **this.about,
            **results,
            "predictions_sha256": hashlib.sha256(predictions).hexdigest(),
            "session": session,
        }
    )
    with claimed(this.file("metrics.json"), _taken(args.exp_name, this.file("metrics.json"))):
        with writing(this.file("predictions.csv")) as temporary:
            temporary.write_bytes(predictions)
        _save_report(this, record, log_probabilities)
        write_json(this.file("metrics.json"), record, exclusive=True)
    print(summary(record))
    for warning in record["warnings"]:
        print(f"warning     {warning}")
    for suffix in ("metrics.json", "predictions.csv", "report.md"):
        print(f"{suffix.partition('.')[0]:<11} {this.file(suffix)}")


def measure(
    log_probabilities: np.ndarray, classes: np.ndarray, digits: Sequence[int]
) -> dict[str, Any]:
    """Every number of an evaluation, with its interval; plain values.

    :param log_probabilities: natural logarithms (N, C); column k is ``digits[k]``.
    :param classes: the true columns (N,).
    """
    of_column = np.array(digits)
    predicted = log_probabilities.argmax(1)
    y_true, y_pred = of_column[classes], of_column[predicted]
    confusion = np.zeros((len(digits), len(digits)), dtype=np.int64)
    np.add.at(confusion, (classes, predicted), 1)
    right = int(confusion.trace())
    losses = metrics.image_losses(log_probabilities, classes)
    bins, gaps = metrics.confidence_gaps(log_probabilities, classes)

    drawn = intervals.by_confusion(intervals.resampled(confusion), digits)
    ends = {
        name: intervals.of_resamples(np.moveaxis(values, 0, -1)).tolist()
        for name, values in drawn.items()
    }
    # The weighted recall is the accuracy by another name.
    ends["accuracy"] = ends["weighted_recall"] = list(intervals.wilson(right, len(classes)))
    ends |= {name: list(intervals.of_mean(values)) for name, values in losses.items()}
    ends["expected_calibration_error"] = list(intervals.of_calibration_error(bins, gaps, classes))
    per_class = metrics.per_class(y_true, y_pred, digits)
    of_class = {name: ends.pop(f"class_{name}") for name in ("precision", "recall", "f1")}
    for column, row in enumerate(per_class):
        row["intervals"] = {name: found[column] for name, found in of_class.items()}
        recalled = int(confusion[column, column])
        row["intervals"]["recall"] = list(intervals.wilson(recalled, row["support"]))
    calibration = metrics.calibration(log_probabilities, classes)
    for row in calibration:
        row["low"], row["high"] = intervals.wilson(row["right"], row["images"])
    return {
        "images": len(classes),
        "correct": right,
        "metrics": metrics.classification(y_true, y_pred, digits),
        "probabilities": {
            **{name: float(values.mean()) for name, values in losses.items()},
            "expected_calibration_error": metrics.expected_calibration_error(bins, gaps),
        },
        "label_distance": metrics.label_distance(y_true, y_pred),
        "intervals": ends,
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "calibration": calibration,
        "warnings": _warnings(confusion, digits),
    }


def _warnings(confusion: np.ndarray, digits: Sequence[int]) -> list[str]:
    """What a single number of the results may hide."""
    found = []
    predicted = [digit for digit, count in zip(digits, confusion.sum(0), strict=True) if count]
    if len(predicted) == 1:
        found.append(f"every image is taken for a {predicted[0]}: the network predicts one class")
    for digit, row, right in zip(digits, confusion, confusion.diagonal(), strict=True):
        if row.sum() == 0:
            found.append(f"the test set has no {digit}; its recall counts as 0")
        elif right == 0:
            found.append(f"none of the {row.sum()} images of a {digit} is recognised (recall 0)")
    return found


def _save_report(this: Evaluation, record: dict[str, Any], log_probabilities: np.ndarray) -> None:
    """Three pictures, and the page that shows them."""
    from utils import figures
    from utils.report import report

    title = f"{this.about['exp_name']}: {this.about['model']['name']} on {this.dataset}"
    digits = np.array(this.about["classes"])
    figures.save_confusion(this.file("confusion.png"), title, record["confusion"], digits.tolist())
    figures.save_reliability(this.file("reliability.png"), title, record["calibration"])
    predicted = digits[log_probabilities.argmax(1)]
    confidence = np.exp(log_probabilities.max(1))
    wrong = np.flatnonzero(predicted != this.data.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][: figures.GALLERY]
    if len(worst):
        figures.save_errors(
            this.file("errors.png"),
            f"{title}, {len(worst)} of {len(wrong)} errors",
            this.data.images[worst],
            this.data.labels[worst].tolist(),
            predicted[worst].tolist(),
            confidence[worst].tolist(),
        )
    with writing(this.file("report.md")) as temporary:
        temporary.write_text(report(record), encoding="utf-8")


def summary(record: dict[str, Any]) -> str:
    """The results as text: every metric with its interval, then a line per digit."""

    def lines(group: str) -> list[str]:
        ends = record["intervals"]
        return [
            f"{title(name):<28}{value:8.4f}   {ends[name][0]:.4f} to {ends[name][1]:.4f}"
            for name, value in record[group].items()
        ]

    rows = ["", f"{record['correct']} of {record['images']} images right", ""]
    rows += [f"{'':<28}{'':8}   95 % interval", *lines("metrics"), *lines("probabilities")]
    rows += ["", "label distance (digits taken as quantities)", *lines("label_distance")]
    rows += ["", "digit  precision  recall      f1  images"]
    rows += [
        f"{row['digit']:>5}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}"
        f"  {row['support']:6}"
        for row in record["per_class"]
    ]
    return "\n".join(rows) + "\n"


def _training(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What a checkpoint says of its training; a bare state dict says nothing.

    ``saved`` is which of its checkpoints this one is, by its file's name: ``best``, ``epoch_10``.
    """
    about = checkpoint.about
    if "settings" not in about:
        return None
    saved = re.search(r"_checkpoint_(best|epoch_[0-9]+)$", checkpoint.path.stem)
    return {
        "exp_name": about["exp_name"],
        "dataset": about["dataset"],
        "settings": about["settings"],
        "starting_weights": about["starting_weights"],
        "saved": saved and saved[1],
    }


def _own_dataset(checkpoint: Checkpoint) -> str | None:
    if not checkpoint.about:
        return None
    name = str(checkpoint.about["dataset"]["name"])
    if name not in DATASETS:
        raise UsageError(
            f"{checkpoint.path} was trained on {name!r}, which is not known here; "
            f"give --dataset: {', '.join(DATASETS)}"
        )
    return name


def _taken(exp_name: str, path: Path) -> UsageError:
    return UsageError(f"{exp_name!r} was evaluated before: {path} exists; give another --exp_name")
