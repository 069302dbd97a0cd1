"""The files that a run owns, all named after its experiment, and the lock on that name."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UsageError
from utils.records.files import file_lock, remove_temporary

#: Endings of the files that a run owns, after ``{exp_name}_``.
OWNED = r"(resume\.pt|run\.json|history\.csv|curves\.png|checkpoint_(best|epoch_\d+)\.pt)"


class RunFiles:
    """Paths of the training run ``exp_name`` in ``folder``.

    :ivar state: what ``--resume`` continues from.
    :ivar record: what ran, with which result (JSON).
    :ivar history: a row for each epoch (CSV).
    :ivar curves: the history as a figure.
    :ivar best_checkpoint: the checkpoint with the lowest validation loss.
    """

    def __init__(self, folder: Path, exp_name: str) -> None:
        self.folder, self.exp_name = folder, exp_name
        self.state, self.record = self.path("resume.pt"), self.path("run.json")
        self.history, self.curves = self.path("history.csv"), self.path("curves.png")
        self.best_checkpoint = self.path("checkpoint_best.pt")

    def path(self, ending: str) -> Path:
        """Return the path of the file with this ending."""
        return self.folder / f"{self.exp_name}_{ending}"

    def epoch_checkpoint(self, epoch: int) -> Path:
        """Return the path of the checkpoint of an epoch."""
        return self.path(f"checkpoint_epoch_{epoch}.pt")

    def existing(self) -> list[Path]:
        """Return the files of this run that exist, sorted."""
        owned = re.compile(re.escape(f"{self.exp_name}_") + OWNED)
        return sorted(path for path in self.folder.iterdir() if owned.fullmatch(path.name))

    def require_new(self) -> None:
        """Refuse a name that is taken.

        :raises UsageError: a file of this name exists, or a folder or link for its events.
        """
        existing = [*self.existing(), *filter(os.path.lexists, [self.path("tensorboard")])]
        if self.state in existing:
            raise self.taken(self.state, ", or --resume to continue that run")
        if existing:
            raise self.taken(existing[0])

    def taken(self, path: Path, remedy: str = "") -> UsageError:
        """Return the error for a name that ``path`` shows to be taken."""
        return UsageError(
            f"{self.exp_name!r} was trained before: {path} exists; give another --exp_name{remedy}"
        )

    def remove_temporary(self) -> None:
        """Remove what a killed process left half written."""
        remove_temporary(self.folder, self.exp_name, OWNED)

    def remove(self) -> None:
        """Remove the files of this run, the state last: until then it can be resumed."""
        for path in sorted(self.existing(), key=lambda path: path == self.state):
            path.unlink()
        shutil.rmtree(self.path("tensorboard"), ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training under this name during the block.

        :raises UsageError: another process trains under this name.
        """
        refusal = UsageError(
            f"{self.exp_name!r} is being trained by another process now; wait for it, or give "
            "another --exp_name"
        )
        with file_lock(self.path("resume.lock"), refusal):
            yield
