"""Training: the loop, once."""

import argparse
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer
from torch.utils.data import Subset, random_split

from DJSW.pipelines import DATASETS, PEOPLE, build_model, open_split
from utils.batches import Samples, batches, load_rows, predict
from utils.checkpoint import describe, load_checkpoint
from utils.device import choose_device
from utils.failures import RunError
from utils.files import find_file, find_folder, recorded
from utils.training_run import Row, TrainingRun

#: Seed of the 90/10 split: the same whatever ``--seed`` is, so that seeds can be compared.
SPLIT_SEED = 42


@dataclass(frozen=True)
class Settings:
    """What decides a training's result besides its data and its first weights."""

    num_epochs: int
    batch_size: int
    lr: float
    seed: int


def train_model(args: argparse.Namespace) -> None:
    """Train as the command line says; ``DJSW/main.py`` has the flags."""
    started = time.perf_counter()
    run = TrainingRun(find_folder(args.output_dir, "--output_dir"), args.exp_name)
    if not args.resume:
        run.require_new()
    device = choose_device(args.device)
    dataset = args.dataset or PEOPLE[args.username].dataset
    settings = Settings(args.num_epochs, args.batch_size, args.lr, args.seed)
    start = None
    if args.load_checkpoint is not None:
        start = load_checkpoint(find_file(args.load_checkpoint, "--load_checkpoint"))
    torch.manual_seed(settings.seed)
    model, arguments = build_model(args.username, dataset, start)
    data = open_split(dataset, train=True)
    training_rows, validation_rows = split_rows(len(data))
    run.about = {
        "exp_name": args.exp_name,
        "username": args.username,
        "model": {"name": type(model).__name__, "arguments": arguments},
        "dataset": {"name": dataset, "file": recorded(data.h5_path), **data.sha256()},
        "classes": list(DATASETS[dataset].digits),
        "settings": asdict(settings),
        "starting_weights": start.source() if start else None,
    }
    print(f"{args.username} trains {describe(model)} on {dataset} ({device})")
    print(f"data        {data.h5_path}")
    print(f"images      {len(training_rows)} to train on, {len(validation_rows)} to validate with")
    if start:
        print(f"start from  {start.path}")
    print(f"output      {run.folder}", flush=True)
    training = load_rows(data, device, training_rows)
    validation = load_rows(data, device, validation_rows)
    with run.locked():
        train_pipeline(model, training, validation, settings, run, device, resume=args.resume)
        run.finish(time.perf_counter() - started)
    best = run.best
    print(
        f"best        epoch {best['epoch']}, validation loss {best['validation_loss']:.4f}, "
        f"accuracy {best['validation_accuracy']:.2%}"
    )
    print(f"record      {run.record_file}")
    print(f"checkpoint  {run.best_file}")


def split_rows(count: int) -> tuple[Tensor, Tensor]:
    """The rows for training (90 %) and for validation (10 %)."""
    if count < 10:
        raise RunError(f"{count} images are too few to train on; at least 10 are needed")
    parts: list[Subset[int]] = random_split(
        range(count),  # type: ignore[arg-type]  # only its length is asked for
        [0.9, 0.1],
        generator=torch.Generator().manual_seed(SPLIT_SEED),
    )
    return torch.tensor(parts[0].indices), torch.tensor(parts[1].indices)


def train_pipeline(
    model: nn.Module,
    training: Samples,
    validation: Samples,
    settings: Settings,
    run: TrainingRun,
    device: torch.device,
    *,
    resume: bool = False,
) -> None:
    """Train ``model`` with cross-entropy and Adam; what comes of it is in ``run`` and on the disk.

    ``training`` and ``validation`` give images (B, 1, H, W) and classes (B,) for an index tensor.

    :raises UsageError: the name is taken, or what is resumed was trained otherwise.
    :raises RunError: the loss is not finite.
    """
    model.to(device)
    optimizer = Adam(model.parameters(), lr=settings.lr, fused=True)
    run.begin(model, optimizer, device, settings.num_epochs, resume=resume)
    if run.history:
        print(f"{len(run.history)} epochs are done already", flush=True)
    for epoch in range(len(run.history) + 1, settings.num_epochs + 1):
        started = time.perf_counter()
        losses = _train_epoch(model, optimizer, training, settings, epoch, device)
        if not losses.isfinite().all():
            step = int(losses.isfinite().logical_not().nonzero()[0])
            raise run.failed(
                f"the loss is {losses[step].item()} in epoch {epoch}, step {step + 1} of "
                f"{len(losses)}; try a smaller --lr than {settings.lr:g}"
            )
        trained = time.perf_counter()
        validation_loss, accuracy = _validate(model, validation, device)
        row = {
            "epoch": epoch,
            "train_loss": losses.sum(dtype=torch.float64).item() / len(training),
            "validation_loss": validation_loss,
            "validation_accuracy": accuracy,
            "learning_rate": settings.lr,
            "seconds": time.perf_counter() - started,
        }
        is_last = epoch == settings.num_epochs
        run.save_epoch(row, model, optimizer, is_last=is_last)
        speed = len(training) / (trained - started)
        print(_line(row, settings.num_epochs, speed), flush=True)


def _line(row: Row, num_epochs: int, speed: float) -> str:
    left = (num_epochs - row["epoch"]) * row["seconds"]
    return (
        f"epoch {row['epoch']:{len(str(num_epochs))}}/{num_epochs}"
        f"  train loss {row['train_loss']:.4f}"
        f"  validation loss {row['validation_loss']:.4f}"
        f"  accuracy {row['validation_accuracy']:7.2%}"
        f"  lr {row['learning_rate']:g}"
        f"  {speed:8,.0f} images/s"
        f"  {left // 60:.0f}:{left % 60:02.0f} left"
    )


def _train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    training: Samples,
    settings: Settings,
    epoch: int,
    device: torch.device,
) -> Tensor:
    """One pass over the training images; returns each step's loss, summed over its images."""
    model.train()
    order = epoch_order(len(training), settings.seed, epoch)
    loss_sums = []  # read only after the epoch, since reading one makes a GPU wait
    for images, classes in batches(training, order, settings.batch_size, device):
        loss = F.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sums.append(loss.detach() * len(classes))
    return torch.stack(loss_sums).cpu()


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch; it follows from (seed, epoch) alone."""
    stream = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.randperm(count, generator=torch.Generator().manual_seed(int(stream[0])))


def _validate(model: nn.Module, validation: Samples, device: torch.device) -> tuple[float, float]:
    """Mean loss and accuracy."""
    logits, classes = predict(model, validation, device)
    right = int((logits.argmax(1) == classes).sum())
    return F.cross_entropy(logits, classes).item(), right / len(classes)
