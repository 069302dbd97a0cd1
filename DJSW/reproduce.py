"""Run a record again and compare: ``python DJSW/reproduce.py weights/SMLP/smlp_standard_run.json``.

A training is compared by its losses and the hashes of its weights, an evaluation
(``…_metrics.json``) by every number in it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from DJSW.arguments import EvaluateArguments, TrainArguments
from DJSW.pipelines import DATASETS, PEOPLE, open_split
from DJSW.recipes import FLAGS, settings
from utils.cli import Parser, run_command
from utils.distributed.environment import env_rank, rank_info
from utils.errors import RunError, UsageError
from utils.records.evaluation import EvaluationRecord, read_evaluation
from utils.records.files import ROOT, FileRecord, find_file, sha256_of
from utils.records.provenance import describe_platform, flat, source_hashes, versions
from utils.records.run import Run, read_run
from utils.report.tables import align

#: Numbers that differ between two equal runs: how long they took, and what their files are called.
DIFFERENT = ("seconds", "training_seconds", "gpu_hours", "checkpoint")


def parser() -> Parser:
    """Return the parser."""
    flags = Parser("Run a record again, and compare the results.")
    flags.add_argument("record", help="a training's …_run.json or an evaluation's …_metrics.json")
    flags.add_argument("--check", action="store_true", help="only check whether it can run again")
    return flags


def command(args: argparse.Namespace) -> None:
    """Run it in ``reports/reproduced/``, and print what differs.

    :raises UsageError: the file is no record of something that ended.
    :raises RunError: the data or the weights it started with differ, or the results do.
    """
    path = find_file(args.record, "the record")
    if path.name.endswith("_metrics.json"):
        _reproduce_evaluation(path, check=args.check)
    else:
        _reproduce_training(path, check=args.check)


def _reproduce_training(path: Path, *, check: bool) -> None:
    record = read_run(path)
    if record["status"] != "finished":
        raise UsageError(f"{path} is of a run that is {record['status']}; finish it first")
    folder, new = _output(path, record["exp_name"], "run.json")
    if new.exists() and read_run(new)["status"] == "finished":
        raise _reproduced_before(folder)
    _use_recorded_threads(record["sessions"][-1])
    recorded = record["settings"]
    flags: dict[str, Any] = _shared_arguments(path, record, folder)
    flags |= {name: recorded.get(name) for name in ("recipe", *FLAGS, "seed", "patience")}
    start = _input_file(record["starting_weights"])
    # A reproduction that was stopped is resumed.
    args = TrainArguments(**flags, load_checkpoint=start, resume=True)
    before = _training_numbers(record, path)
    if env_rank() == 0:
        _print_differences(record["sessions"])
        expected = dict(flat(asdict(settings(args, record["dataset"]["name"]))))
        for name, value in flat(recorded):
            if expected.get(name) != value:
                print(f"recipe      {name} was {value}, is {expected.get(name)}")
    _check_data(record, train=True)
    if check:
        print("checked     this record can be run again")
        return
    from DJSW.train import train_model

    folder.mkdir(parents=True, exist_ok=True)
    train_model(args)
    if env_rank() == 0:
        compare(before, _training_numbers(read_run(new), new))


def _reproduce_evaluation(path: Path, *, check: bool) -> None:
    record = read_evaluation(path).record
    folder, new = _output(path, record["exp_name"], "metrics.json")
    if new.exists():
        raise _reproduced_before(folder)
    _use_recorded_threads(record["session"])
    args = EvaluateArguments(
        **_shared_arguments(path, record, folder),
        load_checkpoint=_input_file(record["checkpoint"]) or "",
    )
    if env_rank() == 0:
        _print_differences([record["session"]])
    _check_data(record, train=False)
    if check:
        print("checked     this record can be run again")
        return
    from DJSW.evaluate import evaluate_model

    folder.mkdir(parents=True, exist_ok=True)
    evaluate_model(args)
    if env_rank() == 0:
        compare(_evaluation_numbers(record), _evaluation_numbers(read_evaluation(new).record))


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Print that everything is the same, or a table of what differs.

    The history is compared only if both have one.

    :raises RunError: something differs.
    """
    history = {name for name in after if name.startswith("epoch ")}
    if history and not any(name.startswith("epoch ") for name in before):
        print("note        no history is beside the record; only the results are compared")
        after = {name: value for name, value in after.items() if name not in history}
    different = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not different:
        print(f"identical   all {len(before)} numbers and hashes")
        return
    rows, epoch = [("", "recorded", "again", "difference")], None
    for name in different:
        if name.startswith("epoch "):  # only the first epoch that differs: the rest follows from it
            epoch = epoch or name.split(".")[0]
            if name.split(".")[0] != epoch:
                continue
        rows.append(_table_row(name, before.get(name), after.get(name)))
    print("\n".join(align(rows, right=(1, 2, 3))))
    since = f", the history from {epoch} on" if epoch else ""
    raise RunError(f"{len(different)} of {len(before)} numbers and hashes differ{since}")


