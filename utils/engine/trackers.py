"""Where a run is also logged: TensorBoard, and MLflow where ``MLFLOW_TRACKING_URI`` is set."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from utils.engine.history import Row, read_history
from utils.engine.signals import EXIT_STATUS
from utils.errors import one_line
from utils.records.files import ROOT
from utils.records.provenance import flat
from utils.records.run_files import RunFiles
from utils.records.typed import content_sha256

#: TensorBoard groups by what precedes the slash.
TAGS = {"train_loss": "loss/train", "validation_loss": "loss/validation"}
#: Seconds between two looks of MLflow's process at the history.
MLFLOW_SECONDS = 2
#: Most seconds to wait for it at the end: creating a SQLite store took 24 on two busy cores.
FINISH_SECONDS = 60
#: Seconds in which a server has to answer, each time.
ANSWER_SECONDS = 5


def log(trackers: list[Any], event: str, *values: object) -> None:
    """Call start(rows), epoch(row) or finish() of each; one that fails is dropped, with a note."""
    for tracker in trackers.copy():
        try:
            getattr(tracker, event)(*values)
        except Exception as error:
            trackers.remove(tracker)
            # Not to sys.stderr, which the workers of a sweep redirect.
            _print_note(f"{type(tracker).__name__}: {error}", sys.__stderr__)


def _print_note(text: str, file: Any) -> None:
    print(f"note        {one_line(text)} (the run continues without it)", file=file, flush=True)


def parameters(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run was given, by name: person, network, dataset, settings."""
    names = {"username": metadata["username"], "dataset": metadata["dataset"]["name"]}
    names["model"], arguments = metadata["model"]["name"], metadata["model"]["arguments"]
    return dict(flat({**names, "arguments": arguments, **metadata["settings"]}))


class TensorBoard:
    """Events of a run: settings, epochs, and the confusion matrix of the last epoch."""

    def __init__(self, files: RunFiles, metadata: Mapping[str, Any]) -> None:
        self.folder, self.metadata = files.path("tensorboard"), metadata

    def start(self, rows: Sequence[Row]) -> None:
        """Write all events again: a process that died may have been ahead of its state."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import custom_scalars, hparams

        threading.excepthook = _hide_os_errors
        shutil.rmtree(self.folder, ignore_errors=True)
        self.events = SummaryWriter(self.folder)
        given = parameters(self.metadata).items()
        plain = {n: v if isinstance(v, (bool, int, float)) else str(v) for n, v in given}
        loss = {"loss": {"loss": ["Multiline", [*TAGS.values()]]}}
        # The second of three; the first would make TensorBoard show this run's columns only.
        for summary in (hparams(plain, {})[1], custom_scalars(loss)):
            self.events._get_file_writer().add_summary(summary)
        for row in rows:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        """Write the events of an epoch; flushed."""
        for name, value in row.items():
            if name != "epoch":
                self.events.add_scalar(TAGS.get(name, name), value, row["epoch"])
        self.events.flush()

    def finish(self, confusion: np.ndarray | None = None) -> None:
        """Draw the confusion matrix (C, C) of a run that finished, and close the events."""
        if confusion is not None:
            names = self.metadata.get("class_names", self.metadata["classes"])
            picture = draw_confusion(confusion, names)
            self.events.add_image("confusion", picture, dataformats="HWC")
        self.events.close()


def _hide_os_errors(args: threading.ExceptHookArgs) -> None:
    """Print no traceback of the writer's thread on a full disk: ``flush`` raises the same."""
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


def draw_confusion(confusion: np.ndarray, names: Sequence[object]) -> np.ndarray:
    """Draw counts (C, C) by true class (row) and predicted class, as uint8 (H, W, 3).

    Errors are red by their proportion. It takes 12 ms, with matplotlib 150.
    """
    from PIL import Image, ImageDraw

    rates = confusion / confusion.sum(1, keepdims=True).clip(1)
    np.fill_diagonal(rates, 0)
    texts, measure = [one_line(str(n), 20) for n in names], ImageDraw.Draw(Image.new("1", (1, 1)))
    table = np.vstack([["", *texts], np.c_[texts, confusion]])
    wide = max(40, *(round(measure.textlength(text, font_size=14)) + 12 for text in texts))
    colors = np.full((*table.shape, 3), 255, np.uint8)
    colors[1:, 1:, 1:] -= (180 * rates / max(rates.max(), 0.01)).astype(np.uint8)[..., None]
    image = Image.fromarray(colors.repeat(40, 0).repeat(wide, 1))
    for row, column in [*np.ndindex(table.shape)][1:]:
        place, color = (wide * (column + 0.5), 40 * row + 20), "black" if row and column else "blue"
        ImageDraw.Draw(image).text(place, table[row, column], color, anchor="mm", font_size=14)
    return np.asarray(image)


