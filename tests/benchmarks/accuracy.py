"""Seconds from the start of a training to an accuracy: ``uv run tests/benchmarks/accuracy.py``.

SMLP on MNIST 4-9 by each recipe. The test set is read after each epoch here, to measure speed (the
clock stands still meanwhile); no published weights come of it."""

import time

STARTED = time.perf_counter()  # before anything is loaded, as a command's user counts

import os
import platform
import sys
from pathlib import Path

from options import options

ARGS = options(__doc__)
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import in_memory
import torch

from DJSW.networks import build_model
from DJSW.pipelines import open_split
from DJSW.recipes import RECIPES, Settings
from DJSW.train import split_rows
from utils.distributed.device import device_name
from utils.engine.batches import load_rows
from utils.records.provenance import provenance, write_json
from utils.report.tables import markdown

GOALS = (0.9748, 0.99)
CPU = torch.device("cpu")


def curve(recipe: str, started: float) -> list[tuple[float, float]]:
    """Seconds and test accuracy after each epoch."""
    settings = Settings(**vars(RECIPES[recipe]["mnist_4_9"]), recipe=recipe, seed=42)
    torch.manual_seed(settings.seed)
    model, _ = build_model("sigurd", "mnist_4_9")
    data = open_split("mnist_4_9", train=True)
    training = load_rows(data, CPU, split_rows(len(data))[0])
    test = load_rows(open_split("mnist_4_9", train=False), CPU)
    run = in_memory.start(model, settings)
    found, paused = [], 0.0
    for _ in range(settings.num_epochs):
        in_memory.run_epoch(run, training, settings)
        stopped = time.perf_counter()
        accuracy = in_memory.accuracy_of(model, test)
        found.append((stopped - started - paused, accuracy))
        paused += time.perf_counter() - stopped
    return found


def main() -> None:
    """Measure, print and write."""
    start_up = time.perf_counter() - STARTED
    rows, curves = [], {}
    for recipe in RECIPES:
        curves[recipe] = curve(recipe, time.perf_counter() - start_up)
        reached = [
            next((f"{s:.1f}" for s, accuracy in curves[recipe] if accuracy >= goal), "-")
            for goal in GOALS
        ]
        seconds, final = curves[recipe][-1]
        rows.append((recipe, *reached, f"{seconds:.1f} ({final:.4f})"))
    about = provenance(CPU, [{"node": platform.node(), "device": device_name(CPU)}])
    header = ("recipe", *(f"seconds to {goal}" for goal in GOALS), "to the end (accuracy there)")
    text = "\n\n".join(
        [
            "SMLP on MNIST 4-9, seed 42, one thread: seconds from the start of the process to a "
            f"test accuracy, {start_up:.1f} of them for loading torch.",
            markdown(header, rows),
            f"{about['device']['name']}, {os.cpu_count()} cores, {platform.system()}; "
            + ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        ]
    )
    print(text)
    if ARGS.output is not None:
        (ARGS.output / "accuracy.md").write_text(text + "\n", encoding="utf-8")
        write_json(ARGS.output / "accuracy.json", {"curves": curves, "session": about})


if __name__ == "__main__":
    main()
