"""The record of a training run, ``{exp_name}_run.json``, as it is read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast, final

from utils.errors import UsageError
from utils.records.evaluation import DatasetRecord, ModelRecord, SessionRecord
from utils.records.files import FileRecord
from utils.records.typed import check_type

#: Names of settings in earlier records; None are settings that were never switched on.
RENAMED = {"deformation": "augmentation", "averaging": None, "label_smoothing": None}


class EpochResult(TypedDict):
    """The results of an epoch; those of a finished run name its checkpoint."""

    epoch: int
    validation_loss: float
    validation_accuracy: float
    checkpoint: NotRequired[str]


class RunResults(TypedDict):
    """The best epoch, by validation loss, and the last."""

    best: EpochResult
    last: EpochResult


@final
class Run(TypedDict):
    """The content of a record; ``status`` is running, stopped, failed or finished."""

    exp_name: str
    username: str
    model: ModelRecord
    dataset: DatasetRecord
    settings: dict[str, Any]
    starting_weights: FileRecord | None
    status: str
    results: NotRequired[RunResults]
    sessions: list[SessionRecord]


def read_run(path: Path) -> Run:
    """Read a record.

    :raises UsageError: it is damaged, or of something else.
    """
    try:
        record = json.loads(path.read_bytes())
        check_type(record, Run)
        if not record["sessions"] or (record["status"] == "finished") > ("results" in record):
            raise TypeError("it has no sessions or no results")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        sentence = f"{path} is not a valid record of a run: {error} (give a …_run.json)"
        raise UsageError(sentence) from None
    return cast(Run, {**record, "settings": modernize_settings(record["settings"])})


def modernize_settings(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings by today's names."""
    names = {name: RENAMED.get(name, name) for name in recorded}
    return {new: recorded[name] for name, new in names.items() if new}
