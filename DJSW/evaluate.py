"""Evaluation of a checkpoint on a test set: ``evaluate_model(args)``."""

import gzip
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from DJSW.arguments import EvaluateArguments
from DJSW.networks import build_model, model_arguments, try_model
from DJSW.pipelines import DATASETS, dataset_of, open_split
from utils.distributed import collectives
from utils.distributed.device import choose_device
from utils.engine.batches import (
    finite_log_probabilities,
    load_rows,
    mean_probabilities,
    predict,
)
from utils.errors import UsageError
from utils.mnist_dataset import MnistH5Dataset
from utils.records.checkpoint import (
    Checkpoint,
    count_parameters,
    describe_all,
    load_checkpoint,
    weights_sha256,
)
from utils.records.evaluation import (
    FORMAT,
    CheckpointRecord,
    EvaluatedModel,
    EvaluationMetadata,
    EvaluationRecord,
    Results,
    TrainingRecord,
    class_names,
    class_word,
    predictions_csv,
    probabilities_csv,
    with_digest,
)
from utils.records.files import (
    atomic_write,
    exclusive_output,
    find_file,
    find_folder,
    relative_to_root,
    require_distinct,
)
from utils.records.provenance import provenance, resource_usage, write_json
from utils.records.typed import shown
from utils.report.evaluation_page import evaluation_page, evaluation_summary
from utils.report.tables import percent
from utils.statistics.measure import measure

#: Endings of the files that an evaluation owns, after ``{exp_name}_``.
OWNED = (
    r"metrics\.json|predictions\.csv\.gz|probabilities\.csv|report\.md|"
    r"(confusion|reliability|errors)\.png"
)


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation made; ``record`` is in ``metrics_file``, and None but on rank 0."""

    record: EvaluationRecord | None
    metrics_file: Path
    report: Path | None


@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation that is ready to start; of several models, the mean probabilities."""

    models: dict[Path, nn.Module]
    data: MnistH5Dataset
    folder: Path
    metadata: EvaluationMetadata

    def path(self, ending: str) -> Path:
        """Return ``{exp_name}_{ending}`` in the output folder."""
        return self.folder / f"{self.metadata['exp_name']}_{ending}"


def evaluate_model(args: Any, *, report: bool = True) -> EvaluationResult:
    """Evaluate a checkpoint; as one of several ranks where the process is one.

    :param args: :class:`EvaluateArguments`, or anything with the flags as attributes.
    :param report: write probabilities, pictures and a page too, not only metrics and predictions.
    :raises UsageError: a flag is wrong, the name is taken, or the checkpoint does not fit.
    :raises RunError: the data are missing or damaged.
    """
    args = EvaluateArguments.of(args)
    device = choose_device(args.device)
    with ExitStack() as stack:
        devices = stack.enter_context(collectives.process_group(device))
        with collectives.rank_zero_first():
            job = prepare_evaluation(args)
        print(f"device      {collectives.describe_devices(device, devices)}", flush=True)
        started = time.perf_counter()
        images = load_rows(job.data, device)
        members = []
        for path, model in job.models.items():
            logits, classes = predict(model.to(device), images)
            members.append(finite_log_probabilities(logits, path))
        log_probabilities = mean_probabilities(members)
        record = None
        if collectives.rank() == 0:
            session = provenance(device, devices)
            authors = job.data.writers, job.data.series
            digits, names = job.metadata["classes"], job.metadata.get("class_names")
            columns = classes.cpu().numpy()
            results = measure(log_probabilities, columns, digits, *authors, names)
            session |= resource_usage(time.perf_counter() - started, session)
            record = _save(job, results, session, log_probabilities, report=report)
            if report:
                print(evaluation_summary(record))
        for ending in ("metrics.json", "predictions.csv.gz", *["report.md"] * report):
            print(f"{ending.partition('.')[0]:<11} {job.path(ending)}")
    page = job.path("report.md") if report else None
    return EvaluationResult(record, job.path("metrics.json"), page)


def prepare_evaluation(args: EvaluateArguments) -> EvaluationJob:
    """Validate the arguments, load the checkpoint, create missing data; print what will run.

    :raises UsageError: a flag is wrong, the name is taken, or the checkpoint does not fit.
    :raises RunError: the data are missing or damaged.
    """
    folder = find_folder(args.output_dir, "--output_dir")
    output = folder / f"{args.exp_name}_metrics.json"
    if output.exists():
        raise _taken(args.exp_name, output)
    paths = [find_file(path, "--load_checkpoint") for path in args.checkpoints]
    require_distinct(paths, "--load_checkpoint")
    checkpoints = [load_checkpoint(path) for path in paths]
    checkpoint = checkpoints[0]
    dataset = args.dataset or _own_dataset(checkpoint) or dataset_of(args.username)
    built = {each.path: build_model(args.username, dataset, each) for each in checkpoints}
    models = {path: model for path, (model, _) in built.items()}
    for model in models.values():
        try_model(model, args.username, dataset, 2, train=False)
    arguments = built[checkpoint.path][1]
    data = open_split(dataset, train=False)
    layers = describe_all([*models.values()])
    parameters = sum(map(count_parameters, models.values()))
    print(f"{args.username} evaluates {layers} on the test set of {dataset}")
    print(f"parameters  {parameters:,}")
    for path in paths:
        print(f"weights     {path}")
    usual = model_arguments(args.username, dataset)
    for name, value in arguments.items():
        if value != usual.get(name):
            print(f"note        {name} is {value}, by default {usual.get(name)}")
    print(f"data        {data.h5_path}")
    print(f"images      {len(data)}", flush=True)
    evaluated: EvaluatedModel = {
        "name": type(models[checkpoint.path]).__name__,
        "arguments": arguments,
        "layers": layers,
        "parameters": parameters,
    }
    return EvaluationJob(
        models, data, folder, _metadata(args, evaluated, dataset, data, checkpoints)
    )


