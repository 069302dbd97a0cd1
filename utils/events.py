"""The history of a training as TensorBoard's events."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from utils.files import naming


class EventFolder:
    """The history as TensorBoard's events, in a folder that is made anew.

    ``torch.utils.tensorboard`` writes in a thread, whose errors (a full disk) end in a traceback
    and not in a sentence; here tensorboard's own record writer is called in turn.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        # TensorBoard knows its files by this part of the name.
        self._path = folder / "events.out.tfevents.history"
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the row's losses, accuracy and learning rate as scalars of its epoch."""
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "epoch"
        ]
        summary = Summary(value=values)
        self._write(Event(step=row["epoch"], wall_time=time.time(), summary=summary))

    def _write(self, event: Any) -> None:
        with naming(self._path), self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())

    def remove(self) -> None:
        """Delete it again."""
        shutil.rmtree(self._path.parent)
