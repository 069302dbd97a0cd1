"""The history of a run: a row for each epoch, in memory and as CSV."""

import csv
from pathlib import Path
from typing import Protocol, TypedDict

from utils.records.files import atomic_write, name_file_in_errors


class Row(TypedDict):
    """One epoch: mean losses, the share of validation images that are correct, seconds."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


COLUMNS = tuple(Row.__annotations__)


class RunLength(Protocol):
    """The settings that decide how long a run is."""

    @property
    def num_epochs(self) -> int:
        """Epochs in all."""

    @property
    def patience(self) -> int | None:
        """Epochs without a better validation loss after which the run stops."""


class History:
    """The rows of the finished epochs; only rank 0 calls the methods that write the CSV."""

    def __init__(self, csv_file: Path) -> None:
        self.csv_file = csv_file
        self.rows: list[Row] = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def best(self) -> Row:
        """The epoch with the lowest validation loss, the first of equals."""
        return min(self.rows, key=lambda row: row["validation_loss"])

    def is_over(self, length: RunLength) -> bool:
        """Whether all epochs are done, or the last ``patience`` ones brought nothing better."""
        done = len(self)
        return done >= length.num_epochs or bool(
            done and length.patience and done - self.best["epoch"] >= length.patience
        )

    def write_csv(self) -> None:
        """Write the CSV from the rows."""
        with (
            atomic_write(self.csv_file) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            lines = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            lines.writeheader()
            lines.writerows(self.rows)

    def append_to_csv(self, row: Row) -> None:
        """Append a row, already in :attr:`rows`; flushed."""
        with (
            name_file_in_errors(self.csv_file),
            self.csv_file.open("a", newline="", encoding="utf-8") as file,
        ):
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)


def epoch_line(row: Row, num_epochs: int, images_per_second: float) -> str:
    """Format a row as an aligned line, with the speed and the time left."""
    left = (num_epochs - row["epoch"]) * row["seconds"]
    return (
        f"epoch {row['epoch']:{len(str(num_epochs))}}/{num_epochs}"
        f"  train loss {row['train_loss']:.4f}"
        f"  validation loss {row['validation_loss']:.4f}"
        f"  accuracy {row['validation_accuracy']:.4f}"
        f"  lr {row['learning_rate']:.3g}"
        f"  {images_per_second:8,.0f} images/s"
        f"  {left // 60:.0f}:{left % 60:02.0f} left"
    )
