"""Tiny datasets in the form of the real ones, and checkouts to run commands in."""

import os

# As the commands do: networks this small are slower on several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import h5py
import numpy as np
import processes
import pytest
from raw_mnist import RAW_MNIST

from datasetprep import create_mnist_dataset, create_usps_dataset, qmnist
from DJSW import main as djsw
from DJSW import pipelines, reproduce
from utils.errors import RunError
from utils.records.h5 import array_hashes, h5_bytes

ROOT = Path(__file__).resolve().parents[1]


@cache
def checkout_files() -> list[str]:
    """Return the files that git tracks and code that is not added yet, but no untracked results."""

    def listed(*arguments: str) -> set[str]:
        git = ["git", "ls-files", "-z", *arguments]
        ran = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True)
        return {name for name in ran.stdout.split("\0") if (ROOT / name).is_file()}

    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout (git clone), not an unpacked archive")
    return sorted(listed() | listed("--others", "--exclude-standard", "--", *processes.PACKAGES))


def python_blocks(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def copy_checkout(folder: Path, *wanted: str) -> Path:
    """Copy the checkout's ``wanted`` files and folders, or all of them if none is named."""
    for name in checkout_files():
        if not wanted or name in wanted or name.startswith(tuple(f"{each}/" for each in wanted)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def digit_images(
    digits: tuple[int, ...], size: tuple[int, ...], count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``count`` noisy digits, one pattern per digit: images uint8 (N, H, W), and labels."""
    labels = np.resize(np.array(digits, dtype=np.uint8), count)
    patterns = np.random.default_rng(0).integers(0, 200, (10, *size))
    noise = np.random.default_rng(seed).integers(0, 56, (count, *size))
    return (patterns[labels] + noise).astype(np.uint8), labels


def write_h5(path: Path, images: np.ndarray, labels: np.ndarray, **storage: object) -> Path:
    """Write arrays without attributes, like the group's earlier files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a process that has mapped it keeps the old one
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, **storage)
        file.create_dataset("labels", data=labels)
    return path


def write_datasets(processed: Path, writers: int = 0) -> None:
    """Write tiny files of every dataset as ours are: 120 training images and 43 test images.

    :param writers: so many wrote the digits of each file, one after the other; 0: it does not say.
    """
    processed.mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(pipelines.DATASETS.values()):
        for name, count, split in ((entry.train_file, 120, 1), (entry.test_file, 43, 2)):
            seed = 2 * number + split  # no two files hold the same images
            images, labels = digit_images(entry.labels, entry.image_shape, count, seed)
            attributes = {
                **{"schema_version": 2, "dataset": entry.source, "source": "the tests"},
                **{"split": "train" if split == 1 else "test", "kept_labels": list(entry.labels)},
                **{"raw_sha256": "{}", "tool": "tests", "tool_version": "1"},
            }
            arrays = {"images": images, "labels": labels}
            if writers:
                arrays["writers"] = (1000 * split + np.arange(count) % writers).astype(np.uint16)
                arrays["series"] = (4 * (np.arange(count) % writers % 2)).astype(np.uint8)
            attributes |= array_hashes(arrays)
            (processed / name).write_bytes(h5_bytes(arrays, attributes))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's label files from the digits that tests make, and these from the tracker."""
    for name in ("DJSW_RAW_QMNIST", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def processed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``data/processed`` with tiny files, for commands that are called in this process."""
    monkeypatch.setattr(pipelines, "PROCESSED", tmp_path / "processed")
    write_datasets(tmp_path / "processed")
    return tmp_path / "processed"


@pytest.fixture(scope="session")
def raw_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``data/raw`` with the real MNIST and USPS: the user's files, or fetched once."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    raw = shared / "raw"
    with filelock.FileLock(shared / "raw.lock"), pytest.MonkeyPatch.context() as patch:
        if not raw.exists():
            raw.mkdir()
            if (ROOT / "data" / "raw").exists():
                shutil.copytree(ROOT / "data" / "raw", raw, dirs_exist_ok=True)
        patch.delenv("DJSW_RAW_USPS", raising=False)
        patch.setattr(create_mnist_dataset, "RAW_FOLDER", raw / "mnist")
        patch.setattr(create_usps_dataset, "RAW_FOLDER", raw / "usps")
        patch.setattr(qmnist, "RAW_FOLDER", raw / "qmnist")
        try:
            create_mnist_dataset.create_mnist_h5(shared / "mnist.h5")
            for train in (True, False):
                create_usps_dataset.create_usps_h5(shared / f"usps_{train}.h5", train=train)
        except RunError as error:
            pytest.skip(f"needs the real digits: {error}")
    return raw


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code alone, like a fresh clone."""
    return copy_code(tmp_path / "checkout")


def copy_code(folder: Path) -> Path:
    """Copy the checkout without its results."""
    copy_checkout(folder, *processes.PACKAGES, ".gitignore", "pyproject.toml", "run.sh")
    for name in ("weights/SMLP", "weights/WMLP", "weights/DMLP", "reports/scratch"):
        (folder / name).mkdir(parents=True)
    return folder


def clean_environment() -> dict[str, str]:
    """Return the environment without the variables that change how a command runs."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "OMP_NUM_THREADS") and not name.startswith("SLURM_")
    }


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_script() -> Run:
    """Run a script in a separate process, with none of our packages on its path.

    ``fresh``: in a new Python, which has to load the libraries.
    """

    def run(script: Path, *arguments: object, fresh: bool = False, **options: Any):
        options.setdefault("env", clean_environment())
        if fresh:
            command = [sys.executable, *map(str, (script, *arguments))]
            return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
        process = processes.start([script, *arguments], **options)
        out, error = process.communicate(timeout=300)
        return subprocess.CompletedProcess(script, process.wait(), out, error)

    return run


@pytest.fixture
def raw_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty raw folder, for which the synthetic files have the expected hashes."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in RAW_MNIST.items()}
    monkeypatch.setattr(create_mnist_dataset, "RAW_SHA256", hashes)
    monkeypatch.setattr(create_mnist_dataset, "RAW_FOLDER", tmp_path / "raw")
    monkeypatch.setattr(qmnist, "RAW_FOLDER", tmp_path / "raw" / "qmnist")
    monkeypatch.setattr(qmnist, "_download", _unreachable)
    return tmp_path / "raw"


def _unreachable(folder: Path) -> None:
    raise OSError("no network here")


def exit_status(main: Callable[[list[str]], int], *arguments: object) -> object:
    """Return the exit status of a command's ``main``, called in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return stopped.code


@dataclass
class Call:
    """A command that is called in this process, and the folder ``out`` for its files."""

    function: Callable[..., tuple[object, str, str]]
    out: Path

    def __call__(self, *arguments: object, **names: Any) -> tuple[object, str, str]:
        """Return (exit status, stdout, stderr)."""
        return self.function(*arguments, **names)


SLURM = {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
}


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def variables(monkeypatch):
    for name in (*SLURM, *TORCHRUN, "SLURM_GPUS_ON_NODE"):
        monkeypatch.setenv(name, "")  # so that what rank_info() sets is restored too
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def project(checkout):
    """A checkout with tiny data."""
    write_datasets(checkout / "data" / "processed")
    return checkout


@pytest.fixture
def ran(tmp_path, processed, monkeypatch):
    """The output folder of a run and its evaluation."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["DJSW/main.py"])
    # reproduce.py sets it for its process, which also runs the following tests.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--username=waly", "--exp_name=first", f"--output_dir={out}"]
    assert djsw.main([*flags, "--train", "--num_epochs=3", "--seed=5", "--device=cpu"]) == 0
    weights = f"--load_checkpoint={out / 'first_checkpoint_best.pt'}"
    assert djsw.main([*flags, weights, "--device=cpu"]) == 0
    return out
