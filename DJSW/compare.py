"""Compare evaluations: ``python DJSW/compare.py reports/*_metrics.json``.

A table for each test set, best first, with intervals, and the differences with their significance;
as Markdown, CSV and a chart.

``python DJSW/compare.py --everyone --exp_name standard`` first trains and evaluates every network
of the table on the dataset of each person, or on ``--datasets``, where that has not been done.

``python DJSW/compare.py --validation weights/SMLP`` ranks runs by validation, to pick one of them;
picked by the test set, its accuracy there would be too good.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import io
import multiprocessing
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from DJSW import pipelines, recipes
from DJSW.arguments import EvaluateArguments, TrainArguments
from DJSW.pipelines import DATASETS, PEOPLE, dataset_of, open_split
from utils.cli import Parser, fold, output_flags, positive_int, run_command, seed_list
from utils.distributed.environment import cores, require_single_process
from utils.errors import MissingData, RunError, UsageError
from utils.records import files
from utils.records.evaluation import Evaluation, class_names, class_word, read_evaluation
from utils.records.files import ROOT, sha256_of
from utils.records.h5 import array_hashes, read_h5
from utils.records.provenance import code_provenance, flat, write_json
from utils.records.run import read_run, require_same_run
from utils.records.run_files import RunFiles
from utils.records.typed import shown
from utils.report.comparison_page import comparison_csv, comparison_page, validation_page
from utils.report.tables import csv_text
from utils.statistics.comparison import TestSet, rank_by_test_set, rank_by_validation
from utils.statistics.intervals import Clusters

#: Rows of test files whose label fewer than three of five people chose: Northcutt, Athalye and
#: Mueller, "Pervasive Label Errors in Test Sets Destabilize Machine Learning Benchmarks" (2021).
LABEL_ERRORS = {
    "mnist_4_9": {540, 1101, 1244, 1523, 1557, 2061, 2088, 3484, 4988, 5657, 5684},
    "mnist_0_3": {679, 1025, 2752, 2808},
}


def parser() -> Parser:
    """Return the parser."""
    flags = Parser("Rank evaluations by test set, and test which differences are real.")
    add = flags.add_argument
    evaluations = "a …_metrics.json, a folder of them, or a checkpoint, which is evaluated first"
    add("evaluations", nargs="*", metavar="EVALUATION", help=evaluations)
    add("--dataset", choices=DATASETS, help="test set for the checkpoints; default: their own")
    every = "every network on --datasets: loads, or trains, weights/NETWORK/network_EXP_NAME…"
    add("--everyone", action="store_true", help=every)
    those = "datasets of --everyone; default: those of the people"
    add("--datasets", nargs="+", choices=DATASETS, help=those)
    add("--seeds", type=seed_list, help="seeds of --everyone, such as 1-5; default 42")
    jobs = "runs of --everyone at the same time; default: the cores that this process may use"
    add("--jobs", type=positive_int, default=cores(), help=jobs)
    runs = "rank runs by validation: each EVALUATION is a …_run.json, a best checkpoint or a folder"
    add("--validation", action="store_true", help=runs)
    output_flags(flags, "comparison")
    return flags


def command(args: argparse.Namespace) -> None:
    """Train and evaluate what is missing, then compare.

    :raises UsageError: a file is no evaluation, or damaged; or the name is taken.
    """
    require_single_process()
    folder = files.find_folder(args.output_dir, "--output_dir")
    exp_name = args.exp_name
    record_file = folder / f"{exp_name}_comparison.json"
    another = "--output_dir; its runs are used again" if args.everyone else "--exp_name"
    taken = UsageError(
        f"{exp_name!r} was compared before: {record_file} exists; give another {another}"
    )
    if record_file.exists():
        raise taken
    if args.validation:
        compare_runs(args.evaluations, record_file, taken, check=args.check)
        return
    missing: dict[str, str] = {}
    paths = everyone(args, exp_name, folder, missing) if args.everyone else []
    for found in [resolve(given, folder, args.dataset) for given in args.evaluations]:
        paths += found if isinstance(found, list) else evaluated(found, missing, check=args.check)
    paths = list(dict.fromkeys(paths))
    if missing and not paths:
        raise MissingData("; ".join(missing.values()))
    if args.check:
        for path in filter(Path.exists, paths):
            read_evaluation(path)
        print("checked     this command would run")
        _report_missing(missing)
        return
    compared = rank_by_test_set([read_evaluation(path) for path in paths], clusters_of)
    record = {
        "exp_name": exp_name,
        "evaluations": [
            {"file": files.relative_to_root(path), "sha256": sha256_of(path)} for path in paths
        ],
        "test_sets": [test_set.record() for test_set in compared],
        "session": code_provenance(),
    }
    with files.exclusive_output(record_file, taken, r"comparison(_hard_\w+)?\.(json|md|csv|png)"):
        save(compared, exp_name, folder, missing)
        write_json(record_file, record, exclusive=True)
    _report_missing(missing)


def compare_runs(
    given: Sequence[str], record_file: Path, taken: UsageError, *, check: bool
) -> None:
    """Rank runs by validation; write the page, the table and the record. No test set is read.

    :raises UsageError: a file is no record of a run, or damaged; or none is finished.
    """
    found = [resolve(name, record_file.parent, None, "_run.json") for name in given]
    runs = {path: read_run(path) for paths in found if isinstance(paths, list) for path in paths}
    finished = {path: run for path, run in runs.items() if run["status"] == "finished"}
    rest = [f"{run['exp_name']} ({run['status']})" for p, run in runs.items() if p not in finished]
    left_out = shown(", ".join(rest))
    if not finished:
        raise UsageError(f"none of the runs is finished: {left_out}; train or resume one")
    for path, run in finished.items():
        require_same_run(path, run)
    rows = rank_by_validation([*finished.values()], cache(count_validation_images))
    if check:
        print("checked     this command would run")
        return
    exp_name = record_file.name.removesuffix("_comparison.json")
    text = validation_page(rows, exp_name, left_out)
    page, table = record_file.with_suffix(".md"), record_file.with_suffix(".csv")
    hashes = {files.relative_to_root(path): sha256_of(path) for path in finished}
    record = {"exp_name": exp_name, "runs": hashes, "ranking": rows, "session": code_provenance()}
    with files.exclusive_output(record_file, taken, r"comparison\.(json|md|csv)"):
        files.write_text(page, text)
        files.write_text(table, csv_text([dict(flat(row)) for row in rows]))
        write_json(record_file, record, exclusive=True)
    print(f"{text}\npage        {page}\ntable       {table}")


def count_validation_images(dataset: str, images_sha256: str, part: str) -> int | None:
    """Return the number of validation images; None if that training file is not here."""
    from utils.engine.seeds import split_rows  # imports torch

    with suppress(RunError, KeyError, argparse.ArgumentTypeError):  # no such dataset, or fold
        data = open_split(dataset, train=True)
        if data.sha256["images_sha256"] == images_sha256:
            return len(split_rows(len(data), fold(part) if part else None, data.writers)[1])
    return None


def read_test_set(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Return the arrays of the test file, where it is here and is the one of the evaluation.

    :raises UsageError: the file is damaged.
    """
    data = evaluation.record["dataset"]
    entry = DATASETS.get(data["name"])
    path = pipelines.PROCESSED / entry.test_file if entry else None
    if path is None or not path.exists():
        return {}
    try:
        arrays = read_h5(path)[1]
    except ValueError as error:
        raise UsageError(f"{path}: {error} (delete it to create it again)") from None
    found = array_hashes({name: arrays[name] for name in ("images", "labels")})
    return arrays if all(found[name] == data.get(name) for name in found) else {}


