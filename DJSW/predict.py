"""Try one's own handwriting: ``python DJSW/predict.py IMAGE… --load_checkpoint FILE``.

Photos, scans and drawings are prepared as the network's dataset was made (``--raw``: are used as
they are). What the network sees is saved beside its three likeliest digits, and all probabilities
as CSV.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import utils.script  # noqa: F401

import argparse
import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from DJSW.pipelines import DATASETS, build_model, recognise
from utils.command_line import Parser, output_flags, run_command
from utils.failures import UsageError
from utils.files import find_file, find_folder, find_path, printable, writing
from utils.launch import require_alone
from utils.lock import claimed
from utils.tables import percent

if TYPE_CHECKING:
    import numpy as np

#: Below this probability an answer is marked. By the published SMLP 4 % of the test digits 4-9 are,
#: 60 % of those that it gets wrong, and 34 % of the digits 0-3, which it does not know.
UNSURE = 0.9
#: Images on one picture.
SHEET = 60


def parser() -> Parser:
    """The flags."""
    flags = Parser("Predict the digits on pictures of any size, colour and polarity.")
    flags.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, or a folder of them with all below"
    )
    flags.add_argument(
        "--load_checkpoint", required=True, metavar="FILE", help="a checkpoint or a state dict"
    )
    flags.add_argument(
        "--raw",
        action="store_true",
        help="the images are in the data's form already: white on black, of its size",
    )
    output_flags(flags, "prediction")
    flags.add_argument(
        "--check", action="store_true", help="look whether it would run, and stop there"
    )
    return flags


def command(args: argparse.Namespace) -> None:
    """Predict all images; files that are none are named and skipped.

    :raises UsageError: a file was skipped, at the end; a flag is wrong, or the name is taken.
    """
    require_alone()
    folder = find_folder(args.output_dir, "--output_dir")
    table = folder / f"{args.exp_name}_predicted.csv"
    taken = UsageError(
        f"{args.exp_name!r} is there already: {table} exists; give another --exp_name"
    )
    if table.exists():
        raise taken
    paths = [path for given in args.images for path in files_of(given)]
    weights = find_file(args.load_checkpoint, "--load_checkpoint")

    from utils.checkpoint import describe, load_checkpoint

    checkpoint = load_checkpoint(weights)
    username, dataset = recognise(checkpoint)
    model, _ = build_model(username, dataset, checkpoint)
    digits = DATASETS[dataset].digits
    known = f"{', '.join(map(str, digits[:-1]))} and {digits[-1]}"
    print(f"network     {describe(model)}, weights {weights}")
    print(f"digits      {known}; a picture of anything else is taken for one of these", flush=True)
    if args.check:
        print("checked     this prediction would run")
        return

    names, images = prepared(paths, dataset, raw=args.raw)
    if not names:
        raise UsageError(f"none of the {len(paths)} files is an image to predict, see above")
    import torch

    with torch.inference_mode():
        logits = [model.eval()(batch) for batch in torch.from_numpy(images)[:, None].split(512)]
    probabilities = torch.cat(logits).double().softmax(1).numpy()
    answers = [likeliest(row, digits) for row in probabilities]
    with claimed(table, taken):
        sheets = save_seen(folder / f"{args.exp_name}_seen.png", names, images, answers)
        with writing(table, exclusive=True) as temporary:
            temporary.write_text(table_csv(names, probabilities, digits), encoding="utf-8")
    tell(names, answers)
    print(f"table       {table}")
    for sheet in sheets:
        print(f"seen        {sheet}")
    if len(names) < len(paths):
        raise UsageError(f"{len(paths) - len(names)} of {len(paths)} files were skipped, see above")


def files_of(given: str) -> list[Path]:
    """An image file, or those in a folder and below, hidden ones left out.

    :raises UsageError: there is no such path, or the folder is empty.
    """
    path = find_path(given, "IMAGE")
    if not path.is_dir():
        return [path]
    found = sorted(
        file
        for file in path.rglob("*")
        if not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise UsageError(f"{path} holds no files; give images, or a folder of them")
    return found


def prepared(paths: Sequence[Path], dataset: str, *, raw: bool) -> tuple[list[Path], "np.ndarray"]:
    """The files that are images, and their digits (N, H, W) float32 in the form of the dataset."""
    import numpy as np
    from tqdm import tqdm

    from utils.digit_images import NotADigit, as_given, as_trained, read_image

    prepare = as_given if raw else as_trained
    names, images = [], []
    for path in tqdm(paths, "pictures", leave=False, disable=None):
        try:
            images.append(prepare(read_image(path), DATASETS[dataset]))
            names.append(path)
        except NotADigit as reason:
            tqdm.write(f"skipped: {printable(path)}: {reason}", file=sys.stderr)
    return names, np.array(images)


def likeliest(probabilities: "np.ndarray", digits: Sequence[int]) -> list[tuple[int, float]]:
    """Of one image's probabilities (C,), the three most probable digits and theirs, in [0, 1]."""
    best = (-probabilities).argsort(kind="stable")[:3]
    return [(digits[column], float(probabilities[column])) for column in best]


def tell(names: Sequence[Path], answers: Sequence[Sequence[tuple[int, float]]]) -> None:
    """A line an image; answers that are not sure are marked."""
    shown = [printable(Path(path.name)) for path in names]
    width = max(map(len, shown))
    print()
    for name, answer in zip(shown, answers, strict=True):
        three = "   ".join(f"{digit} {percent(p):>8}" for digit, p in answer)
        unsure = "   not sure: perhaps none of them" if answer[0][1] < UNSURE else ""
        print(f"{name:<{width}}   {three}{unsure}")
    print(flush=True)


def table_csv(names: Sequence[Path], probabilities: "np.ndarray", digits: Sequence[int]) -> str:
    """A line an image: its file, the predicted digit, and of ``probabilities`` (N, C) its row."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "predicted", *(f"p_{digit}" for digit in digits)])
    for path, row in zip(names, probabilities, strict=True):
        writer.writerow([printable(path), digits[row.argmax()], *(f"{p:.6g}" for p in row)])
    return text.getvalue()


def save_seen(
    path: Path,
    names: Sequence[Path],
    images: "np.ndarray",
    answers: Sequence[Sequence[tuple[int, float]]],
) -> list[Path]:
    """Pictures of ``images`` (N, H, W) in [0, 1], with the three likeliest digits; their files."""
    from utils.figures import save_mosaic

    captions = [
        "\n".join(
            [
                printable(Path(name.name))[:20],
                "",
                *(f"{digit}   {percent(p)}" for digit, p in answer),
            ]
        )
        for name, answer in zip(names, answers, strict=True)
    ]
    sheets = []
    for start in range(0, len(names), SHEET):
        rows = slice(start, start + SHEET)
        number = f"_{start // SHEET + 1}" if len(names) > SHEET else ""
        sheets.append(path.with_name(f"{path.stem}{number}.png"))
        title = "what the network sees, and its three likeliest digits"
        save_mosaic(sheets[-1], title, images[rows], captions[rows], columns=4, beside=True)
    return sheets


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parser().parse_args(argv)
    args.exp_name = args.exp_name or args.default_name
    return run_command(command, args)


if __name__ == "__main__":
    sys.exit(main())
