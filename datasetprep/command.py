"""The command line that the dataset scripts share."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from utils.cli import Parser, labels, run_command
from utils.errors import UsageError
from utils.records.files import find_file


def parser(dataset: str) -> Parser:
    """Return a parser with the flags of every dataset script."""
    name = {"fashion": "Fashion-MNIST"}.get(dataset, dataset.upper())
    flags = Parser(f"Create an HDF5 file of {name}'s images, or verify one.")
    task = flags.add_mutually_exclusive_group(required=True)
    task.add_argument("--train", action="store_true", help="the training split")
    task.add_argument("--test", action="store_true", help="the test split")
    task.add_argument("--verify", metavar="FILE", help="check FILE against its own hashes")
    flags.add_argument("--keep", type=labels, metavar="4,5,6", help="labels to keep (default: all)")
    output = f"where training looks for it, such as data/processed/{dataset}_test_4_9.h5"
    flags.add_argument("--output", metavar="FILE", help=f"file to write (default: {output})")
    return flags


def main(dataset: str, create: Callable[..., Path], argv: Sequence[str] | None = None) -> int:
    """Run the command of a dataset with these flags only, and return its exit status."""
    return run_command(partial(run, dataset, create), parser(dataset).parse_args(argv))


def run(dataset: str, create: Callable[..., Path], args: argparse.Namespace) -> None:
    """Verify a file, or create one with ``create(output_path, train=…, labels_to_keep=…)``."""
    if args.verify is None:
        create(_output_path(args, dataset), train=args.train, labels_to_keep=args.keep)
        return
    if args.keep or args.output:
        raise UsageError("--verify: checks a file as it is (remove --keep and --output)")
    from datasetprep.h5_files import verify  # imports torch, which --help does without

    print(verify(find_file(args.verify, "--verify")))


def _output_path(args: argparse.Namespace, dataset: str) -> str:
    """Return ``--output``, by default ``data/processed/{dataset}[_test][_{first}_{last}].h5``."""
    if args.output is not None:
        return str(args.output)
    name = dataset + ("" if args.train else "_test")
    if args.keep:
        first, last = args.keep[0], args.keep[-1]
        if len(args.keep) <= last - first:
            raise UsageError(f"--keep: {args.keep} has gaps, so no default name (give --output)")
        name += f"_{first}_{last}"
    return f"data/processed/{name}.h5"
