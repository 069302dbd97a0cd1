"""How long an evaluation takes and what of it: ``uv run tests/benchmarks/evaluation.py``.

The published SMLP on the test set of MNIST 4-9; the whole commands beside ``import torch``, in
turns. Nothing fails for being slow.
"""

import os
import platform
import sys
from pathlib import Path

from options import options

ARGS = options(__doc__, rounds=7)
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from DJSW.evaluate import measure
from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, open_split
from utils.distributed.device import device_name
from utils.engine.batches import load_rows, predict
from utils.handwriting import prepare_image
from utils.records.checkpoint import load_checkpoint
from utils.records.provenance import provenance, write_json
from utils.report.tables import markdown
from utils.statistics import intervals
from utils.statistics.probabilities import confidence_gaps

ROUNDS = ARGS.rounds
CPU = torch.device("cpu")
(WEIGHTS,) = (ROOT / "weights" / "SMLP").glob("smlp_standard_?_checkpoint_best.pt")
ENTRY = DATASETS["mnist_4_9"]


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def steps() -> dict[str, Callable[[], object]]:
    """What an evaluation consists of."""
    model, _ = build_model("sigurd", "mnist_4_9", load_checkpoint(WEIGHTS))
    test = load_rows(open_split("mnist_4_9", train=False), CPU)
    logits, labels = predict(model, test)
    log_probabilities, classes = logits.double().log_softmax(1).numpy(), labels.numpy()
    data = open_split("mnist_4_9", train=False)
    clusters = intervals.Clusters.of(data.writers, len(data))
    bins, gaps = confidence_gaps(log_probabilities, classes)
    right = (log_probabilities.argmax(1) == classes)[None]

    def bootstrap() -> None:
        drawn = intervals.metrics_from_confusion(
            clusters.resample_confusion(classes, log_probabilities.argmax(1), 6), ENTRY.labels
        )
        for values in drawn.values():
            intervals.percentile_interval(np.moveaxis(values, 0, -1))

    page = np.ones((1000, 1000), np.float32)
    page[300:580, 500:780] -= np.kron(test[3:4][0][0, 0].numpy(), np.ones((10, 10), np.float32))
    return {
        f"predictions of {len(classes)} images": lambda: predict(model, test),
        "10,000 resamples, all metrics of the confusion": bootstrap,
        "10,000 resamples of writers": lambda: intervals.draws.__wrapped__(clusters.count),
        "10,000 resamples of the calibration error": lambda: intervals.calibration_error_interval(
            bins, gaps, clusters
        ),
        "every number of an evaluation": lambda: measure(log_probabilities, classes, ENTRY.labels),
        "paired bootstrap of a difference": lambda: intervals.difference_interval(
            right, ~right, clusters
        ),
        "preparing a photo of a megapixel": lambda: prepare_image(page, ENTRY),
    }


def commands(folder: Path) -> dict[str, list[str]]:
    """Whole processes: an evaluation, a comparison of the published ones, a prediction."""
    Image.fromarray((255 * np.eye(200)).astype(np.uint8)).save(folder / "digit.png")
    number = str(time.time_ns())
    out = ["--output_dir", str(folder), "--exp_name", number, "--load_checkpoint", str(WEIGHTS)]
    published = sorted(
        map(str, (ROOT / "reports" / "standard").glob("?mlp_standard_[1-3]_metrics.json"))
    )
    djsw = str(ROOT / "DJSW")
    return {
        "import torch": ["-c", "import torch"],
        "main.py, evaluation": [f"{djsw}/main.py", "--username", "sigurd", *out],
        f"compare.py, {len(published)} evaluations": [f"{djsw}/compare.py", *published, *out[:4]],
        "predict.py, one image": [f"{djsw}/predict.py", str(folder / "digit.png"), *out],
    }


def main() -> None:
    """Measure, print and write."""
    parts: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, step in steps().items():
            parts.setdefault(name, []).append(seconds(step))
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for name, words in commands(Path(folder)).items():
                ran = [sys.executable, *words]
                taken = seconds(lambda: subprocess.run(ran, check=True, capture_output=True))  # noqa: B023
                whole.setdefault(name, []).append(taken)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, whole["import torch"], strict=True))
        for name, times in whole.items()
    }
    about = provenance(CPU, [{"node": platform.node(), "device": device_name(CPU)}])
    rows = [(name, f"{1000 * statistics.median(times):.1f}") for name, times in parts.items()]
    process_rows = [
        (name, f"{statistics.median(times):.2f}", f"{ratios[name]:.2f}")
        for name, times in whole.items()
    ]
    text = "\n\n".join(
        [
            f"The published SMLP on the test set of MNIST 4-9, one thread; medians of {ROUNDS}.",
            markdown(("step", "milliseconds"), rows),
            markdown(("whole process", "seconds", "/ import torch"), process_rows),
            f"{about['device']['name']}, {os.cpu_count()} cores, {platform.system()}; "
            + ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        ]
    )
    print(text)
    if ARGS.output is not None:
        (ARGS.output / "evaluation.md").write_text(text + "\n", encoding="utf-8")
        write_json(
            ARGS.output / "evaluation.json", {"steps": parts, "commands": whole, "session": about}
        )


if __name__ == "__main__":
    main()