def _table_row(name: str, before: Any, after: Any) -> tuple[str, str, str, str]:
    def short(value: Any) -> str:
        return f"{value:.9g}" if isinstance(value, float) else str(value)[:12]

    numbers = isinstance(before, (int, float)) and isinstance(after, (int, float))
    return name, short(before), short(after), f"{after - before:+.3g}" if numbers else ""


def _output(path: Path, exp_name: str, ending: str) -> tuple[Path, Path]:
    """Return a folder of its own for each record, the same on each rank, and the new record."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    folder = ROOT / "reports" / "reproduced" / f"{path.stem}_{digest}"
    return folder, folder / f"{exp_name}_{ending}"


def _reproduced_before(folder: Path) -> UsageError:
    return UsageError(f"{folder} holds an earlier reproduction; remove it")


def _use_recorded_threads(session: Mapping[str, Any]) -> None:
    """Set the number of threads, which decides the bits of a result, before torch is loaded."""
    os.environ["OMP_NUM_THREADS"] = str(int(session["device"]["threads"]))


def _shared_arguments(path: Path, record: Run | EvaluationRecord, folder: Path) -> dict[str, Any]:
    """Return the flags that do the same in another folder.

    :raises UsageError: the tables no longer have the person or the dataset.
    """
    username, dataset = record["username"], record["dataset"]["name"]
    if username not in PEOPLE or dataset not in DATASETS:
        raise UsageError(
            f"{path} is of {username} on {dataset}, which are not both in the tables of "
            "DJSW/pipelines.py; use the commit that wrote it"
        )
    sessions: Any = record.get("sessions") or [record.get("session")]
    return {
        "username": username,
        "exp_name": record["exp_name"],
        "output_dir": folder,
        "dataset": dataset,
        "device": "cpu" if sessions[-1]["device"]["type"] == "cpu" else "auto",
    }


def _input_file(weights: FileRecord | None) -> Path | None:
    """Return the weights that a record started from or evaluated.

    :raises RunError: the file is another one now.
    """
    if weights is None:
        return None
    path = find_file(weights["file"], "the weights")
    if sha256_of(path) != weights["sha256"]:
        raise RunError(f"{weights['file']} is not the file that was recorded; its SHA-256 differs")
    return path


def _print_differences(sessions: Sequence[Mapping[str, Any]]) -> None:
    """Print how this checkout, its packages and the ranks differ from the recorded ones."""
    session = sessions[-1]
    git = session["git"] or {"commit": "unknown", "changed": False}
    print(f"recorded    {session['started']}, commit {git['commit']}: {session['command']}")
    print(f"ran on      {describe_platform(session)}")
    ranks = len(session["device"].get("ranks", [None]))
    if ranks != rank_info().world_size:
        print(
            f"note        ranks: {ranks} then, {rank_info().world_size} now; the bits will differ"
        )
    # A session that ran the same code as the one before does not repeat it.
    before = next((each["source"] for each in reversed(sessions) if "source" in each), None)
    now = source_hashes()
    if before is None:
        print("code        unknown: this record is from before records had hashes of the code")
    elif before == now:
        print(f"code        as recorded: the same {len(now)} source files")
    else:
        names = sorted(name for name in before | now if before.get(name) != now.get(name))
        print(f"code        differs from the recorded one in {', '.join(names)}")
    for package, version in versions().items():
        if session["versions"].get(package, version) != version:
            print(f"version     {package} was {session['versions'][package]}, is {version}")
    for each in sessions:
        if each.get("change"):
            print(f"note        a later part ran {each['change']}")


def _check_data(record: Run | EvaluationRecord, *, train: bool) -> None:
    """Check that the data, created if missing, have the recorded bytes.

    :raises RunError: they have not.
    """
    data = open_split(record["dataset"]["name"], train=train)
    recorded: Mapping[str, Any] = record["dataset"]
    for array, sha256 in data.sha256.items():
        if recorded[array] != sha256:
            raise RunError(f"{data.h5_path} is not what was recorded: its {array} is {sha256}")
    print(f"data        as recorded: {data.h5_path}")


def _training_numbers(record: Run, path: Path) -> dict[str, Any]:
    """Return what can be compared, by name, with the history if that is beside the record."""
    found: dict[str, Any] = dict(record.get("results", {}))
    history = path.with_name(f"{record['exp_name']}_history.csv")
    if history.exists():
        with history.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found[f"epoch {row['epoch']}"] = {name: float(row[name]) for name in row}
    return _comparable(found)


def _evaluation_numbers(record: EvaluationRecord) -> dict[str, Any]:
    """Return every number of an evaluation by name."""
    found = {
        "images": record["images"],
        "correct": record["correct"],
        "metrics": record["metrics"],
        "probabilities": record["probabilities"],
        "label_distance": record["label_distance"],
        "intervals": record["intervals"],
        "predictions_sha256": record["predictions_sha256"],
    }
    return _comparable(found | {f"digit {row['digit']}": row for row in record["per_class"]})


def _comparable(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(found) if name.split(".")[-1] not in DIFFERENT}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
