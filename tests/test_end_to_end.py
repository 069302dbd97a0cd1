"""The README's first command, on the real MNIST, in a checkout that has no data."""

import csv
import json
import subprocess
import sys

import pytest
from conftest import clean_environment

from utils.checkpoint import load_checkpoint, weights_sha256


@pytest.mark.real
def test_readme_on_real_mnist(checkout, run_script, tmp_path):
    script = checkout / "DJSW" / "main.py"
    flags = ("--username", "sigurd", "--exp_name", "first", "--output_dir", "weights/SMLP")
    trained = run_script(script, *flags, "--train", cwd=checkout)
    assert trained.returncode == 0, trained.stderr
    assert "31722 to train on, 3524 to validate with" in trained.stdout
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

    # a second run of the same seed, now that the data are there
    flags = ("--username", "sigurd", "--exp_name", "again", "--output_dir", "weights/SMLP")
    again = run_script(script, *flags, "--train", cwd=checkout)
    assert again.returncode == 0, again.stderr
    first, second = (
        load_checkpoint(best.with_name(f"{name}_checkpoint_epoch_10.pt"))
        for name in ("first", "again")
    )
    assert weights_sha256(first.weights) == weights_sha256(second.weights)
    histories = [
        [line.rpartition(",")[0] for line in path.read_text().splitlines()]
        for path in sorted(best.parent.glob("*_history.csv"))
    ]
    assert histories[0] == histories[1]

    # two ranks, for as long as rounding is not yet magnified by the training itself
    command = ("DJSW/main.py", *flags[:2], "--train", "--num_epochs=2", "--device=cpu")
    command += ("--output_dir=weights/SMLP",)
    for name, start in (
        ("one", ()),
        ("two", ("-m", "torch.distributed.run", "--nproc_per_node=2")),
    ):
        ran = subprocess.run(
            [sys.executable, *start, *command, f"--exp_name={name}"],
            cwd=checkout,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
    losses, correct = [], []
    for name in ("one", "two"):
        with (best.parent / f"{name}_history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        losses.append([float(row[kind]) for row in rows for kind in row if kind.endswith("loss")])
        weights = best.with_name(f"{name}_checkpoint_best.pt")
        flags = ("--username=sigurd", f"--exp_name={name}", "--output_dir=reports")
        run_script(script, *flags, "--load_checkpoint", weights, cwd=checkout)
        correct.append(
            json.loads((checkout / f"reports/{name}_metrics.json").read_text())["correct"]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert abs(correct[0] - correct[1]) <= 2
