"""A training on the disk: the files that it owns, its state, and how it is resumed."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from utils.checkpoint import (
    cpu_weights,
    load_checkpoint,
    read_plain,
    save_checkpoint,
    weights_sha256,
    write_plain,
)
from utils.failures import RunError, UsageError
from utils.files import writing
from utils.record import facts, write_json

STATE_FORMAT = "djsw-state-1"
#: A checkpoint is kept of every so many epochs, besides the best and the last.
CHECKPOINT_EVERY = 10
#: What may differ between a training and its resumption, since the result does not depend on it.
MAY_CHANGE = {"username", "settings.num_epochs", "dataset.file", "starting_weights.file"}

#: Of the history; a :data:`Row` has a value for each.
COLUMNS = (
    "epoch",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "seconds",
)
Row = dict[str, Any]


@dataclass
class TrainingRun:
    """The training called ``exp_name`` in ``folder``.

    After each epoch the disk holds what memory holds, so that a process that dies loses one epoch
    at most. The state is written last: whatever else was written is written again, the same.

    :ivar about: plain values that say what is trained; they go into the record and each checkpoint.
    :ivar history: a row per finished epoch.
    :ivar sessions: the facts of each process that worked on it (command, versions, device, …).
    """

    folder: Path
    exp_name: str
    about: Mapping[str, Any] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)

    def file(self, ending: str) -> Path:
        """The absolute path of the file with this ending."""
        return self.folder / f"{self.exp_name}_{ending}"

    @property
    def state_file(self) -> Path:
        """What ``--resume`` goes on from."""
        return self.file("resume.pt")

    @property
    def record_file(self) -> Path:
        """What ran, and with what result."""
        return self.file("run.json")

    @property
    def history_file(self) -> Path:
        """A line per epoch."""
        return self.file("history.csv")

    @property
    def best_file(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.file("checkpoint_best.pt")

    @property
    def best(self) -> Row:
        """The row of the epoch with the lowest validation loss, the first of equals."""
        return min(self.history, key=lambda row: row["validation_loss"])

    def require_new(self) -> None:
        """Refuse a name that was trained before; with a state, offer to resume it.

        :raises UsageError: files of that name are there.
        """
        for path in self._existing():
            raise self._taken(path)

    def _existing(self) -> list[Path]:
        endings = ("resume.pt", "run.json", "history.csv", "checkpoint_best.pt", "curves.png")
        start = f"{self.exp_name}_checkpoint_epoch_"
        numbered = [
            path
            for path in self.folder.glob(f"{start}*.pt")
            if path.stem.removeprefix(start).isdecimal()  # not of another name that starts alike
        ]
        return [path for path in (*map(self.file, endings), *numbered) if path.exists()]

    def _taken(self, path: Path) -> UsageError:
        remedy = ", or --resume to go on with it" if path == self.state_file else ""
        return UsageError(
            f"{self.exp_name!r} was trained before: {path} exists; give another --exp_name{remedy}"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training under the same name for the time of the block.

        The system frees the lock of a process that dies, whichever way. Where there are no locks
        (Windows, some network file systems) a name can still be claimed only once.

        :raises UsageError: another process has the lock.
        """
        try:
            import fcntl
        except ImportError:
            yield
            return
        path = self.file("resume.lock")
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{self.exp_name!r} is being trained by another process now; wait for it, or "
                    "give another --exp_name"
                ) from None
            except OSError:
                pass
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def begin(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
        num_epochs: int,
        *,
        resume: bool,
    ) -> None:
        """Claim the name (of several processes one gets it), or take up the state that is there.

        :raises UsageError: the name is taken, or was trained otherwise or for longer.
        """
        if resume and self.state_file.exists():
            self._take_up(model, optimizer)
        else:
            self.require_new()
            try:
                self._save_state(model, optimizer, exclusive=True)
            except FileExistsError:
                raise self._taken(self.state_file) from None
        if len(self.history) > num_epochs:
            raise UsageError(
                f"{self.exp_name!r} has {len(self.history)} epochs already; give --num_epochs "
                f"{len(self.history)} or more to --resume it, or another --exp_name"
            )
        self.sessions.append({**facts(device), "first_epoch": len(self.history) + 1})
        self._save_record("running")
        self._rewrite_history()

    def save_epoch(
        self, row: Row, model: nn.Module, optimizer: Optimizer, *, is_last: bool
    ) -> None:
        """Keep a finished epoch: its checkpoints, its line of the history, the state."""
        self.history.append(row)
        wanted = []
        if self.best is row:
            wanted.append(self.best_file)
        if row["epoch"] % CHECKPOINT_EVERY == 0 or is_last:
            wanted.append(self.file(f"checkpoint_epoch_{row['epoch']}.pt"))
        if wanted:
            about = {**self.about, "epoch": row["epoch"], "metrics": row, **self.sessions[-1]}
            weights = cpu_weights(model)
            for path in wanted:
                save_checkpoint(path, weights, about)
        with self.history_file.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        self._save_state(model, optimizer)

    def failed(self, reason: str) -> RunError:
        """The error to raise; a name under which no epoch was finished is free again."""
        if self.history:
            self._save_record("failed", reason=reason)
            return RunError(f"{reason}; the checkpoints of earlier epochs are kept")
        for path in self._existing():
            path.unlink()
        return RunError(reason)

    def finish(self, seconds: float) -> None:
        """Write the record with the results, and draw the curves."""
        from utils.figures import save_curves  # matplotlib: half a second

        last = self.file(f"checkpoint_epoch_{self.history[-1]['epoch']}.pt")
        self.sessions[-1]["seconds"] = seconds
        self._save_record(
            "finished",
            results={
                "best": self._result(self.best, self.best_file),
                "last": self._result(self.history[-1], last),
                "training_seconds": sum(row["seconds"] for row in self.history),
            },
        )
        title = f"{self.exp_name}: {self.about['model']['name']} on {self.about['dataset']['name']}"
        save_curves(self.file("curves.png"), title, self.history)

    @staticmethod
    def _result(row: Row, path: Path) -> dict[str, Any]:
        weights = load_checkpoint(path).weights
        return {**row, "checkpoint": path.name, "weights_sha256": weights_sha256(weights)}

    def _save_record(self, status: str, **results: Any) -> None:
        write_json(
            self.record_file,
            {**self.about, "status": status, **results, "sessions": self.sessions},
        )

    def _rewrite_history(self) -> None:
        """The rows of the state: a process that died may have written one more."""
        with (
            writing(self.history_file) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            lines = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            lines.writeheader()
            lines.writerows(self.history)

    def _save_state(
        self, model: nn.Module, optimizer: Optimizer, *, exclusive: bool = False
    ) -> None:
        state = {
            "format": STATE_FORMAT,
            "about": dict(self.about),
            "weights": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": self.history,
            "sessions": self.sessions,
        }
        write_plain(self.state_file, state, exclusive=exclusive)

    def _take_up(self, model: nn.Module, optimizer: Optimizer) -> None:
        state = read_plain(self.state_file)
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
            raise UsageError(
                f"{self.state_file} is no state that this version can resume ({STATE_FORMAT}); "
                "give another --exp_name"
            )
        before, now = dict(_flat(state["about"])), dict(_flat(self.about))
        for name in before | now:
            if name not in MAY_CHANGE and before.get(name) != now.get(name):
                raise UsageError(
                    f"{self.exp_name!r} was trained with {name} {before.get(name)}, not "
                    f"{now.get(name)}; give the same to --resume it, or another --exp_name"
                )
        model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        self.history, self.sessions = state["history"], state["sessions"]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
