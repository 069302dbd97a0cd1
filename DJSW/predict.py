"""Predict handwritten digits: ``python DJSW/predict.py IMAGE… --load_checkpoint FILE``.

Photos, scans and drawings are converted to the form of the network's dataset (with ``--raw`` they
are in it already). The converted images are saved with their three most probable digits, and all
probabilities as CSV.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
from collections.abc import Sequence
from typing import TYPE_CHECKING

from DJSW.pipelines import DATASETS, build_model, identify_checkpoint
from utils.cli import Parser, output_flags, run_command
from utils.distributed.environment import require_single_process
from utils.errors import UsageError
from utils.records import files
from utils.report.tables import align, percent

if TYPE_CHECKING:
    import numpy as np

#: The most probable digits of an image, best first, with their probabilities.
Prediction = list[tuple[int, float]]

#: Predictions below this probability are marked. With the published SMLP, these are 4 % of the test
#: digits 4-9, 60 % of its errors, and 34 % of the digits 0-3, which it does not know.
UNSURE = 0.9
#: Images per sheet.
SHEET = 60


def parser() -> Parser:
    """Return the parser."""
    flags = Parser("Predict the digits on pictures of any size, color and polarity.")
    flags.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, or a folder that is searched"
    )
    flags.add_argument(
        "--load_checkpoint", required=True, metavar="FILE", help="a checkpoint or a state dict"
    )
    flags.add_argument(
        "--raw",
        action="store_true",
        help="the images are in the dataset's form already: white on black, of its size",
    )
    output_flags(flags, "prediction")
    flags.add_argument("--check", action="store_true", help="only check the command")
    return flags


def command(args: argparse.Namespace) -> None:
    """Predict all images and save the results; unreadable files are reported and skipped.

    :raises UsageError: a flag is wrong, the name is taken, or (at the end) a file was skipped.
    """
    require_single_process()
    folder = files.find_folder(args.output_dir, "--output_dir")
    table = folder / f"{args.exp_name}_predicted.csv"
    taken = UsageError(f"{table} exists already (give another --exp_name)")
    if table.exists():
        raise taken
    paths = [path for given in args.images for path in find_images(given)]
    weights = files.find_file(args.load_checkpoint, "--load_checkpoint")

    from utils.records.checkpoint import describe, load_checkpoint

    checkpoint = load_checkpoint(weights)
    username, dataset = identify_checkpoint(checkpoint)
    model, _ = build_model(username, dataset, checkpoint)
    digits = DATASETS[dataset].digits
    known = f"{', '.join(map(str, digits[:-1]))} and {digits[-1]}"
    print(f"network     {describe(model)}, weights {weights}")
    print(f"digits      {known}; a picture of anything else is taken for one of these", flush=True)
    if args.check:
        print("checked     this prediction would run")
        return

    readable, images = prepare_images(paths, dataset, raw=args.raw)
    if not readable:
        raise UsageError(f"none of the {len(paths)} files is a readable image (see above)")
    import torch

    with torch.inference_mode():
        logits = [model.eval()(batch) for batch in torch.from_numpy(images)[:, None].split(512)]
    probabilities = torch.cat(logits).double().softmax(1).numpy()
    predictions = [top_k(row, digits) for row in probabilities]
    names = [files.escape_path(Path(path.name)) for path in readable]
    with files.exclusive_output(table, taken):
        sheets = save_sheets(folder / f"{args.exp_name}_seen.png", names, images, predictions)
        save_table(table, readable, probabilities, digits)
    print_predictions(names, predictions)
    print(f"table       {table}")
    for sheet in sheets:
        print(f"seen        {sheet}")
    skipped = len(paths) - len(readable)
    if skipped:
        raise UsageError(f"{skipped} of {len(paths)} files were skipped (see above)")


def find_images(given: str) -> list[Path]:
    """Return the file ``given``, or all files below that folder except hidden ones.

    :raises UsageError: the path does not exist, or the folder has no files.
    """
    path = files.find_path(given, "IMAGE")
    if not path.is_dir():
        return [path]
    below = [file.relative_to(path) for file in path.rglob("*") if not file.is_dir()]
    found = [path / file for file in sorted(below) if not any(p[0] == "." for p in file.parts)]
    if not found:
        raise UsageError(f"IMAGE: {path} holds no files (give images or a folder of them)")
    return found


def prepare_images(
    paths: Sequence[Path], dataset: str, *, raw: bool
) -> tuple[list[Path], "np.ndarray"]:
    """Return the readable files and their digits (N, H, W), float32, in the dataset's form."""
    import numpy as np
    from tqdm import tqdm

    from utils import handwriting

    prepare = handwriting.check_prepared if raw else handwriting.prepare_image
    readable, images = [], []
    for path in tqdm(paths, "images", leave=False, disable=None):
        try:
            images.append(prepare(handwriting.read_image(path), DATASETS[dataset]))
            readable.append(path)
        except handwriting.UnreadableImage as reason:
            tqdm.write(f"skipped: {files.escape_path(path)}: {reason}", file=sys.stderr)
    return readable, np.array(images)


def top_k(probabilities: "np.ndarray", digits: Sequence[int], k: int = 3) -> Prediction:
    """Return the ``k`` best of ``digits`` by their ``probabilities`` (C,) for an image."""
    best = (-probabilities).argsort(kind="stable")[:k]
    return [(digits[column], float(probabilities[column])) for column in best]


def print_predictions(names: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """Print a line per image; unsure predictions are marked."""
    rows = [
        [
            name,
            *(f"{digit} {percent(p):>8}" for digit, p in prediction),
            "not sure: perhaps none of them" if prediction[0][1] < UNSURE else "",
        ]
        for name, prediction in zip(names, predictions, strict=True)
    ]
    print("", *align(rows, gap="   "), "", sep="\n", flush=True)


def save_table(
    table: Path, paths: Sequence[Path], probabilities: "np.ndarray", digits: Sequence[int]
) -> None:
    """Write a CSV row per image: its file, the predicted digit, its ``probabilities`` (N, C)."""
    with (
        files.atomic_write(table, exclusive=True) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "predicted", *(f"p_{digit}" for digit in digits)])
        for path, row in zip(map(files.escape_path, paths), probabilities, strict=True):
            writer.writerow([path, digits[row.argmax()], *(f"{p:.6g}" for p in row)])


def save_sheets(
    path: Path, names: Sequence[str], images: "np.ndarray", predictions: Sequence[Prediction]
) -> list[Path]:
    """Draw ``images`` (N, H, W), in [0, 1], with their predictions; return the sheets' paths."""
    from utils.report.figures import save_mosaic

    captions = [
        "\n".join([name[:20], "", *(f"{digit}   {percent(p)}" for digit, p in prediction)])
        for name, prediction in zip(names, predictions, strict=True)
    ]
    sheets = []
    for start in range(0, len(names), SHEET):
        rows = slice(start, start + SHEET)
        number = f"_{start // SHEET + 1}" if len(names) > SHEET else ""
        sheets.append(path.with_name(f"{path.stem}{number}.png"))
        title = "what the network sees, and its three most probable digits"
        save_mosaic(sheets[-1], title, images[rows], captions[rows], columns=4, beside=True)
    return sheets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = parser().parse_args(argv)
    args.exp_name = args.exp_name or args.default_name
    return run_command(command, args)


if __name__ == "__main__":
    sys.exit(main())