def clusters_of(evaluation: Evaluation) -> Clusters:
    """Return the writers of a test set, where its file is here and has them; else runs of images.

    Raises as :func:`read_test_set`.
    """
    return Clusters.of(read_test_set(evaluation).get("writers"), len(evaluation.labels))


def save_hard_images(path: Path, test_set: TestSet) -> str:
    """Draw the images that every seed of the best entry with several gets wrong; describe them.

    Without the file of the test set, or such an entry, there is no picture, and no text.
    """
    several = (entry for entry in test_set.entries if len(entry.runs) > 1)
    entry = next(several, None)
    images = read_test_set(test_set.entries[0].runs[0]).get("images")
    if entry is None or images is None:
        return ""
    wrong = np.flatnonzero(~entry.correct.any(0))
    text = f"{len(wrong)} images are wrong in every seed of {entry.name}"
    if not len(wrong):
        return f"{text}."
    known = LABEL_ERRORS.get(str(test_set.dataset["name"]), set())
    labels, predicted = test_set.labels, np.stack([run.predicted for run in entry.runs])
    record = entry.runs[0].record
    names = dict(zip(record["classes"], class_names(record), strict=True))
    captions = []
    for row in wrong:
        others = dict.fromkeys(predicted[:, row].tolist())
        note = "\nlabel doubtful" if row in known else ""
        captions.append(f"{names[labels[row]]} → {', '.join(names[each] for each in others)}{note}")
    from utils.report.figures import GALLERY, save_mosaic

    if len(wrong) > GALLERY:
        text += f", of which {GALLERY} are shown"
    title = f"{text}: true → predicted {class_word(record)}"
    save_mosaic(path, title, images[wrong][:GALLERY], captions[:GALLERY], columns=8)
    doubtful = len(known.intersection(wrong.tolist()))
    note = f"; most of five people did not choose the label of {doubtful} of them" * bool(doubtful)
    return f"{text}{note}.\n\n![images wrong in every seed]({path.name})"


