"""What an evaluation leaves for later ones: its metrics file and its predictions."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.failures import UsageError
from utils.record import without_nan

#: Of ``{exp_name}_metrics.json``; the first one stated none.
FORMAT = "djsw-evaluation-2"


def predictions_csv(
    log_probabilities: np.ndarray, labels: np.ndarray, digits: Sequence[int]
) -> bytes:
    """A line an image, in the order of the test file: its row there, its digit, the predicted
    digit, and the probability of each digit to six significant digits."""
    predicted = np.array(digits)[log_probabilities.argmax(1)]
    columns = [np.arange(len(labels)), labels, predicted, *np.exp(log_probabilities).T]
    header = ",".join(["index", "digit", "predicted", *(f"p_{digit}" for digit in digits)])
    text = io.StringIO()
    formats = ["%d"] * 3 + ["%.6g"] * len(digits)
    np.savetxt(text, np.column_stack(columns), formats, ",", header=header, comments="")
    return text.getvalue().encode()


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the SHA-256 of its content, by which a changed or damaged one is told."""
    return {**record, "sha256": _content_sha256(record)}


def _content_sha256(record: Mapping[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != "sha256"}
    text = json.dumps(without_nan(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Predictions:
    """An evaluation as read: its metrics file, and for each image its digit and the predicted one.

    :ivar record: what ``path`` holds.
    :ivar labels: the digits (N,).
    :ivar predicted: the predicted digits (N,).
    """

    path: Path
    record: dict[str, Any]
    labels: np.ndarray
    predicted: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether each image was predicted right, bool (N,)."""
        right: np.ndarray = self.labels == self.predicted
        return right

    @property
    def test_set(self) -> str:
        """The SHA-256 of images and labels: equal for equal test sets only."""
        data = self.record["dataset"]
        return f"{data['images_sha256']} {data['labels_sha256']}"


def read_evaluation(path: Path) -> Predictions:
    """Read ``{exp_name}_metrics.json`` and the predictions beside it.

    :raises UsageError: either is damaged, missing, of an older format or of another evaluation.
    """
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise TypeError("it holds no record")
        if "per_class" in record and record.get("format") != FORMAT:
            other = "an older format" if "format" not in record else f"format {record['format']}"
            raise UsageError(
                f"{path} is of {other}, this version reads {FORMAT}; "
                "evaluate its checkpoint again under another --exp_name"
            )
        if record["sha256"] != _content_sha256(record):
            raise ValueError("it was changed")
        predictions = path.with_name(f"{record['exp_name']}_predictions.csv")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UsageError(
            f"{path} is no metrics file of an evaluation, or a damaged one "
            f"({type(error).__name__}: {error}); give a …_metrics.json"
        ) from None
    if not predictions.exists():
        raise UsageError(
            f"{predictions} is missing, which belongs to {path}; evaluate again under another "
            "--exp_name"
        )
    content = predictions.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["predictions_sha256"]:
        raise UsageError(
            f"{predictions} does not hold the predictions that {path} was made from, but those of "
            "another evaluation or test set, or damaged ones; evaluate again"
        )
    columns = np.loadtxt(
        content.decode().splitlines(), np.int64, delimiter=",", skiprows=1, usecols=(1, 2), ndmin=2
    )
    return Predictions(path, record, *columns.T)
