"""Compare evaluations: ``python DJSW/compare.py reports/*_metrics.json``.

A table for each test set, best first, with intervals, and the differences of each two with their
significance; as Markdown, CSV and a bar chart.

``python DJSW/compare.py --everyone --exp_name standard`` first trains and evaluates every network
of the table on every dataset of the table, where that has not been done.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import utils.script  # noqa: F401

import argparse
import json
from collections.abc import Sequence

from DJSW import main as djsw
from DJSW.pipelines import DATASETS, PEOPLE, recognise
from utils.command_line import Parser, output_flags, run_command
from utils.comparison import TestSet, charted, markdown_page, table_csv, test_sets
from utils.evaluations import read_evaluation
from utils.failures import UsageError
from utils.files import ROOT, find_folder, find_path, recorded, sha256_of, writing
from utils.record import code_facts, write_json


def parser() -> Parser:
    """The flags."""
    flags = Parser("Rank evaluations by test set, and tell which differences are real.")
    flags.add_argument(
        "evaluations",
        nargs="*",
        metavar="EVALUATION",
        help="a …_metrics.json, a folder of them, or a checkpoint, which is evaluated first",
    )
    flags.add_argument(
        "--dataset", choices=DATASETS, help="test set for the checkpoints; default: their own"
    )
    flags.add_argument(
        "--everyone",
        action="store_true",
        help="every network on every dataset: loads, or trains, weights/NETWORK/network_EXP_NAME…",
    )
    output_flags(flags, "comparison")
    flags.add_argument(
        "--check", action="store_true", help="look whether it would run, and stop there"
    )
    return flags


def command(args: argparse.Namespace) -> None:
    """Train and evaluate what is missing, then compare; the files are named after ``exp_name``.

    :raises UsageError: a file is no evaluation, or damaged; or the name is taken.
    """
    folder = find_folder(args.output_dir, "--output_dir")
    record_file = folder / f"{args.exp_name}_comparison.json"
    if record_file.exists():
        raise _taken(args.exp_name, record_file)
    paths = everyone(args, folder) if args.everyone else []
    for given in args.evaluations:
        paths += found(given, args, folder)
    if args.check:
        for path in paths:
            if path.exists():
                read_evaluation(path)
        print("checked     this comparison would run")
        return
    compared = test_sets([read_evaluation(path) for path in dict.fromkeys(paths)])
    record = {
        "exp_name": args.exp_name,
        "evaluations": [
            {"file": recorded(path), "sha256": sha256_of(path)} for path in dict.fromkeys(paths)
        ],
        "test_sets": [test_set.record() for test_set in compared],
        "session": code_facts(),
    }
    try:
        write_json(record_file, record, exclusive=True)
    except FileExistsError:
        raise _taken(args.exp_name, record_file) from None
    save(compared, args.exp_name, folder)


def save(compared: Sequence[TestSet], exp_name: str, folder: Path) -> None:
    """Write the page, the table and the chart, and print the page."""
    from utils.figures import save_error_rates

    page = markdown_page(compared, exp_name)
    files = {name: folder / f"{exp_name}_comparison.{name}" for name in ("md", "csv", "png")}
    with writing(files["md"]) as temporary:
        temporary.write_text(page, encoding="utf-8")
    with writing(files["csv"]) as temporary:
        temporary.write_text(table_csv(compared), encoding="utf-8")
    save_error_rates(files["png"], f"{exp_name}: test errors", charted(compared))
    print(page)
    for what, name in (("page", "md"), ("table", "csv"), ("chart", "png")):
        print(f"{what:<11} {files[name]}")


def found(given: str, args: argparse.Namespace, folder: Path) -> list[Path]:
    """The metrics files that an argument stands for.

    :raises UsageError: there is no such path, or nothing in it.
    """
    path = find_path(given, "EVALUATION")
    if path.is_dir():
        paths = sorted(path.glob("*_metrics.json"))
        if not paths:
            raise UsageError(f"{path} holds no evaluation; give a folder with some …_metrics.json")
        return paths
    if path.suffix == ".json":
        return [path]
    from utils.checkpoint import load_checkpoint

    username, dataset = recognise(load_checkpoint(path), args.dataset)
    name = f"{path.stem.replace('_checkpoint_', '_')}_on_{dataset}"
    return evaluated(path, username, dataset, name, folder, check=args.check)


def everyone(args: argparse.Namespace, folder: Path) -> list[Path]:
    """The metrics files of every network on every dataset.

    What ``weights/`` and ``folder`` lack is trained and evaluated; a training that was stopped goes
    on. Networks on their owner's digits are named ``smlp_EXP_NAME``, on others
    ``smlp_EXP_NAME_DATASET``.
    """
    paths = []
    for username, person in PEOPLE.items():
        weights = ROOT / "weights" / person.model_name
        for dataset, entry in DATASETS.items():
            name = f"{person.model_name.lower()}_{args.exp_name}"
            if dataset != person.dataset:
                name += f"_{dataset}"
            best = weights / f"{name}_checkpoint_best.pt"
            record = weights / f"{name}_run.json"
            trained = record.exists() and json.loads(record.read_bytes())["status"] == "finished"
            if not (trained and best.exists()):
                weights.mkdir(parents=True, exist_ok=True)
                where = ["--username", username, "--exp_name", name, "--output_dir", str(weights)]
                what = ["--dataset", dataset, "--num_epochs", str(entry.epochs)]
                _main([*where, *what, "--train", "--resume"], check=args.check)
            if best.exists():  # a check trains nothing
                paths += evaluated(best, username, dataset, name, folder, check=args.check)
    return paths


def evaluated(
    checkpoint: Path, username: str, dataset: str, name: str, folder: Path, *, check: bool
) -> list[Path]:
    """The metrics file ``name`` of a checkpoint, which is evaluated where there is none yet.

    :raises UsageError: there is one, of another checkpoint or another test set.
    """
    path = folder / f"{name}_metrics.json"
    if path.exists():
        record = read_evaluation(path).record
        of = (record["checkpoint"]["sha256"], record["dataset"]["name"])
        if of != (sha256_of(checkpoint), dataset):
            raise UsageError(
                f"{path} is there already, of other weights or another test set; give another "
                "--output_dir or --exp_name"
            )
        return [path]
    what = ["--username", username, "--dataset", dataset, "--load_checkpoint", str(checkpoint)]
    _main([*what, "--exp_name", name, "--output_dir", str(folder)], check=check)
    return [path]


def _main(words: list[str], *, check: bool) -> None:
    """``DJSW/main.py`` with these flags, in this process."""
    djsw.command(djsw.parser().parse_args(words + ["--check"] * check))
    print(flush=True)


def _taken(exp_name: str, path: Path) -> UsageError:
    return UsageError(f"{exp_name!r} was compared before: {path} exists; give another --exp_name")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    flags = parser()
    args = flags.parse_args(argv)
    if not args.everyone and not args.evaluations:
        flags.error("nothing to compare: give some EVALUATION or --everyone")
    if args.everyone and args.exp_name is None:
        flags.error("--everyone needs --exp_name, which its trainings are named after")
    args.exp_name = args.exp_name or args.default_name
    return run_command(command, args)


if __name__ == "__main__":
    sys.exit(main())