class MLflow:
    """A run of MLflow. A process of its own logs the run's files, however slow the server is.

    To import MLflow takes 5 s of a core, in which a run in the same process would stand still.
    """

    def __init__(self, files: RunFiles, metadata: Mapping[str, Any]) -> None:
        self.record, self.next = files.record, 0.0

    def start(self, rows: Sequence[Row]) -> None:
        """Start the process, which does not get the Ctrl-C of a terminal."""
        if find_spec("mlflow") is None:
            raise ModuleNotFoundError("it is not installed; start with uv run --extra mlflow …")
        run = f"import sys; sys.path[0] = {str(ROOT)!r}; import {__name__} as own; own.log_files()"
        command = [sys.executable, "-c", run, str(self.record)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def epoch(self, row: Row) -> None:
        """Have the history read, now and then."""
        if time.monotonic() > self.next and self.process.stdin:
            self.next = time.monotonic() + MLFLOW_SECONDS
            with suppress(BrokenPipeError):  # it has said why
                os.write(self.process.stdin.fileno(), b"\n")

    def finish(self, confusion: np.ndarray | None = None) -> None:
        """Have the rest logged, and wait for it."""
        print("mlflow      waiting until all is logged", flush=True)
        try:
            self.process.communicate(timeout=FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise TimeoutError(f"it took more than {FINISH_SECONDS} s") from None
        if self.process.returncode:
            raise ChildProcessError(f"its process ended with status {self.process.returncode}")


def log_files() -> None:
    """Log the files of a record to MLflow: at each line on stdin, and at its end.

    What fails is noted once and tried again the next time, unless the run could not be started.
    """
    for name in filter(lambda name: hasattr(signal, name), EXIT_STATUS):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # the record will say so
    stderr, failed = sys.stderr, False
    sys.stdout = sys.stderr = io.StringIO()  # for what MLflow prints
    path, run_id = Path(sys.argv[1]), ""
    for is_over in chain((False for _ in sys.stdin), [True]):
        try:
            run_id = run_id or _start_mlflow(json.loads(path.read_text(encoding="utf-8")))
            _log_mlflow(run_id, path, is_over)
        except Exception as error:
            if not failed:
                _print_note(f"MLflow: {error}", stderr)
            if not run_id:
                return
            failed = True


def _start_mlflow(record: Mapping[str, Any]) -> str:
    """Find the run by a hash of its first session, or create it; log settings and tags."""
    server = urlsplit(os.environ["MLFLOW_TRACKING_URI"])
    if server.scheme in ("http", "https"):  # to find out by MLflow would take 5 s more
        port = server.port or {"http": 80, "https": 443}[server.scheme]
        socket.create_connection((server.hostname, port), ANSWER_SECONDS).close()
    for name, value in {
        "EXPERIMENT_NAME": "DJSW",
        "HTTP_REQUEST_TIMEOUT": str(ANSWER_SECONDS),  # else 120 s, seven times
        "HTTP_REQUEST_MAX_RETRIES": "0",
        "DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(f"MLFLOW_{name}", value)
    from mlflow import MlflowClient, set_experiment
    from mlflow.entities import Param, RunTag

    client, name = MlflowClient(), record["exp_name"]
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or str(
        set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"]).experiment_id
    )
    first, last = record["sessions"][0], record["sessions"][-1]
    identity = {key: first[key] for key in ("started", "command", "slurm", "device")}
    key = content_sha256({**identity, "exp_name": name, "dataset": record["dataset"]})
    found = client.search_runs([experiment], f"tags.djsw_run = '{key}'", max_results=1)
    run = (found or [client.create_run(experiment, run_name=name, tags={"djsw_run": key})])[0]
    git = last["git"] or {}
    tags = {
        "mlflow.user": record["username"],
        "mlflow.source.name": last["command"],
        "mlflow.source.git.commit": git.get("commit"),
        "git_changed": git.get("changed"),
        "slurm_job_id": last["slurm"].get("SLURM_JOB_ID"),
        **{name: value for name, value in record["dataset"].items() if name.endswith("sha256")},
    }
    given = parameters(record).items()  # MLflow refuses another value, such as of num_epochs
    client.log_batch(
        run.info.run_id,
        params=[Param(name, str(value)) for name, value in given if name not in run.data.params],
        tags=[RunTag(name, str(value)) for name, value in tags.items() if value is not None],
    )
    client.update_run(run.info.run_id, status="RUNNING")
    return str(run.info.run_id)


def _log_mlflow(run_id: str, path: Path, is_over: bool) -> None:
    """Log the epochs that MLflow does not have; at the end also the files, and how it ended."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client, record = MlflowClient(), json.loads(path.read_text(encoding="utf-8"))
    files = RunFiles(path.parent, record["exp_name"])
    known = {metric.step for metric in client.get_metric_history(run_id, "validation_loss")}
    now, metrics = round(1000 * time.time()), []
    for row in read_history(files.history):
        epoch = int(row.pop("epoch"))
        if epoch not in known:
            metrics += [Metric(name, value, now, epoch) for name, value in row.items()]
    for start in range(0, len(metrics), 1000):  # the most that MLflow takes
        client.log_batch(run_id, metrics[start : start + 1000])
    if is_over:
        for file in (files.record, files.history, files.curves, files.best_checkpoint):
            if file.exists():
                client.log_artifact(run_id, str(file))
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(record["status"], "KILLED")
        client.set_terminated(run_id, status)
