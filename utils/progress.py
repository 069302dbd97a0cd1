"""How far a training is: what each of its ranks knows, and the line an epoch for people."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from utils import ranks
from utils.adam import Adam
from utils.failures import Elsewhere, RunError
from utils.signals import EXIT_STATUS

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
class Progress:
    """A training in memory: all that a rank other than 0 has of it, since only rank 0 has files.

    :ivar history: a row per finished epoch.
    :ivar losses: of the epoch under way, each finished step's loss, summed over its images.
    :ivar seconds: that the epoch under way took so far.
    :ivar finished: whether there was nothing left to do, and nothing is written.
    """

    history: list[Row] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))
    seconds: float = 0.0
    finished: bool = False

    @property
    def best(self) -> Row:
        """The row of the epoch with the lowest validation loss, the first of equals."""
        return min(self.history, key=lambda row: row["validation_loss"])

    def is_over(self, num_epochs: int, patience: int | None) -> bool:
        """Whether all epochs are done, or the last ``patience`` of them brought nothing better."""
        done = len(self.history)
        return done >= num_epochs or bool(
            done and patience and done - self.best["epoch"] >= patience
        )

    def begin(
        self,
        model: nn.Module,
        optimizer: Adam,
        num_epochs: int,
        patience: int | None,
        *,
        resume: bool,
    ) -> None:
        """Begin or go on; what there is to go on from, rank 0 knows."""

    def agree(self, model: nn.Module, optimizer: Adam) -> None:
        """Have every rank begin where rank 0 does."""
        known = (self.history, self.losses, self.seconds, self.finished)
        tensors = [*model.buffers(), optimizer.values, *optimizer.state_dict().values()]
        self.history, self.losses, self.seconds, self.finished = ranks.copy_first(tensors, known)

    def save_epoch(self, row: Row, model: nn.Module, optimizer: Adam) -> None:
        """Keep a finished epoch."""
        self.history.append(row)
        self.losses, self.seconds = torch.zeros(0), 0.0

    def save_step(
        self,
        losses: Tensor,
        seconds: float,
        model: nn.Module,
        optimizer: Adam,
        signal: str | None = None,
    ) -> None:
        """Keep the epoch under way as it stands after ``len(losses)`` steps.

        :raises Stopped: a ``signal`` was the reason.
        """
        self.losses, self.seconds = losses.cpu(), seconds
        if signal:
            ranks.wait()  # none ends before rank 0 has saved: its end would end them all
            raise Elsewhere(EXIT_STATUS[signal])

    def failed(self, reason: str) -> RunError | Elsewhere:
        """The error to raise."""
        ranks.wait()
        return Elsewhere(RunError.exit_status)

    def finish(self, model: nn.Module, optimizer: Adam) -> None:
        """Keep the results."""


def epoch_line(row: Mapping[str, Any], num_epochs: int, images_per_second: float) -> str:
    """The row of the history as an aligned line, with the speed and the time left."""
    left = (num_epochs - row["epoch"]) * row["seconds"]
    return (
        f"epoch {row['epoch']:{len(str(num_epochs))}}/{num_epochs}"
        f"  train loss {row['train_loss']:.4f}"
        f"  validation loss {row['validation_loss']:.4f}"
        f"  accuracy {row['validation_accuracy']:7.2%}"
        f"  lr {row['learning_rate']:.3g}"
        f"  {images_per_second:8,.0f} images/s"
        f"  {left // 60:.0f}:{left % 60:02.0f} left"
    )
