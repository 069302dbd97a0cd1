"""How fast training is, beside other ways: ``uv run --group bench tests/benchmarks/epoch.py``.

Machines drift, so the contenders take turns, and what counts are medians and the ratios within a
turn. The first turn is a warm-up. Creates the datasets in ``data/`` that are missing. Nothing fails
for being slow.
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
from importlib.metadata import version
from importlib.util import find_spec

import in_memory
import torch
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.nn import functional as F

from DJSW.networks import build_model
from DJSW.pipelines import PEOPLE, open_split
from DJSW.recipes import RECIPES, Settings
from utils.distributed.device import device_name
from utils.engine.batches import Samples, load_rows
from utils.engine.seeds import epoch_order, split_rows
from utils.records.provenance import provenance, write_json
from utils.report.tables import markdown

BATCH, STEPS = 64, 500
CPU = torch.device("cpu")
HAS_JAX = all(find_spec(name) for name in ("jax", "optax"))
(WEIGHTS,) = (ROOT / "weights" / "SMLP").glob("smlp_standard_?_checkpoint_best.pt")

Timed = Callable[[], object]
#: Prepares a turn, which is not timed, and returns what is timed.
Contender = Callable[[], Timed]
Times = dict[str, list[float]]


def ours(
    new_model: Callable[[], nn.Module], data: Samples, settings: Settings, epochs: int
) -> Timed:
    """This project's loop, without validation and without files."""
    run = in_memory.start(new_model(), settings)

    def train() -> None:
        for _ in range(epochs):
            in_memory.run_epoch(run, data, settings)

    return train


