"""The flags that the datasets' commands share, and what they do."""

import argparse
from collections.abc import Callable
from pathlib import Path

from utils.command_line import Parser, digits
from utils.failures import UsageError
from utils.files import find_file


def parser(dataset: str) -> Parser:
    """The flags that every dataset's command has."""
    flags = Parser(f"Make an HDF5 file of {dataset.upper()} digits, or verify one.")
    task = flags.add_mutually_exclusive_group(required=True)
    task.add_argument("--train", action="store_true", help="the training split")
    task.add_argument("--test", action="store_true", help="the test split")
    task.add_argument("--verify", metavar="FILE", help="check FILE against its own hashes")
    flags.add_argument("--keep", type=digits, metavar="4,5,6", help="digits to keep (default: all)")
    flags.add_argument(
        "--output",
        metavar="FILE",
        help="file to write (default: where training looks for it, such as "
        f"data/processed/{dataset}_test_4_9.h5)",
    )
    return flags


def output_of(args: argparse.Namespace, dataset: str) -> str:
    """``--output``, else the name by the convention ``{dataset}[_test][_{first}_{last}].h5``."""
    if args.output is not None:
        return str(args.output)
    name = dataset + ("" if args.train else "_test")
    if args.keep:
        first, last = args.keep[0], args.keep[-1]
        if args.keep != tuple(range(first, last + 1)):
            raise UsageError(f"--keep {args.keep} has gaps, so its file has no name; give --output")
        name += f"_{first}_{last}"
    return f"data/processed/{name}.h5"


def run(dataset: str, create: Callable[..., Path], args: argparse.Namespace) -> None:
    """Run a dataset's command: verify a file, or make one by ``create``."""
    if args.verify is not None:
        if args.keep or args.output:
            raise UsageError("--verify checks a file as it is; leave --keep and --output out")
        from datasetprep.h5_files import verify  # imports torch: not for --help

        print(verify(find_file(args.verify, "--verify")))
    else:
        more = {"raw_dir": args.raw_dir} if "raw_dir" in args else {}
        create(output_of(args, dataset), train=args.train, labels_to_keep=args.keep, **more)
