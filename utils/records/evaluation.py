"""Evaluations on disk: the typed content of the metrics file, and its predictions."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict, cast, final

import numpy as np

from utils.errors import UsageError
from utils.records.files import FileRecord
from utils.records.provenance import without_nan
from utils.records.typed import (
    TEXT_LIMIT,
    check_type,
    content_sha256,
    read_bytes,
    read_json,
    require_record,
    shown,
)

#: Version of ``{exp_name}_metrics.json``; files of the first version do not state it.
FORMAT = "djsw-evaluation-2"
#: Remedy for a damaged or older evaluation.
AGAIN = "evaluate its checkpoint again under another --exp_name"

#: The metrics of an evaluation, each with an interval.
METRICS = {
    "metrics": (
        *("accuracy", "balanced_accuracy", "precision", "recall", "f1"),
        *("weighted_precision", "weighted_recall", "weighted_f1"),
    ),
    "probabilities": ("cross_entropy", "brier", "expected_calibration_error"),
    "label_distance": ("mse", "rmse", "mae", "r2"),
}
#: Values by metric; ``None`` where a metric is undefined.
MetricValues = Mapping[str, float | None]
#: Lower and upper end of a 95 % interval; ``None`` where it is undefined.
Ends = Sequence[float | None]


class CheckpointRecord(FileRecord):
    """The evaluated checkpoint; a bare state dict has no epoch."""

    epoch: int | None
    weights_sha256: NotRequired[str]


class StartRecord(FileRecord):
    """The file that a run started from, and the names of the layers kept, if not all."""

    kept: NotRequired[list[str]]


class SettingsRecord(TypedDict, total=False):
    """Settings of a run; records of earlier versions have others, too."""

    num_epochs: int
    batch_size: int
    lr: float
    schedule: str
    weight_decay: float
    augmentation: Mapping[str, float] | None
    recipe: str
    seed: int
    fold: str | None
    teacher_weight: float | None


class ModelRecord(TypedDict):
    """A network: class name and constructor arguments."""

    name: str
    arguments: Mapping[str, object]


class EvaluatedModel(ModelRecord):
    """A network with its layer sizes and number of parameters."""

    layers: str
    parameters: int


class DatasetName(TypedDict):
    """The dataset of a checkpoint; those of runs also have its file and hashes."""

    name: str


class DatasetRecord(DatasetName):
    """An HDF5 file, the SHA-256 of its arrays and, of an evaluation, its split: ``test``."""

    split: NotRequired[str]
    source: NotRequired[str | None]
    file: str
    images_sha256: str
    labels_sha256: str


class TrainingRecord(TypedDict):
    """The run that wrote the checkpoint.

    ``saved`` tells which of its checkpoints: ``best``, ``epoch_10``, or ``None`` if unknown.
    """

    exp_name: str
    dataset: DatasetName
    settings: SettingsRecord
    starting_weights: StartRecord | None
    teachers: NotRequired[list[FileRecord]]
    saved: str | None


class DigitRecord(TypedDict):
    """Metrics of one digit, their intervals, and the number of its images (``support``)."""

    digit: int
    precision: float
    recall: float
    f1: float
    support: int
    intervals: Mapping[str, Ends]


class ClustersRecord(TypedDict):
    """What the intervals resample; ``wilson`` would be the accuracy's for independent images."""

    kind: str
    count: int
    design_effect: float
    wilson: Ends


class SeriesRecord(TypedDict):
    """Images and errors of a series of NIST's forms, and who filled them in."""

    series: int
    by: str
    images: int
    errors: int


class Results(TypedDict):
    """The numbers of an evaluation; ``confusion`` has true digits as rows.

    A bin of ``calibration`` has ``right`` of its ``images`` correct, with ``confidence`` in
    (``above``, ``up_to``], on average; ``low`` and ``high`` are the interval of its accuracy.
    """

    images: int
    correct: int
    metrics: MetricValues
    probabilities: MetricValues
    label_distance: MetricValues
    intervals: Mapping[str, Ends]
    clusters: ClustersRecord
    series: NotRequired[list[SeriesRecord]]
    per_class: list[DigitRecord]
    confusion: list[list[int]]
    calibration: list[dict[str, float]]
    warnings: list[str]


class GitRecord(TypedDict):
    """The commit, and whether the working tree differs from it."""

    commit: str
    changed: bool


class DeviceRecord(TypedDict):
    """The device of rank 0, and node and device of each rank."""

    type: str
    name: str
    threads: int
    ranks: list[dict[str, str]]


class SessionRecord(TypedDict):
    """Provenance of a process; ``change`` is what differs from a run's session before it."""

    command: str
    started: str
    git: GitRecord | None
    versions: dict[str, str]
    slurm: dict[str, str]
    device: DeviceRecord
    source: NotRequired[dict[str, str]]
    source_sha256: str
    change: NotRequired[str | None]
    gpu_hours: NotRequired[float]


class EvaluationMetadata(TypedDict):
    """What is evaluated on which test set; ``classes`` are the labels in the order of the logits.

    Digits have no ``class_names``.

    ``training`` is ``None`` for a bare state dict, and for an ensemble, which has ``members``; the
    hash of its ``checkpoint`` is that of their hashes.
    """

    format: str
    exp_name: str
    username: str
    model: EvaluatedModel
    checkpoint: CheckpointRecord
    members: NotRequired[list[CheckpointRecord]]
    training: TrainingRecord | None
    dataset: DatasetRecord
    classes: list[int]
    class_names: NotRequired[list[str]]


