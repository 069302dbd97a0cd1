"""How fast the pipeline is, beside what else one could do: ``uv run tests/benchmarks/epoch.py``.

Everything in one run, since machines drift: the contenders take turns, and what counts are medians
and the ratios within a turn. Needs MNIST in ``data/`` (a training of sigurd's puts it there).
Nothing fails for being slow.
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
import warnings
from collections.abc import Callable
from functools import partial

import h5py
import in_memory
import numpy as np
import torch
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from datasetprep.create_mnist_dataset import RAW_FOLDER
from DJSW.networks import build_model
from DJSW.pipelines import PROCESSED, open_split
from DJSW.recipes import Settings
from DJSW.train import train_epoch
from utils.distributed.device import device_name
from utils.engine.batches import load_rows
from utils.engine.seeds import epoch_order, split_rows
from utils.mnist_dataset import MnistH5Dataset
from utils.records.provenance import provenance, write_json

ROUNDS, BATCH, SLICE = ARGS.rounds, 64, 640
GOAL = 0.9748  # what the group's earlier SMLP had
CPU = torch.device("cpu")
DATA = open_split("mnist_4_9", train=True)
ROWS = split_rows(len(DATA))[0]
TRAINING = load_rows(DATA, CPU, ROWS)
assert isinstance(TRAINING, TensorDataset)
IMAGES, CLASSES = TRAINING.tensors


def our_epoch() -> None:
    model, _ = build_model("sigurd", "mnist_4_9")
    settings = Settings(1, BATCH, 1e-3)
    train_epoch(in_memory.start(model, settings), TRAINING, settings)


def eager_loop() -> None:
    """Images in memory, autograd, torch.optim.Adam: what one writes in ten lines."""
    model, _ = build_model("sigurd", "mnist_4_9")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for index in epoch_order(len(ROWS), 42, 1).split(BATCH):
        loss = F.cross_entropy(model(IMAGES[index]), CLASSES[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def torchvision_loop() -> None:
    """The tutorial: torchvision's MNIST, ToTensor, a DataLoader, ``loss.item()`` each step."""
    mnist = MNIST(RAW_FOLDER, transform=ToTensor())
    kept = torch.isin(mnist.targets, torch.tensor([4, 5, 6, 7, 8, 9])).nonzero().flatten()
    mnist.targets = mnist.targets - 4
    model, _ = build_model("sigurd", "mnist_4_9")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    subset = Subset(mnist, kept[ROWS].tolist())
    for images, classes in DataLoader(subset, batch_size=BATCH, shuffle=True):
        loss = F.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()


