"""Predict handwritten digits: ``python DJSW/predict.py IMAGE… --load_checkpoint FILE``.

Photos, scans and drawings of a digit or a row of digits are converted to the form of the network's
dataset (with ``--raw`` they are in it already). The converted digits are saved with their three
most probable values, and all probabilities as CSV.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from DJSW.pipelines import DATASETS
from utils.cli import Parser, output_flags, run_command
from utils.distributed.environment import require_single_process
from utils.errors import UsageError, escaped, one_line
from utils.records import files
from utils.records.typed import check_type, read_json, shown
from utils.report.tables import align, percent

#: Predictions below this probability are marked, where :func:`threshold` knows no better one.
UNSURE = 0.9
#: Written by ``robustness.py`` for the published networks.
THRESHOLDS = files.ROOT / "reports" / "robustness" / "published_robustness.json"
#: Digits per sheet.
SHEET = 60


@dataclass(frozen=True)
class Digit:
    """A digit of a picture.

    :ivar number: from 1, from left to right, of ``count`` digits.
    :ivar box: left, top, right and bottom, as shares of the picture's width and height.
    :ivar original: the gray values of the picture in that box.
    :ivar image: (H, W), float32 in [0, 1], in the dataset's form.
    """

    path: Path
    number: int
    count: int
    box: tuple[float, ...]
    original: np.ndarray
    image: np.ndarray

    @property
    def name(self) -> str:
        """The name of the file, and of several digits the number."""
        place = f" {self.number}/{self.count}" if self.count > 1 else ""
        return f"{escaped(self.path.name)}{place}"


def parser() -> Parser:
    """Return the parser."""
    flags = Parser("Predict the digits on pictures of any size, color and polarity.")
    add = flags.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image file, or a folder that is searched")
    weights = "a checkpoint or a state dict; of several the mean probabilities are used"
    add("--load_checkpoint", required=True, nargs="+", metavar="FILE", help=weights)
    form = "the images are in the dataset's form already: white on black, of its size"
    add("--raw", action="store_true", help=form)
    output_flags(flags, "prediction")
    return flags


def command(args: argparse.Namespace) -> None:
    """Predict all images and save the results; unreadable files are reported and skipped.

    :raises UsageError: a flag is wrong, the name is taken, or (at the end) a file was skipped.
    """
    require_single_process()
    folder = files.find_folder(args.output_dir, "--output_dir")
    exp_name = args.exp_name
    table = folder / f"{exp_name}_predicted.csv"
    taken = UsageError(f"{table} exists already (give another --exp_name)")
    if table.exists():
        raise taken
    paths = [path for given in args.images for path in find_images(given)]
    weights = [files.find_file(path, "--load_checkpoint") for path in args.load_checkpoint]
    files.require_distinct(weights, "--load_checkpoint")

    from DJSW.networks import identify_checkpoint, try_model
    from utils.records.checkpoint import describe_all, load_checkpoint

    dataset, models = None, {}
    for path in weights:
        checkpoint = load_checkpoint(path)
        username, dataset, models[path] = identify_checkpoint(checkpoint, dataset)
        try_model(models[path], username, dataset, 2, train=False)
    assert dataset is not None, "argparse takes one file or more"
    entry = DATASETS[dataset]
    if entry.channels != 1:
        raise UsageError(
            f"--load_checkpoint {weights[0]} is of {dataset}, in color: pictures are read in gray "
            "(evaluate it with DJSW/main.py)"
        )
    if not (args.raw or entry.digit_size):
        raise UsageError(
            f"--load_checkpoint {weights[0]} is of {dataset}: pictures are converted for networks "
            f"of handwritten digits only (give images of its size, {entry.image_shape}, and --raw)"
        )
    classes = [*entry.classes.values()]
    known = f"{', '.join(classes[:-1])} and {classes[-1]}"
    print(f"network     {describe_all([*models.values()])}")
    print(*(f"weights     {path}" for path in weights), sep="\n")
    word = "classes    " if entry.names else "digits     "
    print(f"{word} {known}; a picture of anything else is taken for one of these", flush=True)
    if args.check:
        print("checked     this command would run")
        return

    digits = read_images(paths, dataset, raw=args.raw)
    readable = len({digit.path for digit in digits})
    if not digits:
        raise UsageError(f"none of the {len(paths)} files is a readable image (see above)")
    import torch

    from utils.engine.batches import log_probabilities, mean_probabilities

    batch = torch.from_numpy(np.array([digit.image for digit in digits]))[:, None]
    members = [log_probabilities(model, batch, path) for path, model in models.items()]
    probabilities = np.exp(mean_probabilities(members))
    unsure = threshold(weights)
    with files.exclusive_output(table, taken, r"predicted\.csv|seen(_\d+)?\.png"):
        save(table, digits, probabilities, classes, unsure)
    print(f"not sure    below {percent(unsure)}")
    skipped = len(paths) - readable
    if skipped:
        raise UsageError(f"{skipped} of {len(paths)} files were skipped (see above)")


def threshold(weights: Sequence[Path]) -> float:
    """Return the confidence that all but 5 % of a network's test images have, if it is known.

    :raises UsageError: the file of the thresholds is damaged.
    """
    if len(weights) > 1 or not THRESHOLDS.exists():
        return UNSURE
    try:
        record = read_json(THRESHOLDS)
        check_type(record, Thresholds)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{THRESHOLDS} is damaged: {shown(error)} (restore it)") from None
    found: float = record["thresholds"].get(files.sha256_of(weights[0]), UNSURE)
    return found


class Thresholds(TypedDict):
    """What :func:`threshold` reads: a confidence for each SHA-256 of a checkpoint."""

    thresholds: Mapping[str, float]


def find_images(given: str) -> list[Path]:
    """Return the file ``given``, or all files below that folder except hidden ones.

    :raises UsageError: the path does not exist, or the folder has no files.
    """
    path = files.find_path(given, "IMAGE")
    if not path.is_dir():
        return [path]
    below = sorted(file.relative_to(path) for file in path.rglob("*") if not file.is_dir())
    found = [path / file for file in below if not any(part[0] == "." for part in file.parts)]
    if not found:
        raise UsageError(f"IMAGE: {path} holds no files (give images or a folder of them)")
    return found


def read_images(paths: Sequence[Path], dataset: str, *, raw: bool) -> list[Digit]:
    """Return the digits of the readable files in the dataset's form; report the other files."""
    from tqdm import tqdm

    from utils import handwriting

    form, found = DATASETS[dataset], []
    for path in tqdm(paths, "images", leave=False, disable=None):
        try:
            gray = handwriting.read_image(path, color=not raw)
            if raw:
                images, boxes = (
                    handwriting.check_prepared(gray, form)[None],
                    np.array([[0, 0, 1, 1]]),
                )
            else:
                images, boxes = handwriting.prepare_image(gray, form)
        except handwriting.UnreadableImage as reason:
            tqdm.write(one_line(f"skipped: {path}: {reason}"), file=sys.stderr)
            continue
        size = np.tile(gray.shape[::-1], 2)
        for number, (image, box) in enumerate(zip(images, boxes, strict=True), start=1):
            left, top, right, bottom = np.rint(box * size).astype(int)
            original = gray[top:bottom, left:right]
            found.append(Digit(path, number, len(images), tuple(box), original, image))
    return found