@final
class EvaluationRecord(EvaluationMetadata, Results):
    """The content of ``{exp_name}_metrics.json``."""

    predictions_sha256: str
    session: SessionRecord
    sha256: str


def class_names(record: EvaluationMetadata) -> list[str]:
    """Return the names of the classes, in the order of the logits."""
    return record.get("class_names") or [*map(str, record["classes"])]


def class_word(record: Mapping[str, object]) -> str:
    """Return what a class is called: "digit", or "class" where classes have names."""
    return "class" if "class_names" in record else "digit"


def predictions_csv(
    log_probabilities: np.ndarray, labels: np.ndarray, digits: Sequence[int]
) -> bytes:
    """Return a CSV with a line for each image: digit, predicted digit, confidence (3 digits)."""
    predicted = np.array(digits)[log_probabilities.argmax(1)]
    confidence = np.exp(log_probabilities.max(1))
    columns = {"digit": labels, "predicted": predicted, "confidence": confidence}
    return _csv(columns, "%d,%d,%.3g")


def probabilities_csv(
    log_probabilities: np.ndarray, labels: np.ndarray, digits: Sequence[int]
) -> bytes:
    """Return a CSV with a line for each image: digit, each digit's probability (6 digits)."""
    names = [f"p_{digit}" for digit in digits]
    columns = dict(zip(names, np.exp(log_probabilities).T, strict=True))
    return _csv({"digit": labels, **columns}, "%d" + len(names) * ",%.6g")


def _csv(columns: Mapping[str, np.ndarray], line: str) -> bytes:
    text = io.StringIO()
    table = np.column_stack(list(columns.values()))
    np.savetxt(text, table, line, header=",".join(columns), comments="")
    return text.getvalue().encode()


def with_digest(content: Mapping[str, object]) -> EvaluationRecord:
    """Return the record with the SHA-256 of its content, which reveals later changes."""
    return cast(EvaluationRecord, {**content, "sha256": content_sha256(without_nan(content))})


def metric_values(record: EvaluationRecord) -> dict[str, float | None]:
    """Return every metric of an evaluation by name."""
    return {**record["metrics"], **record["probabilities"], **record["label_distance"]}


@dataclass(frozen=True)
class Evaluation:
    """A metrics file ``path`` as read, with true (``labels``) and predicted digits, arrays (N,)."""

    path: Path
    record: EvaluationRecord
    labels: np.ndarray
    predicted: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct, bool (N,)."""
        correct: np.ndarray = self.labels == self.predicted
        return correct

    @property
    def test_set(self) -> str:
        """The SHA-256 of images and labels: equal only for equal test sets."""
        data = self.record["dataset"]
        return f"{data['images_sha256']} {data['labels_sha256']}"

    @property
    def seed(self) -> object:
        """The seed of the training run; ``None`` for a bare state dict."""
        training = self.record["training"]
        return training and training["settings"].get("seed")


def read_evaluation(path: Path) -> Evaluation:
    """Read ``{exp_name}_metrics.json`` and the predictions beside it.

    :raises UsageError: one is missing, damaged, of another format, or they do not match.
    """
    record = read_metrics(path)
    predictions = path.with_name(f"{record['exp_name']}_predictions.csv.gz")
    if not predictions.exists():
        raise UsageError(f"{predictions} is missing: {path} refers to it ({AGAIN})")
    try:
        with gzip.open(io.BytesIO(read_bytes(predictions))) as file:
            content = file.read(TEXT_LIMIT)  # what unpacks to more has another digest
        if hashlib.sha256(content).hexdigest() != record["predictions_sha256"]:
            raise ValueError("its digest is another")
        header, *lines = content.decode().splitlines()
        used = [header.split(",").index(name) for name in ("digit", "predicted")]
        columns = np.loadtxt(lines, np.int64, delimiter=",", usecols=used, ndmin=2)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{predictions} does not hold the predictions of {path}: {shown(error)} ({AGAIN})"
        ) from None
    return Evaluation(path, record, *columns.T)


def read_metrics(path: Path) -> EvaluationRecord:
    """Read ``{exp_name}_metrics.json``.

    :raises UsageError: it is missing, damaged, of another format or of something else.
    """
    try:
        record = read_json(path)
        check_type(record, dict)
        if "per_class" in record and record.get("format") != FORMAT:
            raise UsageError(
                f"{path} is of format {shown(record.get('format', 'djsw-evaluation-1'))}: this "
                f"version reads {FORMAT} ({AGAIN})"
            )
        require_record(record, EvaluationRecord)
        if len(record.get("class_names", record["classes"])) != len(record["classes"]):
            raise TypeError("class_names are not of the classes")
        for field, names in METRICS.items():
            if field == "label_distance" and "class_names" in record:
                names = ()  # no quantities
            ends = [record["intervals"].get(name, ()) for name in names]
            if record[field].keys() != {*names} or any(len(each) != 2 for each in ends):
                raise TypeError(f"{field} and their intervals are not {', '.join(names)}")
        if [*map(len, record["confusion"])] != len(record["classes"]) * [len(record["classes"])]:
            raise TypeError("confusion is not of the classes")
    except FileNotFoundError:
        raise UsageError(
            f"{path} is missing (evaluate its checkpoint under that --exp_name)"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is not a valid metrics file of an evaluation: {shown(error)} (give a "
            "…_metrics.json)"
        ) from None
    return cast(EvaluationRecord, record)
