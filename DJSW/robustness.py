"""Beyond the test set: ``python DJSW/robustness.py CHECKPOINT…``.

Evaluates networks on corrupted copies of their test images and on the digits they share with the
other source, and measures how well their confidence tells their own digits from images of anything
else. A page, a table and a picture for each dataset; networks of one dataset side by side.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from DJSW.pipelines import DATASETS, open_split
from utils.cli import Parser, output_flags, run_command
from utils.distributed.environment import require_single_process
from utils.errors import MissingData, UsageError
from utils.records import files
from utils.records.provenance import code_provenance, write_json
from utils.report.robustness_page import MOST, SHARES, UNSURE, robustness_csv, robustness_page
from utils.statistics.intervals import Clusters, accuracy_interval, percentile_interval
from utils.statistics.selective import accuracy_without_least_sure, auroc

if TYPE_CHECKING:
    from torch import Tensor

#: Log probabilities (N, C) of images (N, channels, H, W).
Predict = Callable[["Tensor"], np.ndarray]


def parser() -> Parser:
    """Return the parser."""
    flags = Parser("Evaluate networks on corrupted images, on other datasets and on noise.")
    add = flags.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="a checkpoint or a state dict")
    output_flags(flags, "robustness")
    return flags


def command(args: argparse.Namespace) -> None:
    """Evaluate all checkpoints and write the page.

    :raises UsageError: a file is no checkpoint, two have one name, or the output's name is taken.
    :raises RunError: data are missing.
    """
    require_single_process()
    folder = files.find_folder(args.output_dir, "--output_dir")
    exp_name = args.exp_name
    output = folder / f"{exp_name}_robustness.json"
    taken = UsageError(f"{output} exists already (give another --exp_name)")
    if output.exists():
        raise taken
    networks: dict[str, dict[str, Predict]] = {name: {} for name in DATASETS}
    weights = {}
    for path in [files.find_file(name, "CHECKPOINT") for name in args.checkpoints]:
        name = path.stem.removesuffix("_best").removesuffix("_checkpoint")
        if name in weights:
            raise UsageError(f"CHECKPOINT: two are named {name!r}; rename one or leave it out")
        weights[name] = {"file": files.relative_to_root(path), "sha256": files.sha256_of(path)}
        dataset, predict = load(path)
        networks[dataset][name] = predict
    if args.check:
        print("checked     this command would run")
        return
    found = {}
    for dataset, predicts in networks.items():
        if predicts:
            print(f"evaluating  {', '.join(predicts)} on {dataset}", flush=True)
            found[dataset] = measure(dataset, predicts)
    page, table = (folder / f"{exp_name}_robustness{ending}" for ending in (".md", ".csv"))
    record = {
        "exp_name": exp_name,
        "checkpoints": weights,
        "thresholds": {  # read by predict.py
            weights[name]["sha256"]: own["threshold"]
            for of_dataset in found.values()
            for name, own in of_dataset["networks"].items()
        },
        "datasets": found,
        "session": code_provenance(),
    }
    text = robustness_page(exp_name, found)
    from utils.report.figures import save_robustness

    with files.exclusive_output(output, taken, r"robustness(_\w+)?\.(json|md|csv|png)"):
        for dataset, of_networks in found.items():
            picture = folder / f"{exp_name}_robustness_{dataset}.png"
            save_robustness(picture, dataset, of_networks)
        files.write_text(page, text)
        files.write_text(table, robustness_csv(found))
        write_json(output, record, exclusive=True)
    print(f"{text}\npage        {page}\ntable       {table}")


def load(path: Path) -> tuple[str, Predict]:
    """Return the dataset of a checkpoint, and its predictions.

    :raises UsageError: it is none, or fits nobody's network.
    """
    from DJSW.networks import identify_checkpoint, try_model
    from utils.engine.batches import log_probabilities
    from utils.records.checkpoint import load_checkpoint

    username, dataset, model = identify_checkpoint(load_checkpoint(path))
    try_model(model, username, dataset, 2, train=False)
    return dataset, lambda images: log_probabilities(model, images, path)


def measure(dataset: str, networks: dict[str, Predict]) -> dict[str, Any]:
    """Return all numbers of the networks of one dataset, by network and as plain values.

    ``accuracy``: by condition, the accuracies with their ends; of a corruption first the mean of
    its five strengths, then each. ``selective``: accuracy and lowest confidence if each of
    :data:`SHARES` is set aside. ``threshold``: that confidence for :data:`UNSURE`, at most
    :data:`MOST`; ``unsure`` are the shares below it. ``unknown``: by kind of images, their number,
    AUROC with its ends, and the share below the threshold.
    """
    from utils.corruptions import CORRUPTIONS, corrupt

    data = open_split(dataset, train=False)
    images, classes = data[:][0], data.classes
    clusters = Clusters.of(data.writers, len(data))
    found: dict[str, Any] = {
        "images": len(data),
        "clusters": f"{clusters.count} {clusters.kind}",
        "corruptions": CORRUPTIONS,
        "networks": {name: {"accuracy": {}, "unknown": {}, "unsure": {}} for name in networks},
    }
    confidence: dict[str, np.ndarray] = {}
    for name, predict in networks.items():
        own, predicted = found["networks"][name], predict(images)
        confidence[name], correct = np.exp(predicted.max(1)), predicted.argmax(1) == classes
        own["accuracy"]["none"] = [_accuracy(correct[None], clusters)]
        left = accuracy_without_least_sure(confidence[name], correct, np.array(SHARES))
        own["selective"] = np.stack(left, axis=1).tolist()
        own["threshold"] = min(own["selective"][SHARES.index(UNSURE)][1], MOST)
        unsure = confidence[name] < own["threshold"]
        for answer, part in (("correct", unsure[correct]), ("wrong", unsure[~correct])):
            own["unsure"][answer] = float(part.mean()) if len(part) else None
    for kind, (_, strengths) in CORRUPTIONS.items():
        answers: dict[str, list[np.ndarray]] = {name: [] for name in networks}
        for level in range(len(strengths)):
            corrupted = corrupt(images, kind, level)
            for name, predict in networks.items():
                answers[name].append(predict(corrupted).argmax(1) == classes)
        for name, correct in answers.items():
            levels = [_accuracy(each[None], clusters) for each in correct]
            own = found["networks"][name]
            own["accuracy"][kind] = [_accuracy(np.stack(correct), clusters), *levels]
    for other, shared, refitted, digits, groups in other_sources(dataset):
        if shared:
            numbers = np.array([DATASETS[dataset].labels.index(digit) for digit in digits])
            for name, predict in networks.items():
                correct = predict(refitted).argmax(1) == numbers
                own = found["networks"][name]
                own["accuracy"][other] = [_accuracy(correct[None], groups)]
            continue
        for name, predict in networks.items():
            others = np.exp(predict(refitted).max(1))
            area = auroc(confidence[name], others, clusters, groups)
            own = found["networks"][name]
            below = float((others < own["threshold"]).mean())
            own["unknown"][other] = [len(others), *area, below]
    return found


def _accuracy(correct: np.ndarray, clusters: Clusters) -> list[float]:
    """Return the mean accuracy over rows of (K, N), and its ends."""
    if len(correct) == 1:
        return [float(correct.mean()), *accuracy_interval(correct, clusters)]
    means = clusters.resample_means(correct.mean(0)[None])[:, 0]
    return [float(correct.mean()), *percentile_interval(means).tolist()]


def other_sources(
    dataset: str,
) -> Iterator[tuple[str, bool, "Tensor", np.ndarray, Clusters]]:
    """Yield the name, whether the network knows the digits, images, digits and clusters.

    These are the test images of the other datasets, the classes that it knows (of another source)
    and those that it does not; and noise. Other sizes are fitted for digits only.
    """
    import torch

    from utils.handwriting import refit

    entry = DATASETS[dataset]

    def prepared(images: np.ndarray, *, same: bool) -> "Tensor":
        scaled = images / np.float32(255)
        fitted = scaled if same else np.stack([refit(image, entry) for image in scaled])
        tensor = torch.from_numpy(fitted)
        return tensor.movedim(-1, 1) if entry.channels == 3 else tensor.unsqueeze(1)

    for name, other in DATASETS.items():
        same = other.image_shape == entry.image_shape
        if name == dataset:
            continue
        if not same and not (entry.digit_size and other.channels == entry.channels):
            print(f"left out    {name}: of another size, and only gray digits are fitted")
            continue
        try:
            data = open_split(name, train=False)
        except MissingData as error:
            print(f"left out    {name}: {error}", flush=True)
            continue
        own = [label for label, text in other.classes.items() if entry.classes.get(label) == text]
        known = np.isin(data.labels, own)
        for shared in (True, False):
            rows = np.flatnonzero(known == shared)
            if len(rows) and not (shared and other.source == entry.source):
                digits = data.labels[rows]
                text = ", ".join(other.classes[label] for label in np.unique(digits).tolist())
                writers = None if data.writers is None else data.writers[rows]
                images = prepared(data.images[rows], same=same)
                label = name if other.names else f"{text} of {name}"
                yield label, shared, images, digits, Clusters.of(writers, len(rows))
    size = (2000, entry.channels, *entry.image_size)
    noise = torch.rand(size, generator=torch.Generator().manual_seed(0))
    yield "noise", False, noise, np.empty(0), Clusters("images", np.arange(2000))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
