"""The README's first command, on the real MNIST, in a checkout that has no data."""

import json

import pytest

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
