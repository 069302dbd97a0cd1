"""Evaluation of a checkpoint on a test set."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from DJSW.pipelines import DATASETS, PEOPLE, build_model, open_split
from utils import metrics, ranks
from utils.batches import load_rows, predict
from utils.checkpoint import Checkpoint, describe, load_checkpoint
from utils.failures import UsageError
from utils.files import find_file, find_folder, recorded
from utils.mnist_dataset import MnistH5Dataset
from utils.record import facts, spent, write_json


@dataclass
class Evaluation:
    """An evaluation as the command line asks for it, ready to begin; ``about`` is its record's."""

    model: nn.Module
    data: MnistH5Dataset
    dataset: str
    output: Path
    about: dict[str, Any]


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
        "exp_name": args.exp_name,
        "username": args.username,
        "model": {"name": type(model).__name__, "arguments": arguments},
        "checkpoint": {**checkpoint.source(), "epoch": checkpoint.about.get("epoch")},
        "dataset": {
            "name": dataset,
            "split": "test",
            "file": recorded(data.h5_path),
            **data.sha256,
        },
        "classes": list(DATASETS[dataset].digits),
    }
    return Evaluation(model, data, dataset, output, about)


def run(args: argparse.Namespace, device: torch.device, members: ranks.Members) -> None:
    """Evaluate as the command line says, as one of the ranks; ``DJSW/main.py`` has the flags."""
    with ranks.in_turn():
        this = prepare(args)
    print(f"device      {ranks.described(device, members)}", flush=True)
    started = time.perf_counter()
    logits, classes = predict(this.model.to(device), load_rows(this.data, device), device)
    if ranks.rank() > 0:
        return
    results = measure(logits.cpu(), classes.cpu(), DATASETS[this.dataset].digits)
    session = facts(device, members)
    session |= spent(time.perf_counter() - started, session)
    try:
        write_json(this.output, {**this.about, **results, "session": session}, exclusive=True)
    except FileExistsError:
        raise _taken(args.exp_name, this.output) from None
    print(summary(results))
    print(f"metrics     {this.output}")


def measure(logits: Tensor, classes: Tensor, digits: Sequence[int]) -> dict[str, Any]:
    """Every number of an evaluation, from logits (N, C) and classes (N,); class k is digits[k]."""
    y_true = np.array(digits)[classes.numpy()]
    y_pred = np.array(digits)[logits.argmax(1).numpy()]
    return {
        "images": len(y_true),
        "correct": int((y_true == y_pred).sum()),
        "loss": F.cross_entropy(logits, classes).item(),
        "metrics": metrics.classification(y_true, y_pred, digits),
        "label_distance": metrics.label_distance(y_true, y_pred),
        "per_class": metrics.per_class(y_true, y_pred, digits),
    }


def summary(results: dict[str, Any]) -> str:
    """The results as text: nine metrics, then a line per class."""
    rows = ["", f"{results['correct']} of {results['images']} images right", ""]
    rows += [f"{name:<18}{value:8.4f}" for name, value in results["metrics"].items()]
    rows += ["", "label distance (digits taken as quantities)"]
    rows += [f"{name:<18}{value:8.4f}" for name, value in results["label_distance"].items()]
    rows += ["", "digit  precision  recall      f1  images"]
    rows += [
        f"{row['digit']:>5}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}"
        f"  {row['support']:6}"
        for row in results["per_class"]
    ]
    return "\n".join(rows) + "\n"


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
