"""Tiny datasets in the form of the real ones, and checkouts to run commands in."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from DJSW import pipelines
from utils.signals import EXIT_STATUS, stop_request

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("DJSW", "models", "datasetprep", "utils")

torch.set_num_threads(1)
# Processes that are forked from a server which has torch already start in milliseconds.
if hasattr(os, "fork"):
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["DJSW.train", "utils.figures"]
    )


def digit_images(
    digits: tuple[int, ...], size: tuple[int, int], count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W) of ``count`` noisy digits, each digit a pattern of its own; labels."""
    labels = np.resize(np.array(digits, dtype=np.uint8), count)
    patterns = np.random.default_rng(0).integers(0, 200, (10, *size))
    noise = np.random.default_rng(seed).integers(0, 56, (count, *size))
    return (patterns[labels] + noise).astype(np.uint8), labels


def write_h5(path: Path, images: np.ndarray, labels: np.ndarray, **storage: object) -> Path:
    """A file as the group's earlier ones: arrays, no attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, **storage)
        file.create_dataset("labels", data=labels)
    return path


def write_datasets(processed: Path) -> None:
    """Every dataset of the table, 120 images to train on and 43 to test."""
    for entry in pipelines.DATASETS.values():
        for name, count, seed in ((entry.train_file, 120, 1), (entry.test_file, 43, 2)):
            write_h5(processed / name, *digit_images(entry.digits, entry.image_size, count, seed))


@pytest.fixture
def processed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``data/processed`` with tiny files, for commands that are called in this process."""
    monkeypatch.setattr(pipelines, "PROCESSED", tmp_path / "processed")
    write_datasets(tmp_path / "processed")
    return tmp_path / "processed"


@pytest.fixture(autouse=True)
def _signal_handlers():
    """A command that is called in this process watches for signals to the end of the process."""
    names = [name for name in EXIT_STATUS if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    yield
    stop_request.signal = None
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code with nothing else in it, as a fresh clone."""
    return copy_code(tmp_path / "checkout")


def copy_code(folder: Path) -> Path:
    """Copy what a checkout has, but for results."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("SMLP", "WMLP", "DMLP"):
        (folder / "weights" / name).mkdir(parents=True)
    (folder / "reports").mkdir()
    return folder


def clean_environment() -> dict[str, str]:
    """The environment without what would change how a command runs."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "OMP_NUM_THREADS") and not name.startswith("SLURM_")
    }


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_script() -> Run:
    """Run a script in a process of its own, with none of our packages on its path."""

    def run(script: Path, *arguments: object, **options: object):
        options.setdefault("env", clean_environment())
        command = [sys.executable, script, *arguments]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=300, **options
        )

    return run
