"""Evaluations on disk: the typed content of the metrics file, and its predictions."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from utils.errors import UsageError
from utils.records.files import FileRecord
from utils.records.provenance import without_nan
from utils.records.typed import check_type

#: Version of ``{exp_name}_metrics.json``; the first version did not state one.
FORMAT = "djsw-evaluation-2"

#: Values by metric; ``None`` where a metric is undefined.
MetricValues = Mapping[str, float | None]
#: Lower and upper end of a 95 % interval; ``None`` where it is undefined.
Ends = Sequence[float | None]


class CheckpointRecord(FileRecord):
    """The evaluated checkpoint; a bare state dict has no epoch."""

    epoch: int | None


class ModelRecord(TypedDict):
    """A network: class name, constructor arguments, layer sizes and number of parameters."""

    name: str
    arguments: Mapping[str, object]
    layers: str
    parameters: int


class DatasetRecord(TypedDict):
    """An HDF5 file and the SHA-256 of its arrays."""

    name: str
    file: str
    images_sha256: str
    labels_sha256: str


class SplitRecord(DatasetRecord):
    """An HDF5 file and its split, which is ``test``."""

    split: str


class TrainingRecord(TypedDict):
    """The run that wrote the checkpoint.

    ``saved`` tells which of its checkpoints: ``best``, ``epoch_10``, or ``None`` if unknown.
    """

    exp_name: str
    dataset: DatasetRecord
    settings: Mapping[str, object]
    starting_weights: FileRecord | None
    saved: str | None


class DigitMetrics(TypedDict):
    """Metrics of one digit; ``support`` is the number of its images."""

    digit: int
    precision: float
    recall: float
    f1: float
    support: int


class DigitRecord(DigitMetrics):
    """Metrics of one digit, with the intervals of precision, recall and F1."""

    intervals: Mapping[str, Ends]


class ConfidenceBin(TypedDict):
    """Images whose confidence is in (``above``, ``up_to``].

    ``right`` is the number of correct ones, ``confidence`` the mean confidence.
    """

    above: float
    up_to: float
    images: int
    right: int
    confidence: float


class CalibrationRecord(ConfidenceBin):
    """A bin of confidence, with the ends of the interval of its accuracy."""

    low: float
    high: float


class Results(TypedDict):
    """The numbers of an evaluation; ``confusion`` has true digits as rows."""

    images: int
    correct: int
    metrics: MetricValues
    probabilities: MetricValues
    label_distance: MetricValues
    intervals: Mapping[str, Ends]
    per_class: list[DigitRecord]
    confusion: list[list[int]]
    calibration: list[CalibrationRecord]
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
    """Provenance and resource usage of the process, see :mod:`utils.records.provenance`."""

    command: str
    working_directory: str
    started: str
    git: GitRecord | None
    source_sha256: str
    source: dict[str, str]
    diff: str
    batch_script: str | None
    versions: dict[str, str]
    slurm: dict[str, str]
    device: DeviceRecord
    seconds: float
    peak_memory_bytes: dict[str, int | None]
    gpu_hours: float


class EvaluationMetadata(TypedDict):
    """What is evaluated on which test set; ``classes`` are the digits in the order of the logits.

    ``training`` is ``None`` for a bare state dict.
    """

    format: str
    exp_name: str
    username: str
    model: ModelRecord
    checkpoint: CheckpointRecord
    training: TrainingRecord | None
    dataset: SplitRecord
    classes: list[int]


class EvaluationContent(EvaluationMetadata, Results):
    """The metrics file without its digest."""

    predictions_sha256: str
    session: SessionRecord


class EvaluationRecord(EvaluationContent):
    """The content of ``{exp_name}_metrics.json``."""

    sha256: str


def predictions_csv(
    log_probabilities: np.ndarray, labels: np.ndarray, digits: Sequence[int]
) -> bytes:
    """Return a CSV with a line per image, in the order of the test file.

    Its columns are the row in the test file, the true digit, the predicted digit, and the
    probability of each digit to six significant digits.
    """
    predicted = np.array(digits)[log_probabilities.argmax(1)]
    columns = [np.arange(len(labels)), labels, predicted, *np.exp(log_probabilities).T]
    header = ",".join(["index", "digit", "predicted", *(f"p_{digit}" for digit in digits)])
    text = io.StringIO()
    formats = ["%d"] * 3 + ["%.6g"] * len(digits)
    np.savetxt(text, np.column_stack(columns), formats, ",", header=header, comments="")
    return text.getvalue().encode()


def with_digest(content: EvaluationContent) -> EvaluationRecord:
    """Return the record with the SHA-256 of its content, which reveals later changes."""
    return {**content, "sha256": _content_sha256(content)}


def _content_sha256(record: Mapping[str, object]) -> str:
    content = {name: value for name, value in record.items() if name != "sha256"}
    text = json.dumps(without_nan(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def metric_values(record: EvaluationRecord) -> dict[str, float | None]:
    """Return every metric of an evaluation by name."""
    return {**record["metrics"], **record["probabilities"], **record["label_distance"]}


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as read from its metrics file ``path`` and the predictions beside it.

    :ivar labels: the true digits (N,).
    :ivar predicted: the predicted digits (N,).
    """

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
        return training and training["settings"]["seed"]


def read_evaluation(path: Path) -> Evaluation:
    """Read ``{exp_name}_metrics.json`` and the predictions beside it.

    :raises UsageError: one of them is missing, damaged, or does not belong to the other, or the
        format is another one.
    """
    record = _read_record(path)
    predictions = path.with_name(f"{record['exp_name']}_predictions.csv")
    if not predictions.exists():
        raise UsageError(
            f"{predictions} is missing: {path} refers to it (evaluate again under another "
            "--exp_name)"
        )
    content = predictions.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["predictions_sha256"]:
        raise UsageError(
            f"{predictions} does not hold the predictions of {path}: it is damaged, or belongs to "
            "another evaluation (evaluate again under another --exp_name)"
        )
    columns = np.loadtxt(
        content.decode().splitlines(), np.int64, delimiter=",", skiprows=1, usecols=(1, 2), ndmin=2
    )
    return Evaluation(path, record, *columns.T)


def _read_record(path: Path) -> EvaluationRecord:
    """Read a metrics file and check its format, its fields and its digest."""
    try:
        record: Any = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise TypeError("it holds no JSON object")
        if "per_class" in record and record.get("format") != FORMAT:
            other = "an older format" if "format" not in record else f"format {record['format']}"
            raise UsageError(
                f"{path} is of {other}: this version reads {FORMAT} (evaluate its checkpoint "
                "again under another --exp_name)"
            )
        check_type(record, EvaluationRecord)
        if record["sha256"] != _content_sha256(record):
            raise ValueError("it was changed")
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a valid metrics file of an evaluation: {error} (give a …_metrics.json)"
        ) from None
    return cast(EvaluationRecord, record)
