"""Run a record again and compare: ``python DJSW/reproduce.py weights/SMLP/smlp_standard_run.json``.

A training is compared by its losses and the hashes of its weights, an evaluation
(``…_metrics.json``) by every number of it.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import utils.script  # noqa: F401

import argparse
import csv
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from DJSW import main as djsw
from DJSW.pipelines import DATASETS, PEOPLE, open_split
from DJSW.recipes import SETTINGS_FLAGS, settings
from utils.command_line import Parser, run_command
from utils.failures import RunError, UsageError
from utils.files import ROOT, find_file, sha256_of
from utils.launch import place, speaker

#: What two runs of the same differ in: how long they took, and what their files are called.
DIFFERENT = ("seconds", "training_seconds", "gpu_hours", "checkpoint")


def parser() -> Parser:
    """The flags."""
    flags = Parser("Run what a record tells of again, and compare.")
    flags.add_argument("record", help="a training's …_run.json or an evaluation's …_metrics.json")
    flags.add_argument(
        "--check", action="store_true", help="look whether it could run again, and stop there"
    )
    return flags


def command(args: argparse.Namespace) -> None:
    """Run it in ``reports/reproduced/``, and tell what is not the same.

    :raises UsageError: the file is no record of something that ended.
    :raises RunError: the data or the weights it began with are others; or the results are.
    """
    path = find_file(args.record, "the record")
    text = path.read_bytes()
    # Of its own for every record, and the same one for each rank.
    folder = ROOT / "reports" / "reproduced" / f"{path.stem}_{hashlib.sha256(text).hexdigest()[:8]}"
    try:
        record = json.loads(text)
        trained = "settings" in record
        record["sessions"] = record["sessions"] if trained else [record["session"]]
        # Before torch is loaded: the number of threads decides the bits of a result.
        os.environ["OMP_NUM_THREADS"] = str(int(record["sessions"][-1]["device"]["threads"]))
        require_known(path, record)
        flags = words(record, folder)
        before = numbers(record, path)
        if speaker() == 0:
            tell_differences(record)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UsageError(
            f"{path} is no record, or a damaged one ({type(error).__name__}: {error}); give a "
            "…_run.json or a …_metrics.json"
        ) from None
    new = folder / f"{record['exp_name']}_{'run' if trained else 'metrics'}.json"
    if new.exists() and json.loads(new.read_bytes()).get("status", "finished") == "finished":
        raise UsageError(f"{folder} holds an earlier reproduction; remove it")
    check_inputs(record)
    if args.check:
        print("checked     this record can be run again")
        return
    folder.mkdir(parents=True, exist_ok=True)
    djsw.command(djsw.parser().parse_args(flags))
    if speaker() == 0:
        compare(before, numbers(json.loads(new.read_bytes()), new))


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Say that all is the same, or show a table of what is not; the history only if both have one.

    :raises RunError: something is not.
    """
    history = {name for name in after if name.startswith("epoch ")}
    if history and not any(name.startswith("epoch ") for name in before):
        print("note        no history is beside the record; only the results are compared")
        after = {name: value for name, value in after.items() if name not in history}
    different = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not different:
        print(f"identical   all {len(before)} numbers and hashes")
        return
    shown, epoch = [], None
    for name in different:
        if name.startswith("epoch "):  # of the history the first epoch, from which the rest follows
            epoch = epoch or name.split(".")[0]
            if name.split(".")[0] != epoch:
                continue
        shown.append((name, before.get(name), after.get(name)))
    print(table(shown))
    since = f", the history from {epoch} on" if epoch else ""
    raise RunError(f"{len(different)} of {len(before)} numbers and hashes differ{since}")


