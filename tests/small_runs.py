"""Runs of tiny networks, in this process and in separate ones."""

import csv
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from DJSW import pipelines
from DJSW.main import main
from DJSW.train import train_pipeline
from utils.engine import checkpointer
from utils.engine.batches import Samples
from utils.engine.checkpointer import Checkpointer
from utils.records.checkpoint import load_checkpoint, weights_sha256
from utils.records.provenance import provenance
from utils.records.run_files import RunFiles

METADATA = {
    "exp_name": "run",
    "username": "u",
    "model": {"name": "M", "arguments": {}},
    "dataset": {"name": "d", "file": "d.h5", "images_sha256": "0", "labels_sha256": "1"},
    "classes": [0, 1],
    "starting_weights": None,
}


CPU = torch.device("cpu")


PROVENANCE = provenance(CPU, [{"node": "here", "device": "a processor"}])


def small_problem(count=23):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 2, 2), generator=generator, dtype=torch.uint8)
    classes = (images.sum((1, 2, 3)) > 510).long()
    return Samples(images, classes, torch.arange(count))


def not_finite(data):
    """Return the samples with images that are no numbers."""
    return replace(data, images=torch.full(data.images.shape, torch.nan))


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def train_small(folder, settings, model=None, name="run", resume=False, data=None):
    """Train and return the model and its checkpointer."""
    model = model or small_model()
    run = small_checkpointer(folder, settings, name)
    train_pipeline(model, data or small_problem(), small_problem(10), settings, run, resume=resume)
    return model, run


def small_checkpointer(folder, settings, name="run"):
    metadata = {**METADATA, "settings": vars(settings)}
    return Checkpointer(RunFiles(folder, name), metadata, PROVENANCE)


def rows_of(run):
    with run.files.history.open(newline="") as file:
        return [{name: float(v) for name, v in row.items()} for row in csv.DictReader(file)]


def files_of(folder):
    return {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}


class StopAfter:
    """A stop request that comes in the n-th step."""

    def __init__(self, steps):
        self.steps = steps

    @property
    def signal(self):
        self.steps -= 1
        return "SIGTERM" if self.steps <= 0 else None


FLAGS = ["--username", "waly", "--train", "--batch_size", "8", "--num_epochs"]


def command(processed: Path, folder: Path, epochs: int, save_seconds: float) -> None:
    """Train in a separate process, saving the state after so many seconds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    pipelines.PROCESSED = processed
    checkpointer.SAVE_SECONDS = save_seconds
    argv = [*FLAGS, str(epochs), "--exp_name", "e", "--output_dir", str(folder), "--resume"]
    sys.exit(main(argv))


def outcome(folder: Path) -> dict[str, object]:
    """Return everything that must not depend on how often a run was stopped."""
    checkpoints = sorted(folder.glob("*_checkpoint_*.pt"))
    history = (folder / "e_history.csv").read_text().splitlines()
    return {
        **{path.name: weights_sha256(load_checkpoint(path).weights) for path in checkpoints},
        "history": [line.rpartition(",")[0] for line in history],  # without the seconds
        "best": load_checkpoint(folder / "e_checkpoint_best.pt").metadata["epoch"],
        "files": sorted(path.name for path in folder.iterdir()),
    }