def save(
    compared: Sequence[TestSet], exp_name: str, folder: Path, missing: Mapping[str, str]
) -> None:
    """Write the page, the table and the chart, and print the page."""
    from utils.report.figures import save_error_rates

    page, table, chart = (folder / f"{exp_name}_comparison.{end}" for end in ("md", "csv", "png"))
    hard = {}
    for number, test_set in enumerate(compared, 1):
        picture = folder / f"{exp_name}_comparison_hard_{number}.png"
        hard[test_set.name] = save_hard_images(picture, test_set)
    text = comparison_page(compared, exp_name, missing, hard)
    for path, content in ((page, text), (table, comparison_csv(compared))):
        files.write_text(path, content)
    save_error_rates(chart, [each.record() for each in compared])
    print(f"{text}\npage        {page}\ntable       {table}\nchart       {chart}")


def resolve(
    given: str, folder: Path, dataset: str | None, ending: str = "_metrics.json"
) -> list[Path] | EvaluateArguments:
    """Return the metrics files that an argument means, or the evaluation of a checkpoint.

    :param ending: "_run.json" for the records of runs instead.
    :raises UsageError: there is no such path, nothing in it, or something else.
    """
    path = files.find_path(given, "EVALUATION")
    if path.is_dir():
        paths = sorted(path.glob(f"*{ending}"))
        if not paths:
            what = "run" if ending == "_run.json" else "evaluation"
            raise UsageError(f"{path} holds no {what}; give a folder with some …{ending}")
        return paths
    if path.suffix == ".json":
        return [path]
    if ending == "_run.json" and path.name.endswith("_checkpoint_best.pt"):
        return [path.with_name(path.name.replace("_checkpoint_best.pt", ending))]
    if ending == "_run.json" or path.suffix in (".csv", ".md", ".png"):
        raise UsageError(f"{path} cannot be compared; give its …{ending}")
    from DJSW.networks import identify_checkpoint
    from utils.records.checkpoint import load_checkpoint

    username, own, _ = identify_checkpoint(load_checkpoint(path), dataset)
    # Checkpoints of one name lie in several folders.
    stem = re.sub(r"[^A-Za-z0-9_]+", "_", path.stem.replace("_checkpoint_", "_"))[:60]
    exp_name = f"{stem}_{sha256_of(path)[:8]}_on_{own}"
    return EvaluateArguments(
        username=username, exp_name=exp_name, output_dir=folder, load_checkpoint=path, dataset=own
    )


def everyone(
    args: argparse.Namespace, exp_name: str, folder: Path, missing: dict[str, str]
) -> list[Path]:
    """Return the metrics files of every network on each of the datasets, with each of the seeds.

    What ``weights/`` and ``folder`` lack is trained and evaluated; a stopped run is resumed.
    Networks on their owner's digits are named ``smlp_EXP_NAME``, on others
    ``smlp_EXP_NAME_DATASET``, and with ``--seeds`` the seed follows.

    :raises UsageError: there is a run of that name with other settings.
    """
    runs, datasets = [], dict.fromkeys(args.datasets or map(dataset_of, PEOPLE))
    for username, dataset in product(PEOPLE, datasets):
        if not (_has_data(dataset, missing, train=True) and _has_data(dataset, missing)):
            continue
        person = PEOPLE[username]
        name = f"{person.model_name.lower()}_{exp_name}"
        name += f"_{dataset}" * (dataset != person.dataset)
        same: dict[str, Any] = {"username": username, "dataset": dataset, "resume": True}
        same["output_dir"] = ROOT / "weights" / person.model_name
        if args.seeds is None:
            runs.append(TrainArguments(**same, exp_name=name))
        for seed in args.seeds or ():
            runs.append(TrainArguments(**same, exp_name=f"{name}_{seed}", seed=seed))
    train_missing(runs, args.jobs, check=args.check)
    paths = []
    for run in runs:
        best = Path(run.output_dir) / f"{run.exp_name}_checkpoint_best.pt"
        if best.exists():  # a check trains nothing
            same = {name: getattr(run, name) for name in ("username", "exp_name", "dataset")}
            evaluation = EvaluateArguments(**same, output_dir=folder, load_checkpoint=best)
            paths += evaluated(evaluation, missing, check=args.check)
    return paths


