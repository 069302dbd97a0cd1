"""The history of a run: a row for each epoch, in memory and as CSV."""

import csv
from pathlib import Path
from typing import TypedDict

from utils.errors import UsageError
from utils.records.files import atomic_write, name_file_in_errors
from utils.records.typed import read_bytes, shown


class Row(TypedDict):
    """One epoch: mean losses, the share of validation images that are correct, seconds."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


COLUMNS = tuple(Row.__annotations__)


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


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the rows of a CSV.

    :raises UsageError: it is missing or damaged.
    """
    try:
        rows = csv.DictReader(read_bytes(path).decode().splitlines())
        found = [{name: float(row[name]) for name in row} for row in rows]
        if any(not row.keys() >= {*COLUMNS} for row in found):
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UsageError(
            f"{path} is not a valid history: {shown(error)} (remove it, or train that name again)"
        ) from None
    return found


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
