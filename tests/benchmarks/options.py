"""The flags that the benchmarks share; read before torch is loaded, which takes seconds."""

import argparse
from pathlib import Path


def options(description: str, rounds: int | None = None) -> argparse.Namespace:
    """``output`` (a folder, or None) and, where there are rounds, ``rounds``."""
    flags = argparse.ArgumentParser(description=description.split("\n\n")[0], allow_abbrev=False)
    if rounds is not None:
        flags.add_argument(
            "--rounds", type=int, default=rounds, help=f"turns of each contender; default {rounds}"
        )
    flags.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for the tables and the times, such as reports/benchmarks; default: only print",
    )
    args = flags.parse_args()
    if args.output is not None and not args.output.is_dir():
        flags.error(f"--output {args.output} is no existing folder")
    if rounds is not None and args.rounds < 1:
        flags.error(f"--rounds {args.rounds} is less than 1")
    return args
