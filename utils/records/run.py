"""The record of a training run, ``{exp_name}_run.json``, as it is read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from utils.errors import UsageError
from utils.records.evaluation import DatasetRecord, DeviceRecord, GitRecord
from utils.records.files import FileRecord
from utils.records.typed import check_type

#: Names of settings in earlier records; None are settings that were never switched on.
RENAMED = {"deformation": "augmentation", "averaging": None, "label_smoothing": None}


class EpochResult(TypedDict):
    """The results of an epoch; those of a finished run name its checkpoint and its weights."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    checkpoint: NotRequired[str]
    weights_sha256: NotRequired[str]


class RunResults(TypedDict):
    """The best epoch, by validation loss, and the last."""

    best: EpochResult
    last: EpochResult


class RunModel(TypedDict):
    """The class of the network and its constructor's arguments."""

    name: str
    arguments: Mapping[str, object]


class RunSession(TypedDict):
    """One process that worked on the run; ``source`` only where it differs from the one before."""

    command: str
    started: str
    git: GitRecord | None
    versions: dict[str, str]
    slurm: dict[str, str]
    device: DeviceRecord
    source: NotRequired[dict[str, str]]
    change: NotRequired[str | None]


class Run(TypedDict):
    """The content of a record; ``status`` is running, stopped, failed or finished."""

    exp_name: str
    username: str
    model: RunModel
    dataset: DatasetRecord
    classes: list[int]
    settings: dict[str, Any]
    starting_weights: FileRecord | None
    status: str
    results: NotRequired[RunResults]
    sessions: list[RunSession]


def read_run(path: Path) -> Run:
    """Read a record.

    :raises UsageError: it is damaged, or of something else.
    """
    try:
        record = json.loads(path.read_bytes())
        check_type(record, Run)
        if not record["sessions"] or (record["status"] == "finished") > ("results" in record):
            raise TypeError("it has no sessions or no results")
        record["settings"] = modernize_settings(record["settings"])
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a valid record of a run: {error} (give a …_run.json)"
        ) from None
    return cast(Run, record)


def modernize_settings(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings by today's names."""
    return {
        str(RENAMED.get(name, name)): value
        for name, value in recorded.items()
        if RENAMED.get(name, name) is not None
    }
