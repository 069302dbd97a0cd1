"""List what ran, newest first: ``python DJSW/runs.py [FOLDER …]``."""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import utils.script  # noqa: F401

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from utils.command_line import Parser, run_command
from utils.files import find_folder

COLUMNS = (
    "when (UTC)",
    "who",
    "what",
    "status",
    "dataset",
    "best epoch",
    "accuracy",
    "device",
    "job",
    "commit",
)


def parser() -> Parser:
    """The flags."""
    flags = Parser("List the records of trainings and evaluations, newest first.")
    flags.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        default=["weights", "reports"],
        help="where to look, with all below; default: weights and reports",
    )
    return flags


def command(args: argparse.Namespace) -> None:
    """Print the table; files that are no records are named on stderr."""
    rows = []
    for folder in dict.fromkeys(find_folder(name, "FOLDER") for name in args.folders):
        for path in sorted([*folder.rglob("*_run.json"), *folder.rglob("*_metrics.json")]):
            try:
                cells = row(json.loads(path.read_text(encoding="utf-8")))
                if "reproduced" in path.parts:
                    cells = (*cells[:3], "reproduced", *cells[4:])
            except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
                print(f"no record: {path}", file=sys.stderr)
            else:
                rows.append([" ".join(str(cell).split()) for cell in cells])
    if not rows:
        print("no records yet; DJSW/main.py leaves one of each run")
        return
    rows.sort(reverse=True)
    lines = [COLUMNS, *((started[:16].replace("T", " "), *cells) for started, *cells in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        aligned = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(aligned).rstrip())
    if any(line[-1].endswith("*") for line in lines):
        print("\n* with changes that were not committed; the record has them")


def row(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a record, in the order of :data:`COLUMNS`."""
    trained = "settings" in record
    sessions = record["sessions"] if trained else [record["session"]]
    session, git = sessions[-1], sessions[-1]["git"]
    changed = any((each["git"] or {}).get("changed") for each in sessions)
    epochs = accuracy = "-"
    if not trained:
        status = "evaluated"
        epochs = str(record["checkpoint"]["epoch"] or "-")
        accuracy = f"{record['metrics']['accuracy']:.4f} test"
    else:
        status = {"finished": "trained", "running": "unfinished"}.get(
            record["status"], record["status"]
        )
        if "results" in record:
            epochs = f"{record['results']['best']['epoch']} of {record['results']['last']['epoch']}"
            accuracy = f"{record['results']['best']['validation_accuracy']:.4f} validation"
    ranks = len(session["device"].get("ranks", [None]))
    name = session["device"]["name"] if session["device"]["type"] == "cuda" else "CPU"
    job = session["slurm"].get("SLURM_ARRAY_JOB_ID")
    task = session["slurm"].get("SLURM_ARRAY_TASK_ID")
    return (
        session["started"],
        record["username"],
        record["exp_name"],
        status,
        record["dataset"]["name"],
        epochs,
        accuracy,
        f"{ranks} x {name}" if ranks > 1 else name,
        f"{job}_{task}" if job else session["slurm"].get("SLURM_JOB_ID", "-"),
        f"{git['commit'][:7]}{'*' * changed}" if git else "-",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    return run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
