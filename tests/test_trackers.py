"""TensorBoard's events and MLflow's runs, read by their own readers."""

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from small_runs import StopAfter

from DJSW.main import main
from utils.engine import trackers

FLAGS = ["--username", "waly", "--train", "--exp_name", "e"]
NOTE = "(the run continues without it)\n"


def columns(folder, name="e"):
    """Return each column of a history: (epoch, value), …."""
    with (folder / f"{name}_history.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    names = [column for column in rows[0] if column != "epoch"]
    return {c: [(int(row["epoch"]), float(row[c])) for row in rows] for c in names}


@pytest.fixture
def train(processed, tmp_path, capfd):
    """Train into ``out``; return what the run printed on stderr."""
    (tmp_path / "out").mkdir()

    def run(*flags, status=0):
        capfd.readouterr()
        assert main([*FLAGS, "--output_dir", str(tmp_path / "out"), *flags]) == status
        return capfd.readouterr().err

    return run


def test_tensorboard(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for epochs in ("2", "4"):
        assert train("--num_epochs", epochs, "--resume") == ""
    (path,) = (tmp_path / "out" / "e_tensorboard").iterdir()
    events = EventAccumulator(str(path))
    events.Reload()
    tags = dict.fromkeys(columns(tmp_path / "out"))
    tags |= {name: name for name in tags}
    tags |= {"train_loss": "loss/train", "validation_loss": "loss/validation"}
    for column, expected in columns(tmp_path / "out").items():
        found = [(event.step, event.value) for event in events.Scalars(tags[column])]
        assert found == [(n, pytest.approx(value, rel=1e-6)) for n, value in expected]
    (layout,) = events.Tensors("custom_scalars__config__")
    chart = Layout.FromString(layout.tensor_proto.string_val[0]).category[0].chart[0]
    assert set(chart.multiline.tag) == {"loss/train", "loss/validation"}, "both in one chart"
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (settings["lr"].number_value, settings["model"].string_value) == (1e-3, "WMLP")
    (picture,) = events.Images("confusion")
    assert Image.open(io.BytesIO(picture.encoded_image_string)).size == (320, 320)


def test_picture_of_a_confusion_matrix():
    """Errors are the redder the more of a digit's images they are; other cells are white."""
    picture = trackers.draw_confusion(np.array([[9, 1, 0], [0, 7, 3], [0, 0, 5]]), [4, 5, 6])
    corner = picture[41::40, 41::40].astype(int)  # of each cell
    assert corner[1, 2].tolist() == [255, 75, 75]
    assert corner[0, 1].tolist() == [255, 195, 195]
    assert (np.delete(corner.reshape(9, 3), [1, 5], 0) == 255).all()
    assert picture.shape == (160, 160, 3)


def test_names_fit_into_a_picture_of_a_confusion_matrix():
    """The ink of a name is the same, within its cell, whether or not others stand beside it."""
    long = "W" * 18
    both = trackers.draw_confusion(np.eye(2, dtype=int), [long, long])
    one = trackers.draw_confusion(np.eye(2, dtype=int), [long, ""])
    wide = both.shape[1] // 3
    assert (both[:40, wide : 2 * wide] == one[:40, wide : 2 * wide]).all()
    assert (both[:40, wide : 2 * wide] != 255).any() and (one[:40, 2 * wide :] == 255).all()


def test_tensorboard_on_a_full_disk(train, tmp_path, monkeypatch):
    """What the writer's thread meets is no traceback, and what ``flush`` raises is one note."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "flush", full)
    error = train("--num_epochs", "3")
    assert error == f"note        TensorBoard: [Errno 28] No space left on device {NOTE}"
    monkeypatch.undo()
    assert [epoch for epoch, _ in columns(tmp_path / "out")["seconds"]] == [1, 2, 3]


def test_file_where_the_events_go(train, tmp_path):
    train("--num_epochs", "1")
    shutil.rmtree(tmp_path / "out" / "e_tensorboard")
    (tmp_path / "out" / "e_tensorboard").write_text("mine")
    error = train("--num_epochs", "2", "--resume")
    assert re.fullmatch(rf"note        TensorBoard: .*e_tensorboard' {re.escape(NOTE)}", error)
    assert (tmp_path / "out" / "e_tensorboard").read_text() == "mine"


def test_history_that_cannot_be_written_is_an_error(train, tmp_path):
    train("--num_epochs", "1")
    history = tmp_path / "out" / "e_history.csv"
    history.unlink()
    history.mkdir()
    error = train("--num_epochs", "2", "--resume", status=1)
    assert re.fullmatch(r"error: .*e_history.csv.*\n", error)


def test_mlflow_that_is_not_installed(train, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    error = train("--num_epochs", "2")
    reason = "it is not installed; start with uv run --extra mlflow …"
    assert error == f"note        MLflow: {reason} {NOTE}"


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """The address of a SQLite store, for a real MLflow."""
    if find_spec("mlflow") is None:
        pytest.skip("needs MLflow (uv run --extra mlflow pytest -m mlflow)")
    monkeypatch.chdir(tmp_path)  # artifacts go there
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # on a busy machine
    return os.environ["MLFLOW_TRACKING_URI"]


@contextmanager
def serving(store):
    """Start MLflow's own server for the store; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", port, "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # half its time
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(
        command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        for _ in range(300):
            with suppress(OSError):
                get(f"http://127.0.0.1:{port}/health")
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def get(url, **content):
    """Return what a server answers, to a request with content or without."""
    data = json.dumps(content).encode() if content else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.mlflow
def test_run_in_mlflow(mlflow, train, tmp_path, monkeypatch):
    """A run that is stopped, then resumed and extended is one run; MLflow's server shows it."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_JOB_ID", "4711")
        patch.setattr("utils.engine.checkpointer.stop_request", StopAfter(40))  # in epoch 3
        error = train("--num_epochs", "4", "--batch_size", "8", status=143)
    assert error.startswith("stopped by SIGTERM in epoch 3") and error.count("\n") == 1
    with serving(mlflow) as address:
        api = f"{address}/api/2.0/mlflow"
        name = json.loads(get(f"{api}/experiments/get-by-name?experiment_name=DJSW"))
        wanted = {"experiment_ids": [name["experiment"]["experiment_id"]]}
        (stopped,) = json.loads(get(f"{api}/runs/search", **wanted))["runs"]
        assert (stopped["info"]["status"], stopped["info"]["run_name"]) == ("KILLED", "e")
        tags = {tag["key"]: tag["value"] for tag in stopped["data"]["tags"]}
        record = json.loads((out / "e_run.json").read_text())
        assert tags["slurm_job_id"] == "4711" and tags["mlflow.user"] == "waly"
        assert tags["images_sha256"] == record["dataset"]["images_sha256"]
        assert tags["mlflow.source.git.commit"] == record["sessions"][0]["git"]["commit"]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert train("--num_epochs", "4", "--batch_size", "8", "--resume") == ""
        (run,) = json.loads(get(f"{api}/runs/search", **wanted))["runs"]
        which = f"run_id={run['info']['run_id']}"
        assert run["info"]["run_id"] == stopped["info"]["run_id"]
        assert run["info"]["status"] == "FINISHED"
        given = {each["key"]: each["value"] for each in run["data"]["params"]}
        expected = {"lr": "0.001", "batch_size": "8", "model": "WMLP", "recipe": "standard"}
        assert given.items() >= expected.items()
        for column, values in columns(out).items():
            url = f"{api}/metrics/get-history?{which}&metric_key={column}"
            found = [(m["step"], m["value"]) for m in json.loads(get(url))["metrics"]]
            assert sorted(found) == [(epoch, pytest.approx(v)) for epoch, v in values], column
        files = json.loads(get(f"{api}/artifacts/list?{which}"))["files"]
        assert {file["path"]: file["file_size"] for file in files} == {
            f"e_{ending}": (out / f"e_{ending}").stat().st_size
            for ending in ("checkpoint_best.pt", "curves.png", "history.csv", "run.json")
        }
        assert "<title>MLflow</title>" in get(address)


@pytest.mark.mlflow
def test_mlflow_that_is_gone_or_does_not_answer(mlflow, train, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        started = time.monotonic()
        error = train("--num_epochs", "2")  # refused: it does not listen
        assert time.monotonic() - started < 10
        assert error.startswith("note        MLflow: ") and error.endswith(NOTE)
        assert error.count("\n") == 1
        silent.listen()
        error = train("--num_epochs", "4", "--resume")
        assert re.fullmatch(rf"note        MLflow: .*timed? ?out.*{re.escape(NOTE)}", error)
