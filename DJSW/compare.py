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
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from DJSW import main as djsw
from DJSW import recipes
from DJSW.pipelines import DATASETS, PEOPLE, recognise
from utils.command_line import Parser, output_flags, run_command
from utils.comparison import TestSet, charted, markdown_page, table_csv, test_sets
from utils.evaluations import read_evaluation
from utils.failures import UsageError
from utils.files import ROOT, find_folder, find_path, recorded, sha256_of, writing
from utils.launch import require_alone
from utils.lock import claimed
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
    require_alone()
    folder = find_folder(args.output_dir, "--output_dir")
    record_file = folder / f"{args.exp_name}_comparison.json"
    taken = UsageError(
        f"{args.exp_name!r} was compared before: {record_file} exists; give another --exp_name"
    )
    if record_file.exists():
        raise taken
    paths = everyone(args, folder) if args.everyone else []
    for found in [found_in(given, args.dataset) for given in args.evaluations]:
        if isinstance(found, Weights):
            found = [evaluated(found, folder, check=args.check)]
        paths += found
    paths = list(dict.fromkeys(paths))
    if args.check:
        for path in paths:
            if path.exists():
                read_evaluation(path)
        print("checked     this comparison would run")
        return
    compared = test_sets([read_evaluation(path) for path in paths])
    record = {
        "exp_name": args.exp_name,
        "evaluations": [{"file": recorded(path), "sha256": sha256_of(path)} for path in paths],
        "test_sets": [test_set.record() for test_set in compared],
        "session": code_facts(),
    }
    with claimed(record_file, taken):
        save(compared, args.exp_name, folder)
        write_json(record_file, record, exclusive=True)


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


@dataclass(frozen=True)
class Weights:
    """A checkpoint to be evaluated, and what the evaluation is called."""

    checkpoint: Path
    username: str
    dataset: str
    name: str


def found_in(given: str, dataset: str | None) -> list[Path] | Weights:
    """What an argument stands for: metrics files, or a checkpoint.

    :raises UsageError: there is no such path, nothing in it, or something else.
    """
    path = find_path(given, "EVALUATION")
    if path.is_dir():
        paths = sorted(path.glob("*_metrics.json"))
        if not paths:
            raise UsageError(f"{path} holds no evaluation; give a folder with some …_metrics.json")
        return paths
    if path.suffix == ".json":
        return [path]
    if path.suffix in (".csv", ".md", ".png"):
        raise UsageError(f"{path} is not what can be compared; give its …_metrics.json")
    from utils.checkpoint import load_checkpoint

    username, its_dataset = recognise(load_checkpoint(path), dataset)
    # Checkpoints of the same name lie in several folders.
    stem = re.sub(r"[^A-Za-z0-9_]+", "_", path.stem.replace("_checkpoint_", "_"))[:60]
    return Weights(path, username, its_dataset, f"{stem}_{sha256_of(path)[:8]}_on_{its_dataset}")


def everyone(args: argparse.Namespace, folder: Path) -> list[Path]:
    """The metrics files of every network on every dataset.

    What ``weights/`` and ``folder`` lack is trained and evaluated; a training that was stopped goes
    on. Networks on their owner's digits are named ``smlp_EXP_NAME``, on others
    ``smlp_EXP_NAME_DATASET``.

    :raises UsageError: there is a training of that name with other settings.
    """
    paths = []
    for username, person in PEOPLE.items():
        weights = ROOT / "weights" / person.model_name
        for dataset, entry in DATASETS.items():
            name = f"{person.model_name.lower()}_{args.exp_name}"
            if dataset != person.dataset:
                name += f"_{dataset}"
            where = ["--username", username, "--exp_name", name, "--output_dir", str(weights)]
            what = ["--dataset", dataset, "--num_epochs", str(entry.epochs), "--train", "--resume"]
            best = weights / f"{name}_checkpoint_best.pt"
            if not (best.exists() and is_trained(weights / f"{name}_run.json", where + what)):
                weights.mkdir(parents=True, exist_ok=True)
                _main(where + what, check=args.check)
            if best.exists():  # a check trains nothing
                this = Weights(best, username, dataset, name)
                paths.append(evaluated(this, folder, check=args.check))
    return paths


def is_trained(record_file: Path, words: list[str]) -> bool:
    """Whether a training by these flags is finished.

    :raises UsageError: it was trained by others, or its record is damaged.
    """
    if not record_file.exists():
        return False
    args = djsw.parser().parse_args(words)
    here = asdict(recipes.settings(args, args.dataset))
    try:
        record = json.loads(record_file.read_bytes())
        for name, value in record["settings"].items():
            if value != here[name]:
                raise UsageError(
                    f"{record_file} is of a training with {name} {value}, here it is "
                    f"{here[name]}; give another --exp_name"
                )
        return bool(record["status"] == "finished")
    except (ValueError, TypeError, LookupError, AttributeError):
        raise UsageError(
            f"{record_file} is no record of a training, or a damaged one; give another --exp_name"
        ) from None


def evaluated(weights: Weights, folder: Path, *, check: bool) -> Path:
    """The metrics file of a checkpoint, which is evaluated where there is none yet.

    :raises UsageError: there is one, of another checkpoint or another test set.
    """
    path = folder / f"{weights.name}_metrics.json"
    if path.exists():
        record = read_evaluation(path).record
        of = (record["checkpoint"]["sha256"], record["dataset"]["name"])
        if of != (sha256_of(weights.checkpoint), weights.dataset):
            raise UsageError(
                f"{path} is there already, of other weights or another test set; give another "
                "--output_dir"
            )
        return path
    what = ["--username", weights.username, "--dataset", weights.dataset]
    what += ["--load_checkpoint", str(weights.checkpoint)]
    _main([*what, "--exp_name", weights.name, "--output_dir", str(folder)], check=check)
    return path


def _main(words: list[str], *, check: bool) -> None:
    """``DJSW/main.py`` with these flags, in this process."""
    djsw.command(djsw.parser().parse_args(words + ["--check"] * check))
    print(flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    flags = parser()
    args = flags.parse_args(argv)
    if not args.everyone and not args.evaluations:
        flags.error("nothing to compare: give some EVALUATION or --everyone")
    if args.dataset and all(name.endswith(".json") for name in args.evaluations):
        flags.error("--dataset goes with checkpoints, of which none is given")
    if args.everyone and args.exp_name is None:
        flags.error("--everyone needs --exp_name, which its trainings are named after")
    args.exp_name = args.exp_name or args.default_name
    return run_command(command, args)


if __name__ == "__main__":
    sys.exit(main())