def eager_loop(new_model: Callable[[], nn.Module], data: Samples, epochs: int) -> Timed:
    """Images in memory, autograd, ``torch.optim.Adam``: what one writes in ten lines."""
    images, classes = data[slice(None)]
    model = new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train() -> None:
        for epoch in range(epochs):
            for index in epoch_order(len(data), 42, epoch).split(BATCH):
                loss = F.cross_entropy(model(images[index]), classes[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return train


def scikit_learn(layers: list[nn.Linear], data: Samples, epochs: int) -> Timed:
    """``MLPClassifier`` with these layers and ReLU, the same optimizer and batch size."""
    hidden = [layer.out_features for layer in layers[:-1]]
    network = MLPClassifier(hidden, batch_size=BATCH, max_iter=epochs, alpha=0.0)
    images, classes = data[slice(None)]

    def train() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few epochs do not converge
            network.fit(images.flatten(1).numpy(), classes.numpy())

    return train


def matrix_products(layers: list[nn.Linear], data: Samples, epochs: int) -> Timed:
    """The products of a step that no implementation can do without, and nothing else."""
    weights = [layer.weight.detach() for layer in layers]
    inputs = [torch.randn(BATCH, weight.shape[1]) for weight in weights]
    outputs = [torch.randn(BATCH, weight.shape[0]) for weight in weights]

    def multiply() -> None:
        for _ in range(-(-len(data) // BATCH) * epochs):
            for weight, x in zip(weights, inputs, strict=True):
                x @ weight.t()
            for i, (weight, x, g) in enumerate(zip(weights, inputs, outputs, strict=True)):
                g.t() @ x
                if i > 0:
                    g @ weight

    return multiply


def jax_contender(model: nn.Module, data: Samples, epochs: int) -> tuple[str, Contender]:
    """Return a name with the time to compile, and the epochs of :mod:`in_jax`."""
    from in_jax import JaxEpoch

    layers, negative_slope = model.stack()  # type: ignore[operator]
    weights = [(layer.weight.detach().t().numpy(), layer.bias.detach().numpy()) for layer in layers]
    images, classes = data[slice(None)]
    pixels, targets = images.flatten(1).numpy(), classes.int().numpy()
    jax_epoch = JaxEpoch(weights, negative_slope, pixels, targets, BATCH)
    orders = [epoch_order(len(data), 42, epoch).int().numpy() for epoch in range(epochs)]
    name = f"JAX, after {jax_epoch.compile_seconds:.1f} s of compilation"
    return name, lambda: partial(jax_epoch.train, orders)


def seconds(function: Timed) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def on_one_core(function: Timed) -> None:
    """Call the function with this thread, and those that it starts, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        function()
    finally:
        os.sched_setaffinity(0, cores)


def take_turns(contenders: dict[str, Contender], epochs: int = 1) -> Times:
    """Return the seconds of an epoch (or a command) in each turn."""
    times: Times = {name: [] for name in contenders}
    for _ in range(ARGS.rounds + 1):
        for name, prepare in contenders.items():
            times[name].append(seconds(prepare()) / epochs)
    return {name: each[1:] for name, each in times.items()}


def epochs_of(username: str) -> tuple[Times, Times]:
    """Return times of standard epochs by contender, and of tuned ones and those beside them.

    A turn has about as many steps for each network, so that a small dataset has several epochs.
    """
    dataset = PEOPLE[username].dataset
    file = open_split(dataset, train=True)
    data = load_rows(file, CPU, split_rows(len(file))[0])
    epochs = max(1, STEPS * BATCH // len(data))

    def new_model() -> nn.Module:
        torch.manual_seed(42)
        return build_model(username, dataset)[0]

    model = new_model()
    layers = model.stack()[0]  # type: ignore[operator]
    contenders: dict[str, Contender] = {
        "ours": lambda: ours(new_model, data, Settings(50, BATCH, 1e-3), epochs),
        "matrix products alone": lambda: matrix_products(layers, data, epochs),
        "scikit-learn's MLPClassifier": lambda: scikit_learn(layers, data, epochs),
        "eager loop": lambda: eager_loop(new_model, data, epochs),
    }
    if HAS_JAX:
        name, contender = jax_contender(model, data, epochs)
        contenders[name] = contender
    tuned = Settings(**vars(RECIPES["tuned"][dataset]))
    standard = Settings(50, tuned.batch_size, 1e-3)
    recipes: dict[str, Contender] = {}
    for name, settings in {"standard": standard, "tuned": tuned}.items():
        train = partial(ours, new_model, data, settings, epochs)
        recipes[name] = train
        if hasattr(os, "sched_setaffinity"):  # Linux
            recipes[f"{name}, one core"] = lambda train=train: partial(on_one_core, train())  # type: ignore[misc]
    return take_turns(contenders, epochs), take_turns(recipes, epochs)


def own_network() -> Times:
    """Return times of the README's MyMLP, which has no ``stack()``: by autograd, two loops."""
    file = open_split("mnist_4_9", train=True)
    data = load_rows(file, CPU, split_rows(len(file))[0])

    def new_model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.GELU(), nn.Linear(64, 6))

    settings = Settings(50, BATCH, 1e-3)
    return take_turns(
        {
            "ours": lambda: ours(new_model, data, settings, 1),
            "eager loop": lambda: eager_loop(new_model, data, 1),
        }
    )


def commands(folder: str) -> Times:
    """Return times of whole processes, with the data present."""

    def command(*words: object) -> Contender:
        def prepare() -> Timed:
            name = [f"e{time.time_ns()}"] if words[-1] == "--exp_name" else []
            line = [sys.executable, *map(str, words), *name]
            return partial(subprocess.run, line, check=True, capture_output=True)

        return prepare

    def main(*flags: object) -> Contender:
        program = ROOT / "DJSW" / "main.py"
        return command(program, "--username", "sigurd", "--output_dir", folder, *flags)

    contenders = {
        "import torch": command("-c", "import torch"),
        "main.py --help": command(ROOT / "DJSW" / "main.py", "--help"),
        "main.py --train, 10 epochs": main("--train", "--exp_name"),
        "main.py, evaluation": main("--load_checkpoint", WEIGHTS, "--exp_name"),
    }
    if HAS_JAX:
        jax_script = Path(__file__).with_name("in_jax.py")
        data = open_split("mnist_4_9", train=True).h5_path
        contenders["JAX, 10 epochs, without validation and files"] = command(jax_script, data)
    return take_turns(contenders)


def row(name: str, times: list[float], other: str, beside: list[float]) -> tuple[str, ...]:
    """Return a table's row of two contenders, with the median of the ratios within a turn."""
    ratio = statistics.median(a / b for a, b in zip(times, beside, strict=True))
    median, base = (f"{statistics.median(each):.3f}" for each in (times, beside))
    return name, median, other, base, f"{ratio:.2f}"


def main() -> None:
    """Measure, print and write."""
    measured: dict[str, Times] = {}
    epoch_rows, recipe_rows = [], []
    for username in ("sigurd", "waly", "dennis"):
        name = f"{PEOPLE[username].model_name}, {PEOPLE[username].dataset}"
        standard, recipes = epochs_of(username)
        measured |= {name: standard, f"{name}, recipes": recipes}
        epoch_rows += [
            row(name, standard["ours"], other, times)
            for other, times in standard.items()
            if other != "ours"
        ]
        recipe_rows += [
            row(f"{name}, {recipe}", times, beside, recipes[beside])
            for recipe, times in recipes.items()
            if (beside := recipe.replace("tuned", "standard")) != recipe
        ]
    measured["MyMLP"] = own = own_network()
    recipe_rows.append(row("MyMLP, ours", own["ours"], "eager loop", own["eager loop"]))
    with tempfile.TemporaryDirectory() as folder:
        measured["commands"] = processes = commands(folder)
    command_rows = [
        row(name, times, "import torch", processes["import torch"])
        for name, times in processes.items()
        if name != "import torch"
    ]
    about = provenance(CPU, [{"node": platform.node(), "device": device_name(CPU)}])
    versions = about["versions"] | {name: version(name) for name in ("jax", "optax") if HAS_JAX}
    header = ("seconds", "compared with", "seconds", "ratio")
    text = "\n\n".join(
        [
            f"Epochs without validation, one thread, batches of {BATCH}; tuned ones and those "
            f"beside them of 128. Medians of {ARGS.rounds} turns.",
            markdown(("our epoch", *header), epoch_rows),
            markdown(("epoch", *header), recipe_rows),
            markdown(("process", *header), command_rows),
            *(
                ()
                if HAS_JAX
                else ["JAX is not installed: its rows are left out (uv run --group bench)."]
            ),
            f"{about['device']['name']}, {os.cpu_count()} cores, {platform.system()}; "
            + ", ".join(f"{package} {number}" for package, number in versions.items())
            + ".",
        ]
    )
    print(text)
    if ARGS.output is not None:
        (ARGS.output / "epoch.md").write_text(text + "\n", encoding="utf-8")
        write_json(ARGS.output / "epoch.json", {"seconds": measured, "session": about})


if __name__ == "__main__":
    main()