def scikit_learn() -> None:
    """One iteration of the same network with the same optimizer and batch size."""
    network = MLPClassifier((77,) * 4, batch_size=BATCH, max_iter=1, alpha=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one iteration does not converge
        network.fit(IMAGES.flatten(1).numpy(), CLASSES.numpy())


def matrix_products() -> None:
    """The 14 products of a step that no implementation can do without, and nothing else."""
    model, _ = build_model("sigurd", "mnist_4_9")
    layers = [layer for layer in model.children() if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach() for layer in layers]
    inputs = [torch.randn(BATCH, weight.shape[1]) for weight in weights]
    outputs = [torch.randn(BATCH, weight.shape[0]) for weight in weights]
    for _ in range(-(-len(ROWS) // BATCH)):
        for weight, x in zip(weights, inputs, strict=True):
            x @ weight.t()
        for i, (weight, x, g) in enumerate(zip(weights, inputs, outputs, strict=True)):
            g.t() @ x
            if i > 0:
                g @ weight


def gzip_samples() -> None:
    """One image at a time from a gzip file with h5py's chunks; a slice, to be extrapolated."""
    model, _ = build_model("sigurd", "mnist_4_9")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with h5py.File(GZIP_FILE) as file:
        for rows in ROWS[torch.randperm(len(ROWS))[:SLICE]].split(BATCH):
            samples = [torch.from_numpy(file["images"][row]) for row in rows.tolist()]
            classes = torch.tensor([int(file["labels"][row]) - 4 for row in rows.tolist()])
            images = torch.stack([sample.float().div(255) for sample in samples])
            loss = F.cross_entropy(model(images), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


TEMPORARY = tempfile.TemporaryDirectory()  # goes with the process
GZIP_FILE = Path(TEMPORARY.name) / "gzip.h5"

#: name -> (function, what an epoch is more than it)
EPOCHS: dict[str, tuple[Callable[[], None], float]] = {
    "matrix products alone": (matrix_products, 1),
    "ours": (our_epoch, 1),
    "scikit-learn's MLPClassifier": (scikit_learn, 1),
    "in-memory eager loop": (eager_loop, 1),
    "torchvision + DataLoader": (torchvision_loop, 1),
    f"gzip HDF5 by sample ({SLICE} images, extrapolated)": (
        gzip_samples,
        len(ROWS) / SLICE,
    ),
}


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def process(*arguments: object) -> float:
    """Wall time of one Python process."""
    command = [sys.executable, *map(str, arguments)]
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def whole_commands() -> dict[str, list[float]]:
    """Start-up, and command one with the data present, beside ``import torch``."""
    times: dict[str, list[float]] = {}
    main = ROOT / "DJSW" / "main.py"
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            flags = ("--username", "sigurd", "--exp_name", "e", "--output_dir", folder, "--train")
            times.setdefault("import torch", []).append(process("-c", "import torch"))
            times.setdefault("main.py --help", []).append(process(main, "--help"))
            times.setdefault("main.py --train, 10 epochs", []).append(process(main, *flags))
    return times


def random_access() -> dict[str, list[float]]:
    """Seconds per batch of 64 random images: the mapped file, and the same array in memory."""
    order = [np.random.default_rng(n).integers(0, len(DATA), BATCH) for n in range(1000)]
    data = MnistH5Dataset(DATA.h5_path)
    images, labels = np.array(data.images), data.labels.astype(np.int64)

    def from_memory() -> None:
        for rows in order:
            torch.from_numpy(images[rows]).float().div(255), torch.from_numpy(labels[rows])

    def from_file() -> None:
        for rows in order:
            data[rows]

    times: dict[str, list[float]] = {"file": [], "array": []}
    for _ in range(ROUNDS):
        times["file"].append(seconds(from_file) / len(order))
        times["array"].append(seconds(from_memory) / len(order))
    return times


def time_to_accuracy(seed: int, goal: float) -> tuple[int, float]:
    """Return epochs and seconds of training until the test accuracy first reaches ``goal``.

    The test set is read after each epoch here, to measure speed; no published weights come of it.
    """
    test = load_rows(open_split("mnist_4_9", train=False), CPU)
    torch.manual_seed(seed)
    model, _ = build_model("sigurd", "mnist_4_9")
    settings = Settings(50, BATCH, 1e-3, seed=seed)
    run = in_memory.start(model, settings)
    spent = accuracy = 0.0
    while accuracy < goal and len(run.history) < 50:
        spent += seconds(partial(in_memory.run_epoch, run, TRAINING, settings))
        accuracy = in_memory.accuracy_of(model, test)
    return len(run.history), spent


def main() -> None:
    """Measure, print and write."""
    with h5py.File(PROCESSED / "mnist_4_9.h5") as source, h5py.File(GZIP_FILE, "w") as target:
        target.create_dataset("images", data=source["images"][:], compression="gzip")
        target["labels"] = source["labels"][:]
    epochs: dict[str, list[float]] = {name: [] for name in EPOCHS}
    for _ in range(ROUNDS):
        for name, (function, factor) in EPOCHS.items():
            if factor == 1 or len(epochs[name]) < 3:
                epochs[name].append(seconds(function) * factor)
    commands, access = whole_commands(), random_access()
    goals = [time_to_accuracy(seed, GOAL) for seed in (42, 43, 44)]

    def ratio(times: list[float], base: list[float]) -> str:
        return f"{statistics.median(a / b for a, b in zip(times, base, strict=False)):.2f}"

    products, sklearn = epochs["matrix products alone"], epochs["scikit-learn's MLPClassifier"]
    lines = [
        f"An epoch of SMLP on MNIST 4-9: {len(ROWS)} images, batches of {BATCH}, one thread, no "
        f"validation; medians of {ROUNDS} turns.",
        "",
        "| epoch | seconds | / matrix products | / scikit-learn |",
        "|---|---|---|---|",
    ]
    for name, times in epochs.items():
        row = (name, f"{statistics.median(times):.3f}", ratio(times, products))
        lines.append(f"| {' | '.join((*row, ratio(times, sklearn)))} |")
    lines += ["", "| whole process | seconds | / import torch |", "|---|---|---|"]
    for name, times in commands.items():
        median = f"{statistics.median(times):.2f}"
        lines.append(f"| {name} | {median} | {ratio(times, commands['import torch'])} |")
    lines += ["", "| 64 random images | microseconds | / array |", "|---|---|---|"]
    for name, times in access.items():
        median = f"{1e6 * statistics.median(times):.1f}"
        lines.append(f"| {name} | {median} | {ratio(times, access['array'])} |")
    reached = ", ".join(f"{epochs} epochs ({spent:.1f} s)" for epochs, spent in goals)
    lines += ["", f"Training until test accuracy {GOAL} is first reached, by seed: {reached}."]
    about = provenance(CPU, [{"node": platform.node(), "device": device_name(CPU)}])
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    machine = f"{about['device']['name']}, {os.cpu_count()} cores, {platform.system()}"
    lines += ["", f"{machine}; {versions}."]
    text = "\n".join(lines) + "\n"
    print(text)
    if ARGS.output is not None:
        (ARGS.output / "epoch.md").write_text(text, encoding="utf-8")
        measured = {"epochs": epochs, "commands": commands, "access": access, "goal": goals}
        write_json(ARGS.output / "epoch.json", {**measured, "session": about})


if __name__ == "__main__":
    main()
