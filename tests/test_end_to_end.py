"""The README's first command, on the real MNIST, in a checkout with only the raw files."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, clean_environment, copy_checkout

from utils.distributed.device import device_name


@pytest.mark.real
def test_readme_on_real_mnist(checkout, raw_data, run_script, tmp_path):
    shutil.copytree(raw_data, checkout / "data" / "raw")
    script = checkout / "DJSW" / "main.py"
    flags = ("--username", "sigurd", "--exp_name", "first", "--output_dir", "weights/SMLP")
    trained = run_script(script, *flags, "--train", cwd=checkout)
    assert trained.returncode == 0, trained.stderr
    assert "31722 for training, 3524 for validation" in trained.stdout
    epochs = [line for line in trained.stdout.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 10
    best = checkout / "weights" / "SMLP" / "first_checkpoint_best.pt"
    assert trained.stdout.splitlines()[-1].endswith(str(best))

    flags = ("--username", "sigurd", "--exp_name", "first", "--output_dir", "reports")
    evaluated = run_script(script, *flags, "--load_checkpoint", best, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads((checkout / "reports" / "first_metrics.json").read_text())
    assert metrics["images"] == 5843
    assert [row["support"] for row in metrics["per_class"]] == [982, 892, 958, 1028, 974, 1009]
    assert metrics["metrics"]["accuracy"] >= 0.965
    assert metrics["dataset"]["file"] == "data/processed/mnist_test_4_9.h5"

    # The same seed with one and with two ranks: after an epoch, training has magnified the
    # differences of rounding (a product of 32 rows rounds otherwise than one of 64).
    flags = (*flags[:2], "--train", "--num_epochs=2", "--device=cpu", "--output_dir=weights/SMLP")
    ran = run_script(script, *flags, "--exp_name=one", cwd=checkout)
    assert ran.returncode == 0, ran.stderr
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2")
    ran = subprocess.run(
        [sys.executable, *torchrun, script, *flags, "--exp_name=two"],
        cwd=checkout,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    losses, correct = {}, []
    for name in ("first", "one", "two"):
        with (best.parent / f"{name}_history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))[:2]
        losses[name] = [float(row[kind]) for row in rows for kind in row if kind.endswith("loss")]
    assert losses["one"] == losses["first"]
    assert losses["two"][:2] == pytest.approx(losses["first"][:2], rel=1e-5)
    assert losses["two"][2:] == pytest.approx(losses["first"][2:], rel=1e-2)
    for name in ("one", "two"):
        weights = best.with_name(f"{name}_checkpoint_best.pt")
        evaluation = ("--username=sigurd", f"--exp_name={name}", "--output_dir=reports")
        run_script(script, *evaluation, "--load_checkpoint", weights, cwd=checkout)
        measured = json.loads((checkout / f"reports/{name}_metrics.json").read_text())
        correct.append(measured["correct"])
    assert abs(correct[0] - correct[1]) <= 2


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(
    "record",
    ["weights/SMLP/smlp_standard_4_run.json", "reports/standard/dmlp_standard_1_metrics.json"],
)
def test_published_results_are_reproduced(raw_data, run_script, tmp_path, record):
    """A run and an evaluation, to the last bit, on the kind of processor that made them."""
    found = json.loads((ROOT / record).read_text())
    session = (found.get("sessions") or [found["session"]])[-1]
    if session["device"]["name"] != device_name(torch.device("cpu")):
        pytest.skip(f"it was made on {session['device']['name']}")
    project = copy_checkout(tmp_path / "project")
    shutil.copytree(raw_data, project / "data" / "raw", dirs_exist_ok=True)
    ran = run_script(project / "DJSW" / "reproduce.py", record, cwd=project)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("identical ")
