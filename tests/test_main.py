"""The command line: the files of a run, where it can be started, and usage errors."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import processes
import pytest
import torch
from conftest import ROOT, Call, clean_environment, exit_status, write_datasets

from DJSW.main import main
from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE
from models.smlp import SMLP
from utils.engine.checkpointer import Checkpointer
from utils.records.checkpoint import load_checkpoint, weights_sha256, write_checkpoint
from utils.report.tables import title


@pytest.fixture
def call(tmp_path, processed, capsys, monkeypatch):
    """Call the command in this process; files go to ``out``."""
    (tmp_path / "out").mkdir()

    def call(*arguments: object, username="sigurd", exp_name="e", output_dir=tmp_path / "out"):
        argv = ["--username", username, "--exp_name", exp_name, "--output_dir", output_dir]
        argv = [str(word) for word in (*argv, *arguments)]
        monkeypatch.setattr(sys, "argv", ["DJSW/main.py", *argv])
        return exit_status(main, *argv), *capsys.readouterr()

    return Call(call, tmp_path / "out")


def refused(result, *parts, status=2):
    """Check the exit status, and that the error is one sentence with these parts."""
    found, _, error = result
    assert found == status, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert str(part) in error


@pytest.mark.parametrize("username", PEOPLE)
def test_train_then_evaluate_under_one_name(call, username):
    status, out, error = call("--train", "--num_epochs", 3, username=username)
    assert (status, error) == (0, "")
    checkpoint = call.out / "e_checkpoint_best.pt"
    assert out.splitlines()[-1].split() == ["checkpoint", str(checkpoint)]
    assert sum(line.startswith("epoch") for line in out.splitlines()) == 3
    status, out, error = call("--load_checkpoint", checkpoint, username=username)
    assert (status, error) == (0, "")
    metrics = json.loads((call.out / "e_metrics.json").read_text())
    digits = DATASETS[PEOPLE[username].dataset].labels
    assert [row["digit"] for row in metrics["per_class"]] == list(digits)
    assert metrics["images"] == 43
    numbers = metrics["metrics"] | metrics["probabilities"] | metrics["label_distance"]
    assert len(numbers) == 8 + 3 + 4 and numbers.keys() == metrics["intervals"].keys()
    for name, value in numbers.items():
        low, high = metrics["intervals"][name]
        assert f"{title(name):<28}{value:8.4f}   {low:.4f} to {high:.4f}\n" in out
    assert sorted(path.name for path in call.out.iterdir()) == [
        "e_checkpoint_best.pt",
        "e_checkpoint_epoch_3.pt",
        "e_confusion.png",
        "e_curves.png",
        *(["e_errors.png"] if metrics["correct"] < 43 else []),
        "e_history.csv",
        "e_metrics.json",
        "e_predictions.csv.gz",
        "e_probabilities.csv",
        "e_reliability.png",
        "e_report.md",
        "e_resume.pt",
        "e_run.json",
        "e_tensorboard",
    ]
    refused(call("--train", username=username), "'e' was trained before", "--exp_name")
    refused(
        call("--load_checkpoint", checkpoint, username=username),
        "'e' was evaluated before",
        call.out / "e_metrics.json",
    )


def test_evaluation_equals_a_numpy_computation(call, processed):
    """Compute the numbers of metrics.json from the weights and the data."""
    call("--train", "--num_epochs", 1)
    call("--load_checkpoint", call.out / "e_checkpoint_best.pt")
    found = json.loads((call.out / "e_metrics.json").read_text())
    weights = load_checkpoint(call.out / "e_checkpoint_best.pt").weights
    with h5py.File(processed / "mnist_test_4_9.h5") as file:
        x, digits = file["images"][:].reshape(43, -1) / 255, file["labels"][:].astype(int)
    for layer in range(1, 6):
        w, b = (weights[f"layer{layer}.{kind}"].double().numpy() for kind in ("weight", "bias"))
        x = x @ w.T + b
        x = np.maximum(x, 0) if layer < 5 else x
    predicted = x.argmax(1) + 4
    assert found["correct"] == (predicted == digits).sum()
    assert found["metrics"]["accuracy"] == (predicted == digits).mean()
    assert found["label_distance"]["mae"] == pytest.approx(np.abs(predicted - digits).mean())
    log_sum = np.log(np.exp(x).sum(1))
    expected = (log_sum - x[range(43), digits - 4]).mean()
    assert found["probabilities"]["cross_entropy"] == pytest.approx(expected, rel=1e-5)


def test_anyone_on_any_dataset(call):
    status, out, _ = call("--train", "--num_epochs", 1, "--dataset", "usps_0_6")
    assert status == 0
    assert "SMLP 256-77-77-77-77-7 on usps_0_6" in out
    # the checkpoint names its dataset
    status, out, _ = call("--load_checkpoint", call.out / "e_checkpoint_best.pt")
    assert status == 0
    assert "test set of usps_0_6" in out
    refused(
        call(
            "--load_checkpoint",
            call.out / "e_checkpoint_best.pt",
            "--dataset",
            "mnist_4_9",
            exp_name="f",
        ),
        "it fits the dataset usps_0_6",
    )


@pytest.mark.parametrize("username", PEOPLE)
def test_bare_state_dicts_evaluate_the_same(call, username, tmp_path):
    model, _ = build_model(username, PEOPLE[username].dataset)
    weights = model.state_dict()
    torch.save(weights, tmp_path / "bare.pt")
    torch.save({f"module.{name}": t for name, t in weights.items()}, tmp_path / "prefixed.pt")
    results = []
    for name in ("bare", "prefixed"):
        result = call(
            "--load_checkpoint", tmp_path / f"{name}.pt", username=username, exp_name=name
        )
        assert result[0] == 0, result
        metrics = json.loads((call.out / f"{name}_metrics.json").read_text())
        results.append({key: metrics[key] for key in ("probabilities", "intervals", "per_class")})
    assert results[0] == results[1]


def test_earlier_network_of_three_hidden_layers_is_named(call, tmp_path):
    torch.save(SMLP(hidden_layers=3).state_dict(), tmp_path / "earlier.pt")
    status, out, _ = call("--load_checkpoint", tmp_path / "earlier.pt")
    assert status == 0
    assert "sigurd evaluates SMLP 784-77-77-77-6 on" in out
    assert "note        hidden_layers is 3, by default 4" in out
    metrics = json.loads((call.out / "e_metrics.json").read_text())
    assert metrics["model"]["arguments"]["hidden_layers"] == 3


def test_starting_weights(call, tmp_path):
    call("--train", "--num_epochs", 1)
    first = call.out / "e_checkpoint_best.pt"
    status, out, _ = call(
        "--train", "--num_epochs", 1, "--lr", 1e-30, "--load_checkpoint", first, exp_name="f"
    )
    assert status == 0
    assert str(first) in out
    after = load_checkpoint(call.out / "f_checkpoint_best.pt")
    assert weights_sha256(after.weights) == weights_sha256(load_checkpoint(first).weights)
    start = after.metadata["starting_weights"]
    assert start is not None and start["file"].endswith("e_checkpoint_best.pt")
    assert start.keys() == {"file", "sha256"} and "kept" not in out


def test_a_start_from_other_digits(call):
    call("--train", "--num_epochs", 1)
    first = call.out / "e_checkpoint_best.pt"
    flags = ["--train", "--dataset", "mnist_0_3", "--seed", 5, "--load_checkpoint", first]
    kept = "kept        layer1, layer2, layer3, layer4 (initialized: layer5)\n"
    status, out, error = call(*flags, "--check", exp_name="f")
    assert (status, error) == (0, "") and f"start from  {first}\n{kept}" in out
    status, out, error = call(*flags, "--num_epochs", 1, "--lr", 1e-30, exp_name="f")
    assert (status, error) == (0, "") and f"start from  {first}\n{kept}" in out
    after = load_checkpoint(call.out / "f_checkpoint_best.pt")
    torch.manual_seed(5)
    new = SMLP(output_size=4).state_dict()
    for name, tensor in load_checkpoint(first).weights.items():
        expected = new[name] if name.startswith("layer5") else tensor
        assert torch.equal(after.weights[name], expected)

    refused(call("--load_checkpoint", first, "--dataset", "mnist_0_3"), "distinguishes")
    teach = ["--teachers", first, "--teacher_weight", 0.5]
    refused(call("--train", "--dataset", "mnist_0_3", *teach, exp_name="t"), "distinguishes")
    refused(call(*flags, username="waly", exp_name="t"), "holds SMLP, waly runs WMLP")

    assert call("--load_checkpoint", call.out / "f_checkpoint_best.pt", exp_name="f")[0] == 0
    run, metrics = (
        json.loads((call.out / f"f_{end}.json").read_text()) for end in ("run", "metrics")
    )
    start = run["starting_weights"]
    assert start == after.metadata["starting_weights"] == metrics["training"]["starting_weights"]
    assert start["kept"] == ["layer1", "layer2", "layer3", "layer4"]
    assert start["sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()


def test_a_start_from_other_digits_is_resumed(call):
    call("--train", "--num_epochs", 1)
    flags = [
        "--train",
        "--dataset",
        "usps_0_6",
        f"--load_checkpoint={call.out}/e_checkpoint_best.pt",
    ]
    assert call(*flags, "--num_epochs", 2, exp_name="whole")[0] == 0
    assert call(*flags, "--num_epochs", 1, exp_name="parts")[0] == 0
    status, out, error = call(*flags, "--num_epochs", 2, "--resume", exp_name="parts")
    assert (status, error) == (0, "") and "resumed     after 1 epochs" in out
    assert "kept        layer2, layer3, layer4 (initialized: layer1, layer5)\n" in out
    whole, parts = (
        weights_sha256(load_checkpoint(call.out / f"{name}_checkpoint_epoch_2.pt").weights)
        for name in ("whole", "parts")
    )
    assert whole == parts


ABSOLUTE = re.compile(r"(?<![\w.])/\w+")


def test_records_hold_no_absolute_path(call):
    call("--train", "--num_epochs", 1)
    call("--load_checkpoint", call.out / "e_checkpoint_best.pt")
    for name in ("e_run.json", "e_metrics.json"):
        record = json.loads((call.out / name).read_text())
        for session in record.get("sessions", [record.get("session")]):
            del session["diff"]  # a change of the code may contain a path
        assert not ABSOLUTE.findall(json.dumps(record))
    metadata = str(load_checkpoint(call.out / "e_checkpoint_best.pt").metadata)
    assert not ABSOLUTE.findall(metadata)
    assert ABSOLUTE.findall(f"'{call.out}'")


def test_validation_images_are_the_same_for_every_seed(call, monkeypatch):
    seen = []
    from DJSW import train

    original = train.train_pipeline

    def spy(model, training, validation, *rest, **more):
        seen.append(validation[:][0])
        return original(model, training, validation, *rest, **more)

    monkeypatch.setattr(train, "train_pipeline", spy)
    for seed in (1, 2):
        call("--train", "--num_epochs", 1, "--seed", seed, exp_name=f"s{seed}")
    assert torch.equal(*seen)


USAGE_ERRORS: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "unknown user": ({"username": "bob"}, ["--train"], ["'bob'", *PEOPLE]),
    "unknown dataset": ({}, ["--train", "--dataset", "mnist"], ["'mnist'", *DATASETS]),
    "unknown flag": ({}, ["--train", "--epochs", 3], ["--epochs"]),
    "abbreviated flag": ({}, ["--train", "--num", 3], ["--num"]),
    "nothing to do": ({}, [], ["--load_checkpoint", "--train"]),
    "no epochs": ({}, ["--train", "--num_epochs", 0], ["'0'"]),
    "negative epochs": ({}, ["--train", "--num_epochs=-1"], ["'-1'"]),
    "text for epochs": ({}, ["--train", "--num_epochs", "ten"], ["'ten'"]),
    "half an epoch": ({}, ["--train", "--num_epochs", 1.5], ["'1.5'"]),
    "no batch": ({}, ["--train", "--batch_size", 0], ["'0'"]),
    "lr nan": ({}, ["--train", "--lr", "nan"], ["'nan'"]),
    "lr inf": ({}, ["--train", "--lr", "inf"], ["'inf'"]),
    "lr zero": ({}, ["--train", "--lr", 0], ["'0'"]),
    "lr text": ({}, ["--train", "--lr", "fast"], ["'fast'"]),
    "seed negative": ({}, ["--train", "--seed=-1"], ["'-1'"]),
    "seed too large": ({}, ["--train", "--seed", 2**63], [str(2**63)]),
    "exp_name slash": ({"exp_name": "a/b"}, ["--train"], ["'a/b'"]),
    "exp_name dots": ({"exp_name": ".."}, ["--train"], ["'..'"]),
    "exp_name empty": ({"exp_name": ""}, ["--train"], ["''"]),
    "exp_name newline": ({"exp_name": "a\n"}, ["--train"], ["'a\\n'"]),
    "resume without train": ({}, ["--resume", "--load_checkpoint", "x"], ["--train"]),
    "no such checkpoint": ({}, ["--load_checkpoint", "x.pt"], ["x.pt", Path.cwd() / "x.pt"]),
    "checkpoint is a folder": ({}, ["--load_checkpoint", "utils"], ["not a file"]),
    "folder missing": ({"output_dir": "nowhere"}, ["--train"], [Path.cwd() / "nowhere"]),
    "folder is a file": ({"output_dir": "README.md"}, ["--train"], ["not a folder"]),
}


@pytest.mark.parametrize("case", USAGE_ERRORS)
def test_usage_errors_are_one_sentence_and_leave_no_files(call, case):
    more, arguments, parts = USAGE_ERRORS[case]
    refused(call(*arguments, **more), *parts)
    assert list(call.out.iterdir()) == []


def test_both_places_are_named(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repository = Path(__file__).resolve().parents[1]
    refused(call("--train", output_dir="nowhere"), tmp_path / "nowhere", repository / "nowhere")
    refused(call("--load_checkpoint", "x.pt"), tmp_path / "x.pt", repository / "x.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_files_that_are_no_checkpoints(call, tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    for arguments in (["--load_checkpoint"], ["--train", "--load_checkpoint"]):
        refused(call(*arguments, tmp_path / "bad.pt"), tmp_path / "bad.pt")
    assert list(call.out.iterdir()) == []


def test_checkpoint_of_another_network(call, tmp_path):
    torch.save(SMLP().state_dict(), tmp_path / "smlp.pt")
    refused(call("--load_checkpoint", tmp_path / "smlp.pt", username="waly"), "does not fit WMLP")


@pytest.mark.parametrize("damage", ["not hdf5", "no labels", "strange label", "empty", "altered"])
def test_damaged_data_fail_with_a_sentence(call, processed, damage):
    path = processed / "mnist_4_9.h5"
    if damage == "not hdf5":
        path.write_text("hello")
    else:
        with h5py.File(path, "r+") as file:
            if damage == "no labels":
                del file["labels"]
            elif damage == "strange label":
                file["labels"][0] = 3
            elif damage == "altered":
                file.attrs["images_sha256"] = "0" * 64
            else:
                del file["labels"], file["images"]
                file["images"] = np.zeros((0, 28, 28), np.uint8)
                file["labels"] = np.zeros(0, np.uint8)
    refused(call("--train"), path, "delete it", status=1)
    assert list(call.out.iterdir()) == []


def test_data_that_cannot_be_created(call, processed, monkeypatch, tmp_path):
    from datasetprep import create_usps_dataset

    monkeypatch.setattr(create_usps_dataset, "RAW_FOLDER", tmp_path / "raw")
    monkeypatch.delenv("DJSW_RAW_USPS", raising=False)

    def unreachable(*_: object) -> None:
        raise OSError("no route to host")

    for source in ("_download", "_download_package"):
        monkeypatch.setattr(create_usps_dataset, source, unreachable)
    (processed / "usps_0_6.h5").unlink()
    result = call("--train", username="waly")
    refused(result, tmp_path / "raw", "put zip.train.gz", "DJSW_RAW_USPS", status=1)
    assert "LIBSVM, by torchvision: no route to host" in result[1]
    assert list(call.out.iterdir()) == []


def test_disk_full(call, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(call("--train"), "No space left on device", call.out / "e_resume.pt", status=1)
    assert list(call.out.iterdir()) == []


def test_loss_that_is_not_finite_frees_the_name(call):
    refused(call("--train", "--lr", 1e38), "in epoch 1, step", "smaller --lr", status=1)
    assert list(call.out.iterdir()) == []


def test_interrupt(call, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("DJSW.train.open_split", interrupted)
    assert call("--train") == (130, "", "interrupted\n")


def test_empty_paths_are_no_paths(call):
    refused(call("--train", "--load_checkpoint", ""), "--load_checkpoint is empty")
    refused(call("--train", output_dir=""), "--output_dir is empty")


def test_checkpoint_of_an_unknown_dataset(call):
    call("--train", "--num_epochs", 1)
    path = call.out / "e_checkpoint_best.pt"
    checkpoint = load_checkpoint(path)
    metadata = {**checkpoint.metadata, "dataset": {"name": "letters"}}
    write_checkpoint(path, checkpoint.weights, metadata)
    refused(call("--load_checkpoint", path), "trained on 'letters'", "give --dataset", *DATASETS)


def test_record_of_commit_and_job(checkout, run_script):
    """The record has the commit, the diff, Slurm's variables and the number of threads."""
    write_datasets(checkout / "data" / "processed")
    git = ["git", "-C", str(checkout), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    # OMP_NUM_THREADS is kept when the user sets it
    environment = {**os.environ, "SLURM_JOB_ID": "77", "OMP_NUM_THREADS": "2"}
    flags = ["--username", "waly", "--output_dir", "reports", "--train", "--num_epochs", 1]
    sessions = []
    for name in ("clean", "changed", "new"):
        script = checkout / "DJSW" / "main.py"
        result = run_script(
            script, *flags, "--exp_name", name, cwd=checkout, env=environment, fresh=True
        )
        assert result.returncode == 0, result.stderr
        record = json.loads((checkout / "reports" / f"{name}_run.json").read_text())
        sessions += record["sessions"]
        if name == "clean":
            with (checkout / "DJSW" / "train.py").open("a") as file:
                file.write("\n")
        (checkout / "models" / "mine.py").write_text("MINE = 1\n" if name == "changed" else "")
    assert [session["git"] for session in sessions] == [
        {"commit": commit.strip(), "changed": False},
        {"commit": commit.strip(), "changed": True},
        {"commit": commit.strip(), "changed": True},
    ]
    assert [session["diff"].count("\n+\n") for session in sessions] == [0, 1, 1]
    assert "new file models/mine.py\n" in sessions[2]["diff"]
    assert sessions[0]["slurm"] == {"SLURM_JOB_ID": "77"}
    assert sessions[0]["device"]["threads"] == 2
    assert sessions[0]["command"].endswith("--num_epochs 1 --exp_name clean")
    assert sessions[0]["working_directory"] == "."


def test_missing_device(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(call("--train", "--device", "cuda"), "--device cpu")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    refused(call("--train"), "given the GPUs 0", "--device cpu", status=1)
    assert call("--train", "--num_epochs", 1, "--device", "cpu")[0] == 0


def test_works_from_everywhere_in_every_form(checkout, run_script, tmp_path):
    """Start it in /, the root and DJSW/, by absolute path, imported, beside a stray utils.py."""
    write_datasets(checkout / "data" / "processed")
    stray = tmp_path / "stray"
    stray.mkdir()
    for name in ("utils.py", "models.py", "evaluate.py", "train.py"):
        (stray / name).write_text("raise SystemExit('the wrong module')")
    (checkout / "DJSW" / "h5py.py").write_text("raise SystemExit('DJSW/ is on the path')")
    script = checkout / "DJSW" / "main.py"
    imported = tmp_path / "imported.py"
    imported.write_text(
        f"import sys\nsys.path.append({str(checkout)!r})\n"
        "from DJSW.main import main\nsys.exit(main())\n"
    )
    starts = [
        (script, "/"),
        ("DJSW/main.py", checkout),
        ("main.py", checkout / "DJSW"),
        (script, stray),
        (imported, stray),
    ]

    def train(number: int) -> subprocess.CompletedProcess[str]:
        start, folder = starts[number]
        flags = ("--username", "sigurd", "--exp_name", f"e{number}", "--num_epochs", 1, "--train")
        return run_script(start, *flags, "--output_dir", "weights/SMLP", cwd=folder, fresh=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(train, range(len(starts))))
    weights = set()
    for number, result in enumerate(results):
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        path = checkout / "weights" / "SMLP" / f"e{number}_checkpoint_best.pt"
        assert result.stdout.splitlines()[-1].endswith(str(path))
        weights.add(weights_sha256(load_checkpoint(path).weights))
        record = json.loads((path.parent / f"e{number}_run.json").read_text())
        assert record["sessions"][0]["device"]["threads"] == 1
        assert str(checkout) not in json.dumps(record)
    assert len(weights) == 1


@pytest.mark.parametrize("script", ["DJSW/results.py", "DJSW/main.py"])
def test_pipe_that_is_closed_early(checkout, script):
    """No error is printed, as before ``head -1``."""
    write_datasets(checkout / "data" / "processed")
    flags = ["--username=waly", "--exp_name=e", "--output_dir=reports", "--train"]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, script, *(flags if "main" in script else ["--list"])],
        cwd=checkout,
        env=clean_environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_two_started_at_once_cannot_both_win(checkout):
    write_datasets(checkout / "data" / "processed")
    command = [checkout / "DJSW" / "main.py", "--username", "waly"]
    command += ["--exp_name", "race", "--output_dir", checkout / "reports", "--train"]
    command += ["--num_epochs", "10"]
    racers = [processes.start(command, env=clean_environment()) for _ in range(3)]
    errors = [racer.communicate()[1] for racer in racers]
    assert sorted(racer.wait() for racer in racers) == [0, 2, 2], errors
    expected = [e for e in errors if "was trained before" in e or "is being trained" in e]
    assert len(expected) == 2
    assert (checkout / "reports" / "race_history.csv").read_text().count("\n") == 11


def test_help_is_derived_from_the_tables_and_needs_no_torch(capsys):
    code = "import sys; sys.argv[1:] = ['--help']\nfrom DJSW.main import main\nmain()"
    code = f"try:\n    {code.replace(chr(10), chr(10) + '    ')}\nfinally:\n"
    code += "    print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False False"
    for word in (*PEOPLE, *DATASETS, "--resume"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("flag", "meant"), [("--num-epochs", "--num_epochs"), ("--expname=x", "--exp_name")]
)
def test_a_misspelled_flag_gets_the_one_that_was_meant(call, flag, meant):
    refused(call("--train", flag), f"for {flag.partition('=')[0]}, did you mean {meant}?")
    assert exit_status(main, "--username=waly", flag) == 2  # others are missing too


def test_a_flag_like_no_other(call):
    status, _, error = call("--train", "--xyzzy")
    assert status == 2 and "did you mean" not in error


def test_version(capsys):
    assert exit_status(main, "--version") == 0
    first, packages = capsys.readouterr().out.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.fullmatch(
        rf"DJSW {project['version']}, commit ([0-9a-f]{{7}}|unknown)( with.*)?", first
    )
    assert f"torch {torch.__version__.partition('+')[0]}" in packages


def test_a_signal_after_the_last_step_is_told(call, monkeypatch):
    finish = Checkpointer.finish

    def finish_late(checkpointer: Checkpointer) -> None:
        signal.raise_signal(signal.SIGINT)
        finish(checkpointer)

    monkeypatch.setattr(Checkpointer, "finish", finish_late)
    status, out, error = call("--train", "--num_epochs", 1)
    assert (status, error) == (0, "")
    assert "note        SIGINT came after the last step: nothing is lost" in out
    assert json.loads((call.out / "e_run.json").read_text())["status"] == "finished"