def train_missing(runs: Sequence[TrainArguments], jobs: int, *, check: bool) -> None:
    """Train the runs that are not finished, ``jobs`` at the same time."""
    wanted = []
    for run in runs:
        files = RunFiles(Path(run.output_dir), run.exp_name)
        if not (files.best_checkpoint.exists() and is_trained(files.record, run)):
            files.folder.mkdir(parents=True, exist_ok=True)
            wanted.append(run)
    if check:
        from DJSW.train import prepare_training

        for run in wanted:
            prepare_training(run)
    elif jobs == 1 or len(wanted) < 2:
        for run in wanted:
            print(_train(run), flush=True)
    else:
        os.environ["TQDM_DISABLE"] = "1"  # bars of several processes on one line
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(wanted)), context) as pool:
            for text in pool.map(_train, wanted):
                print(text, flush=True)


def _train(run: TrainArguments) -> str:
    """Train; return what it printed."""
    from DJSW.train import train_model

    with redirect_stdout(io.StringIO()) as text:
        train_model(run)
    return text.getvalue()


def is_trained(record_file: Path, args: TrainArguments) -> bool:
    """Whether the run of ``args`` is finished.

    :raises UsageError: it has other settings, or its record is damaged.
    """
    if not record_file.exists():
        return False
    record = read_run(record_file)
    from DJSW.networks import model_arguments

    dataset = record["dataset"]["name"]
    expected = asdict(recipes.settings(args, dataset)) | model_arguments(args.username, dataset)
    for name, value in {**record["settings"], **record["model"]["arguments"]}.items():
        if value != expected.get(name):
            raise UsageError(
                f"{record_file} is of a run with {name} {shown(value)}, here it is "
                f"{expected.get(name)}; give another --exp_name"
            )
    if record["status"] != "finished":
        return False
    require_same_run(record_file, record)
    return True


def evaluated(args: EvaluateArguments, missing: dict[str, str], *, check: bool) -> list[Path]:
    """Return the metrics file of a checkpoint, evaluated where there is none yet.

    There is none where the test set is out of reach, which is noted in ``missing``.

    :raises UsageError: there is one of another checkpoint or another test set.
    """
    path = Path(args.output_dir) / f"{args.exp_name}_metrics.json"
    if path.exists():
        record = read_evaluation(path).record
        found = (record["exp_name"], record["checkpoint"]["sha256"], record["dataset"]["name"])
        if found != (args.exp_name, sha256_of(Path(args.checkpoints[0])), args.dataset):
            raise UsageError(
                f"{path} exists, of other weights or another test set; give another --output_dir"
            )
        return [path]
    if not _has_data(str(args.dataset), missing):
        return []
    from DJSW.evaluate import evaluate_model, prepare_evaluation

    prepare_evaluation(args) if check else evaluate_model(args, report=False)
    print(flush=True)
    return [path]


def _has_data(dataset: str, missing: dict[str, str], *, train: bool = False) -> bool:
    """Whether a file of the dataset is there or can be created; if not, note why in ``missing``."""
    if dataset not in missing:
        try:
            open_split(dataset, train=train)
        except MissingData as error:
            missing[dataset] = str(error)
    return dataset not in missing


def _report_missing(missing: Mapping[str, str]) -> None:
    """End with what could not be compared.

    :raises MissingData: there is something.
    """
    if missing:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise MissingData(f"left out: what needs {reasons}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    flags = parser()
    args = flags.parse_args(argv)
    if not args.everyone and not args.evaluations:
        flags.error("nothing to compare: give some EVALUATION or --everyone")
    if args.dataset and all(name.endswith(".json") for name in args.evaluations):
        flags.error("--dataset is for checkpoints, and none is given")
    if args.validation and (args.everyone or args.dataset):
        flags.error("--validation is for runs that are there, without --everyone and --dataset")
    if (args.seeds or args.datasets) and not args.everyone:
        flags.error(f"--{'seeds' if args.seeds else 'datasets'} is for --everyone")
    if args.everyone and args.exp_name == flags.get_default("exp_name"):
        flags.error("--everyone needs --exp_name, which its runs are named after")
    return run_command(command, args)


if __name__ == "__main__":
    sys.exit(main())