def save(
    table: Path,
    digits: Sequence[Digit],
    probabilities: np.ndarray,
    classes: Sequence[str],
    unsure: float,
) -> None:
    """Draw the sheets, write the table, and print the predictions, with unsure ones marked.

    :param probabilities: (N, C).
    :param unsure: predictions with a lower probability are marked.
    """
    from utils.report.figures import save_predictions

    lines, captions, wide = [], [], max(map(len, classes))
    pictures: dict[Path, list[str]] = {}
    box = ("left", "top", "right", "bottom")
    rows = [["image", "number", *box, "predicted", *(f"p_{digit}" for digit in classes)]]
    for digit, row in zip(digits, probabilities, strict=True):
        best = [(classes[k], row[k]) for k in (-row).argsort(kind="stable")[:3]]
        note = "not sure: perhaps none of them" if best[0][1] < unsure else ""
        pictures.setdefault(digit.path, []).append(f"{best[0][0]}{'?' if note else ''}")
        lines.append([digit.name, *(f"{value:{wide}} {percent(p):>8}" for value, p in best), note])
        short = digit.name if len(digit.name) <= 24 else f"{digit.name[:12]}…{digit.name[-11:]}"
        texts = [f"{value}   {percent(p)}" for value, p in best]
        captions.append("\n".join([short, note.partition(":")[0], *texts]))
        place = (str(digit.number), *(f"{share:.4f}" for share in digit.box))
        name = escaped(str(digit.path))
        rows.append([name, *place, best[0][0], *(f"{p:.6g}" for p in row)])
    stem, sheets = table.name.removesuffix("predicted.csv"), []
    for start in range(0, len(digits), SHEET):
        number = f"_{start // SHEET + 1}" if len(digits) > SHEET else ""
        sheets.append(table.with_name(f"{stem}seen{number}.png"))
        sheet = digits[start : start + SHEET]
        pairs = [(digit.original, digit.image) for digit in sheet]
        save_predictions(sheets[-1], pairs, captions[start : start + SHEET])
    with (
        files.atomic_write(table, exclusive=True) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)
    print("", *align(lines, gap="   "), "", sep="\n")
    for path, values in pictures.items():
        if len(values) > 1:
            print(f"row         {escaped(path.name)}: {' '.join(values)}")
    counts = Counter(classes[k] for k in probabilities.argmax(1))
    text = ", ".join(f"{count} x {digit}" for digit, count in sorted(counts.items()))
    print(f"predicted   {text}; {sum(bool(line[-1]) for line in lines)} of {len(lines)} not sure")
    print(f"table       {table}", *(f"seen        {sheet}" for sheet in sheets), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
