"""The state file of a run, from which ``--resume`` continues with the same numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from torch import Tensor

from utils.engine.history import COLUMNS, Row
from utils.errors import UsageError
from utils.records.checkpoint import read_plain, write_plain
from utils.records.evaluation import SessionRecord
from utils.records.provenance import first_difference
from utils.records.typed import check_type, require_plain, require_record, shown

STATE_FORMAT = "djsw-state-7"
#: Metadata that may differ between a run and its resumption: where files are, and for how long.
MAY_CHANGE = {
    "username",
    "settings.num_epochs",
    "dataset.file",
    "dataset.source",
    "starting_weights.file",
}


class State(TypedDict):
    """Everything that the rest of a run depends on.

    ``losses`` (steps,) and ``seconds`` are those of the epoch in progress.
    """

    metadata: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    history: list[Row]
    losses: Tensor
    seconds: float
    sessions: list[dict[str, Any]]


def write_state(path: Path, state: State, *, exclusive: bool = False) -> None:
    """Write the state, whole or not at all.

    :raises FileExistsError: with ``exclusive``, where ``path`` exists.
    """
    write_plain(path, {"format": STATE_FORMAT, **state}, exclusive=exclusive)


def read_state(
    path: Path,
    metadata: Mapping[str, Any],
    exp_name: str,
) -> State:
    """Read the state of the run that ``metadata`` describes.

    :raises UsageError: the file is damaged, of another format, or of a run with other metadata.
    """
    state = read_plain(path)
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise UsageError(
            f"{path} is not a state that this version can resume ({STATE_FORMAT}); give another "
            "--exp_name"
        )
    try:
        check_type(state.get("sha256"), str, "sha256")
        require_record(state, State, Tensor)
        check_type(state["sessions"], list[SessionRecord], "sessions")
        require_plain([state["metadata"], state["history"], state["sessions"]])
        if any(tuple(row) != COLUMNS for row in state["history"]):
            raise ValueError("history has other columns")
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is damaged: {shown(error)}; give another --exp_name, or remove the files of "
            "that run"
        ) from None
    may_change = MAY_CHANGE
    if metadata["settings"]["schedule"] != "constant":  # the length decides every learning rate
        may_change = MAY_CHANGE - {"settings.num_epochs"}
    if different := first_difference(state["metadata"], metadata, may_change):
        name, before, here = different
        name = shown(name.removeprefix("settings."))
        raise UsageError(
            f"{exp_name!r} was trained with {name} {shown(before)}, not {here}; give the same to "
            "--resume it, or another --exp_name"
        )
    return cast(State, state)
