"""The record of a training run, ``{exp_name}_run.json``, as it is read."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast, final

from utils.errors import UsageError
from utils.records.evaluation import (
    DatasetRecord,
    EvaluationRecord,
    ModelRecord,
    SessionRecord,
    SettingsRecord,
    StartRecord,
)
from utils.records.files import FileRecord, sha256_of
from utils.records.provenance import first_difference, without_nan
from utils.records.typed import check_type, read_json, require_record, shown


class EpochResult(TypedDict):
    """The results of an epoch; those of a finished run name its checkpoint."""

    epoch: int
    validation_loss: float
    validation_accuracy: float
    checkpoint: NotRequired[str]
    weights_sha256: NotRequired[str]


class RunResults(TypedDict):
    """The best epoch, by validation loss, and the last."""

    best: EpochResult
    last: EpochResult


@final
class Run(TypedDict):
    """The content of a record; ``status`` is running, stopped, failed, pruned or finished.

    ``sha256`` is the digest of everything else.
    """

    exp_name: str
    username: str
    model: ModelRecord
    dataset: DatasetRecord
    settings: dict[str, Any]
    starting_weights: StartRecord | None
    teachers: NotRequired[list[FileRecord]]
    status: str
    results: NotRequired[RunResults]
    sessions: list[SessionRecord]
    sha256: str


def read_run(path: Path) -> Run:
    """Read a record.

    :raises UsageError: it is damaged, or of something else.
    """
    try:
        record = read_json(path)
        require_record(record, Run)
        check_type(record["settings"], SettingsRecord, "settings")
        if not record["sessions"] or (record["status"] == "finished") > ("results" in record):
            raise TypeError("it has no sessions or no results")
    except (OSError, ValueError, TypeError) as error:
        sentence = f"{path} is not a valid record of a run: {shown(error)} (give a …_run.json)"
        raise UsageError(sentence) from None
    return cast(Run, record)


def require_same_run(path: Path, run: Run, evaluation: EvaluationRecord | None = None) -> None:
    """Check that an evaluation, and the best checkpoint beside a finished record, are of that run.

    Not every run keeps its checkpoint; an evaluation names its run, settings and weights, too.

    :raises UsageError: they are not; the sentence names the first difference.
    """
    wanted: dict[str, Any] = {**run, **run["results"]["best"]}
    wanted.pop("sha256", None)  # of the record itself
    checkpoint = path.with_name(f"{run['exp_name']}_checkpoint_best.pt")
    compared: dict[object, dict[str, Any]] = {}
    if checkpoint.exists():
        from utils.records.checkpoint import load_checkpoint, weights_sha256  # imports torch

        loaded = load_checkpoint(checkpoint)
        own = without_nan({**loaded.metadata, **loaded.metadata.get("metrics", {})})
        compared[checkpoint] = {**own, "weights_sha256": weights_sha256(loaded.weights)}
        wanted["sha256"] = sha256_of(checkpoint)
    if evaluation is not None:
        training = evaluation["training"] or {"exp_name": None}
        name = f"the evaluation {evaluation['exp_name']}"
        compared[name] = {**evaluation["checkpoint"], **training}
    for file, values in compared.items():
        common = sorted(wanted.keys() & values.keys())
        found, here = ({name: each[name] for name in common} for each in (values, wanted))
        if different := first_difference(found, here):
            name, value, expected = different
            raise UsageError(
                f"{file} is not of the run of {path}: {name} is {shown(value)}, not "
                f"{shown(expected)} (train or evaluate that name again)"
            )
