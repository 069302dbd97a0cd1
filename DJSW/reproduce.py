"""Run a record again and compare: ``DJSW/reproduce.py weights/SMLP/smlp_standard_4_run.json``.

A run is compared by its losses and the hashes of its weights, an evaluation
(``…_metrics.json``) by every number in it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from DJSW.arguments import EvaluateArguments, TrainArguments
from DJSW.pipelines import DATASETS, PEOPLE, open_split
from DJSW.recipes import flags_of, settings
from utils.cli import Parser, run_command
from utils.distributed.environment import env_rank, rank_info
from utils.engine.history import read_history
from utils.errors import RunError, UsageError
from utils.records.evaluation import EvaluationRecord, SessionRecord, read_evaluation
from utils.records.files import ROOT, FileRecord, find_file, sha256_of
from utils.records.provenance import (
    SOURCES,
    changed_files,
    describe_platform,
    flat,
    source_hashes,
    source_sha256,
    versions,
)
from utils.records.run import Run, read_run, require_same_run
from utils.records.typed import shown
from utils.report.tables import align

Record = Run | EvaluationRecord

#: Results of an evaluation that are compared, besides those of each digit.
RESULTS = ("images", "correct", "metrics", "probabilities", "label_distance", "intervals")
#: Numbers that differ between two equal runs: how long they took, and what their files are called.
DIFFERENT = ("seconds", "training_seconds", "gpu_hours", "checkpoint")


def parser() -> Parser:
    """Return the parser."""
    flags = Parser("Run a record again, and compare the results.")
    flags.add_argument("record", help="a …_run.json or a …_metrics.json")
    flags.add_argument("--check", action="store_true", help="only check whether it can run again")
    return flags


def command(args: argparse.Namespace) -> None:
    """Run it in ``reports/reproduced/``, and print what differs.

    :raises UsageError: the file is no record of something that ended.
    :raises RunError: the data or the weights it started with differ, or the results do.
    """
    path = find_file(args.record, "the record")
    record = _read(path)
    trained = "settings" in record
    if "settings" in record and record["status"] != "finished":
        raise UsageError(f"{path} is of a run that is {shown(record['status'])}; finish it first")
    if "settings" in record:
        require_same_run(path, record)
    # A folder of its own for each record, the same on each rank.
    folder = ROOT / "reports" / "reproduced" / f"{path.stem}_{sha256_of(path)[:8]}"
    new = folder / f"{record['exp_name']}_{'run' if trained else 'metrics'}.json"
    if new.exists() and (not trained or read_run(new)["status"] == "finished"):
        raise UsageError(f"{folder} holds an earlier reproduction; remove it")
    # Read when torch is loaded; the number of threads decides the bits of a result.
    os.environ["OMP_NUM_THREADS"] = str(_sessions(record)[-1]["device"]["threads"])
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # a check of a run, not another one
    arguments = _arguments(path, record, folder)
    before = _numbers(path)
    if env_rank() == 0:
        _print_differences(record, arguments)
    recorded: Mapping[str, object] = record["dataset"]
    data = open_split(record["dataset"]["name"], train=trained)
    for array, sha256 in data.sha256.items():
        if recorded[array] != sha256:
            raise RunError(f"{data.h5_path} is not what was recorded: its {array} is {sha256}")
    print(f"data        as recorded: {data.h5_path}")
    if args.check:
        print("checked     this command would run")
        return
    folder.mkdir(parents=True, exist_ok=True)
    if trained:
        from DJSW.train import train_model

        train_model(arguments)
    else:
        from DJSW.evaluate import evaluate_model

        evaluate_model(arguments)
    if env_rank() == 0:
        compare(before, _numbers(new))


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Print that everything is the same, or a table of what differs.

    The history is compared only if both have one, and shown only from the first epoch that differs:
    the rest follows from it.

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
    epochs = [name.split(".")[0] for name in different if name.startswith("epoch ")]
    later = tuple(f"{epoch}." for epoch in epochs if epoch != epochs[0])
    shown = [name for name in different if not name.startswith(later)]
    rows = [_table_row(name, before.get(name), after.get(name)) for name in shown]
    print("\n".join(align([("", "recorded", "again", "difference"), *rows], right=(1, 2, 3))))
    since = f", the history from {epochs[0]} on" if epochs else ""
    raise RunError(f"{len(different)} of {len(before)} numbers and hashes differ{since}")


def _table_row(name: str, *values: Any) -> tuple[str, ...]:
    short = [f"{value:.9g}" if isinstance(value, float) else str(value)[:12] for value in values]
    numbers = all(isinstance(value, (int, float)) for value in values)
    return name, *short, f"{values[1] - values[0]:+.3g}" if numbers else ""


def _read(path: Path) -> Record:
    is_evaluation = path.name.endswith("_metrics.json")
    return read_evaluation(path).record if is_evaluation else read_run(path)


def _sessions(record: Record) -> list[SessionRecord]:
    return record["sessions"] if "settings" in record else [record["session"]]


def _arguments(path: Path, record: Record, folder: Path) -> TrainArguments | EvaluateArguments:
    """Return the flags that do the same in another folder.

    :raises UsageError: the tables no longer have the person or the dataset.
    :raises RunError: the weights that it started from or evaluated are not the recorded ones.
    """
    username, dataset = record["username"], record["dataset"]["name"]
    if username not in PEOPLE or dataset not in DATASETS:
        raise UsageError(
            f"{path} is of {username} on {dataset}, which are not both in the tables of "
            "DJSW/pipelines.py; use the commit that wrote it"
        )
    weights = record["starting_weights"] if "settings" in record else record["checkpoint"]
    file: Any = _same_file(weights) if weights and "members" not in record else None
    if "members" in record:
        file = [_same_file(each) for each in record["members"]]
    flags: dict[str, Any] = {
        "username": username,
        "exp_name": record["exp_name"],
        "output_dir": folder,
        "dataset": dataset,
        "device": "cpu" if _sessions(record)[-1]["device"]["type"] == "cpu" else "auto",
        "load_checkpoint": file,
    }
    if "settings" not in record:
        return EvaluateArguments(**flags)
    flags |= flags_of(record["settings"])
    from DJSW.networks import model_arguments  # torch reads the number of threads when it is loaded

    own = model_arguments(username, dataset)
    used = record["model"]["arguments"].items()
    flags["teachers"] = [_same_file(each) for each in record.get("teachers", ())]
    flags["set"] = {name: value for name, value in used if own.get(name) != value}
    return TrainArguments(**flags, resume=True)  # a reproduction that was stopped is resumed


def _same_file(recorded: FileRecord) -> Path:
    """Return the file of a record.

    :raises RunError: it is not the recorded one.
    """
    file = find_file(recorded["file"], "the weights")
    if sha256_of(file) != recorded["sha256"]:
        raise RunError(f"{recorded['file']} is not the file that was recorded; its SHA-256 differs")
    return file


def _print_differences(record: Record, arguments: TrainArguments | EvaluateArguments) -> None:
    """Print how checkout, packages, ranks and recipe differ from the recorded ones."""
    sessions, session = _sessions(record), _sessions(record)[-1]
    commit = (session["git"] or {"commit": "unknown"})["commit"]
    print(f"recorded    {session['started']}, commit {commit}: {session['command']}")
    print(f"ran on      {describe_platform(session)}")
    ranks, now = len(session["device"]["ranks"]), rank_info().world_size
    if ranks != now:
        print(f"note        ranks: {ranks} then, {now} now; the bits will differ")
    recorded, source = session["source_sha256"], source_hashes()
    if recorded == source_sha256(source):
        print(f"code        as recorded: the same {len(source)} source files")
    else:
        known = (each["source"] for each in sessions if "source" in each)
        before = next((each for each in known if source_sha256(each) == recorded), None)
        where = changed_files(before, source) or f" (git diff {commit} -- {' '.join(SOURCES)})"
        print(f"code        differs from the recorded one{where}")
    for package, version in versions().items():
        if session["versions"].get(package, version) != version:
            print(f"version     {package} was {session['versions'][package]}, is {version}")
    for change in filter(None, (each.get("change") for each in sessions)):
        print(f"note        a later part ran {change}")
    if "settings" in record:
        expected = dict(flat(asdict(settings(arguments, record["dataset"]["name"]))))
        for name, value in flat(record["settings"]):
            if expected.get(name) != value:
                print(f"recipe      {name} was {value}, is {expected.get(name)}")


def _numbers(path: Path) -> dict[str, Any]:
    """Return what can be compared, by name; of a run also its history, if beside the record."""
    record = _read(path)
    if "settings" in record:
        found: dict[str, Any] = {**record["results"]}
        history = path.with_name(f"{record['exp_name']}_history.csv")
        if history.exists():
            found |= {f"epoch {row['epoch']:.0f}": row for row in read_history(history)}
    else:
        found = {name: value for name, value in record.items() if name in RESULTS}
        found["predictions_sha256"] = record["predictions_sha256"]
        found |= {f"digit {row['digit']}": row for row in record["per_class"]}
    return {name: value for name, value in flat(found) if name.split(".")[-1] not in DIFFERENT}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