def require_known(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse what cannot be run, or not be compared.

    :raises UsageError: the training is not finished, or the tables no longer have its entries.
    """
    if record["username"] not in PEOPLE or record["dataset"]["name"] not in DATASETS:
        raise UsageError(
            f"{path} is of {record['username']} on {record['dataset']['name']}, which are not "
            "both in the tables of DJSW/pipelines.py; use the commit that wrote it"
        )
    if "settings" in record and record["status"] != "finished":
        raise UsageError(f"{path} is of a training that is {record['status']}: finish it first")


def tell_differences(record: Mapping[str, Any]) -> None:
    """Say in what this checkout, its packages and the device differ from the recorded ones."""
    from utils.record import flat, ran_on, source_hashes, versions

    session = record["sessions"][-1]
    git = session["git"] or {"commit": "unknown", "changed": False}
    print(f"recorded    {session['started']}, commit {git['commit']}: {session['command']}")
    print(f"ran on      {ran_on(session)}")
    ranks = len(session["device"].get("ranks", [None]))
    if ranks != place().count:
        print(f"note        ranks: {ranks} then, {place().count} now; the bits will differ")
    # A session that ran the same code as the one before does not say it again.
    then = next((s["source"] for s in reversed(record["sessions"]) if "source" in s), None)
    now = source_hashes()
    if then is None:
        print("code        unknown: this record is from before records had hashes of the code")
    elif then == now:
        print(f"code        as recorded: the same {len(now)} source files")
    else:
        names = sorted(name for name in then | now if then.get(name) != now.get(name))
        print(f"code        differs from the recorded one in {', '.join(names)}")
    for package, version in versions().items():
        if session["versions"].get(package, version) != version:
            print(f"version     {package} was {session['versions'][package]}, is {version}")
    if "settings" in record:
        args = djsw.parser().parse_args(words(record, Path()))
        now_settings = dict(flat(asdict(settings(args, record["dataset"]["name"]))))
        for name, value in flat(record["settings"]):
            if now_settings.get(name) != value:
                print(f"recipe      {name} was {value}, is {now_settings.get(name)}")
    changes = [session["change"] for session in record["sessions"] if session.get("change")]
    for change in changes:
        print(f"note        a later part ran {change}")


def check_inputs(record: Mapping[str, Any]) -> None:
    """Have the data, made if need be, and the weights it began with the recorded bytes.

    :raises RunError: they have not.
    """
    name = record["dataset"]["name"]
    data = open_split(name, train="settings" in record)
    for array, sha256 in data.sha256.items():
        if record["dataset"][array] != sha256:
            raise RunError(f"{data.h5_path} is not what was recorded: its {array} is {sha256}")
    print(f"data        as recorded: {data.h5_path}")
    weights = starting_weights(record)
    if weights and sha256_of(find_file(weights["file"], "the weights")) != weights["sha256"]:
        raise RunError(f"{weights['file']} is not the file that was recorded; its SHA-256 differs")


def starting_weights(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The file that was trained from, or evaluated."""
    weights: Mapping[str, Any] | None = record.get("starting_weights") or record.get("checkpoint")
    return weights


def words(record: Mapping[str, Any], folder: Path) -> list[str]:
    """The command line that does the same in another folder."""
    flags = {
        "username": record["username"],
        "exp_name": record["exp_name"],
        "output_dir": folder,
        "dataset": record["dataset"]["name"],
        "device": "cpu" if record["sessions"][-1]["device"]["type"] == "cpu" else "auto",
        **{name: record["settings"].get(name) for name in SETTINGS_FLAGS if "settings" in record},
    }
    weights = starting_weights(record)
    if weights is not None:
        flags["load_checkpoint"] = find_file(weights["file"], "the weights")
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    # A reproduction that was stopped goes on.
    return given + (["--train", "--resume"] if "settings" in record else [])


def numbers(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What can be compared, by name; of a training with its history, if that is beside it."""
    from utils.record import flat

    if "settings" in record:
        found: dict[str, Any] = {**record["results"]}
        history = path.with_name(f"{record['exp_name']}_history.csv")
        if history.exists():
            with history.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    found[f"epoch {row['epoch']}"] = {name: float(row[name]) for name in row}
    else:
        names = ("images", "correct", "metrics", "probabilities", "label_distance", "intervals")
        found = {name: record[name] for name in (*names, "predictions_sha256")}
        found |= {f"digit {row['digit']}": row for row in record["per_class"]}
    return {name: value for name, value in flat(found) if name.split(".")[-1] not in DIFFERENT}


def table(rows: Sequence[tuple[str, Any, Any]]) -> str:
    """Name, recorded, again and the difference, a line each."""
    lines = [("", "recorded", "again", "difference")]
    for name, before, after in rows:
        both = isinstance(before, (int, float)) and isinstance(after, (int, float))
        difference = f"{after - before:+.3g}" if both else ""
        lines.append((name, short(before), short(after), difference))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        f"{line[0]:<{widths[0]}}  " + "  ".join(f"{line[i]:>{widths[i]}}" for i in (1, 2, 3))
        for line in lines
    )


def short(value: Any) -> str:
    """A number to nine digits, a hash to its first twelve."""
    return f"{value:.9g}" if isinstance(value, float) else str(value)[:12]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    return run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