def _metadata(
    args: EvaluateArguments,
    model: EvaluatedModel,
    dataset: str,
    data: MnistH5Dataset,
    checkpoints: Sequence[Checkpoint],
) -> EvaluationMetadata:
    """Return what the record says besides the results."""
    metadata: EvaluationMetadata = {
        "format": FORMAT,
        "exp_name": args.exp_name,
        "username": args.username,
        "model": model,
        "checkpoint": _source(checkpoints[0]),
        "training": _training(checkpoints[0]),
        "dataset": {
            "name": dataset,
            "split": "test",
            "file": relative_to_root(data.h5_path),
            "source": data.source,
            "images_sha256": data.sha256["images_sha256"],
            "labels_sha256": data.sha256["labels_sha256"],
        },
        "classes": list(DATASETS[dataset].labels),
    }
    if names := DATASETS[dataset].names:
        metadata["class_names"] = names
    if len(checkpoints) > 1:
        members = metadata["members"] = [*map(_source, checkpoints)]
        digest = sha256("".join(each["sha256"] for each in members).encode()).hexdigest()
        files = f"ensemble of {len(members)}"
        metadata["checkpoint"] = {"file": files, "sha256": digest, "epoch": None}
        metadata["training"] = None
    return metadata


def _source(checkpoint: Checkpoint) -> CheckpointRecord:
    return {
        **checkpoint.source(),
        "epoch": checkpoint.metadata.get("epoch"),
        "weights_sha256": weights_sha256(checkpoint.weights),
    }


def _save(
    job: EvaluationJob,
    results: Results,
    session: Any,
    log_probabilities: np.ndarray,
    *,
    report: bool,
) -> EvaluationRecord:
    """Write predictions, the report and, last and exclusively, the record."""
    of_images = (log_probabilities, job.data.labels, job.metadata["classes"])
    predictions = predictions_csv(*of_images)
    record = with_digest(
        {
            **job.metadata,
            **results,
            "predictions_sha256": sha256(predictions).hexdigest(),
            "session": session,
        }
    )
    output = job.path("metrics.json")
    with exclusive_output(output, _taken(record["exp_name"], output), OWNED):
        written = {"predictions.csv.gz": gzip.compress(predictions, mtime=0)}
        if report:
            written["probabilities.csv"] = probabilities_csv(*of_images)
            written["report.md"] = evaluation_page(record).encode()
            _save_figures(job, record, log_probabilities)
        for ending, content in written.items():
            with atomic_write(job.path(ending)) as temporary:
                temporary.write_bytes(content)
        write_json(output, record, exclusive=True)
    return record


def _save_figures(
    job: EvaluationJob, record: EvaluationRecord, log_probabilities: np.ndarray
) -> None:
    from utils.report import figures

    figures.save_confusion(job.path("confusion.png"), record)
    figures.save_reliability(job.path("reliability.png"), record)
    names, predicted = class_names(record), log_probabilities.argmax(1)
    true, confidence = job.data.classes, np.exp(log_probabilities.max(1))
    errors = np.flatnonzero(predicted != true)
    shown = errors[np.argsort(-confidence[errors], kind="stable")][: figures.GALLERY]
    captions = [
        f"{names[true[row]]} → {names[predicted[row]]}\n{percent(confidence[row])}" for row in shown
    ]
    if captions:
        title = f"the most confident {len(shown)} of {len(errors)} errors: true → predicted "
        title += class_word(record)
        path, images = job.path("errors.png"), job.data.images[shown]
        figures.save_mosaic(path, title, images, captions, columns=8)


def _training(checkpoint: Checkpoint) -> TrainingRecord | None:
    """Return what a checkpoint says about its run; a bare state dict says nothing.

    ``saved`` is which of the run's checkpoints it is, by its file name: ``best``, ``epoch_10``.
    """
    metadata = checkpoint.metadata
    if not {"exp_name", "settings", "starting_weights"} <= metadata.keys():
        return None
    saved = re.search(r"_checkpoint_(best|epoch_[0-9]+)$", checkpoint.path.stem)
    training: TrainingRecord = {
        "exp_name": metadata["exp_name"],
        "dataset": metadata["dataset"],
        "settings": metadata["settings"],
        "starting_weights": metadata["starting_weights"],
        "saved": saved[1] if saved else None,
    }
    if "teachers" in metadata:
        training["teachers"] = metadata["teachers"]
    return training


def _own_dataset(checkpoint: Checkpoint) -> str | None:
    if not checkpoint.metadata:
        return None
    name = checkpoint.metadata["dataset"]["name"]
    if name not in DATASETS:
        raise UsageError(
            f"{checkpoint.path} was trained on {shown(name)!r}, which is not in the table of "
            f"datasets; give --dataset: {', '.join(DATASETS)}"
        )
    return name


def _taken(exp_name: str, path: Path) -> UsageError:
    return UsageError(f"{exp_name!r} was evaluated before: {path} exists; give another --exp_name")
