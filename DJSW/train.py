"""Training: the loop, once."""

import argparse
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from signal import Signals

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset, random_split
from tqdm import tqdm

from DJSW import recipes
from DJSW.pipelines import DATASETS, PEOPLE, build_model, open_split
from DJSW.recipes import Settings
from utils import ranks
from utils.adam import Adam
from utils.batches import Samples, batches, load_rows, predict
from utils.checkpoint import describe, load_checkpoint
from utils.deformations import Deformer
from utils.failures import RunError
from utils.files import find_file, find_folder, recorded
from utils.gradients import Gradients, SharedGradients, StackGradients, gradients_of
from utils.mnist_dataset import MnistH5Dataset
from utils.progress import Progress, epoch_line
from utils.record import facts
from utils.schedules import SCHEDULES
from utils.signals import stop_request
from utils.training_run import TrainingRun

#: Seed of the 90/10 split: the same whatever ``--seed`` is, so that seeds can be compared.
SPLIT_SEED = 42
#: A long epoch's state is saved so often: what a dying machine may cost.
SAVE_SECONDS = 120
#: What a rank wishes, as a number: nothing 0, a signal its own number, and in between to save.
SAVE = 1
#: What a stream of random numbers is for: what a network draws 0, and deformations, of all ranks.
DEFORMATIONS = 1
#: Steps after which ranks ask each other what they wish; on GPUs it makes all of them wait.
ASK_EVERY = 32


@dataclass
class Training:
    """A training as the command line asks for it, ready to begin.

    :ivar rows: of the training file: those to train on, those to validate with.
    """

    model: nn.Module
    data: MnistH5Dataset
    rows: tuple[Tensor, Tensor]
    settings: Settings
    run: TrainingRun


def prepare(args: argparse.Namespace) -> Training:
    """Look at all that the command line names, make the data if they are not there, and say so.

    :raises UsageError: a flag is wrong, or the name is taken.
    :raises RunError: there are no data, or they are damaged.
    """
    run = TrainingRun(folder=find_folder(args.output_dir, "--output_dir"), exp_name=args.exp_name)
    if not args.resume:
        run.require_new()
    dataset = args.dataset or PEOPLE[args.username].dataset
    settings = recipes.settings(args, dataset)
    start = None
    if args.load_checkpoint is not None:
        start = load_checkpoint(find_file(args.load_checkpoint, "--load_checkpoint"))
    torch.manual_seed(settings.seed)
    model, arguments = build_model(args.username, dataset, start)
    data = open_split(dataset, train=True)
    rows = split_rows(len(data))
    run.about = {
        "exp_name": args.exp_name,
        "username": args.username,
        "model": {"name": type(model).__name__, "arguments": arguments},
        "dataset": {"name": dataset, "file": recorded(data.h5_path), **data.sha256},
        "classes": list(DATASETS[dataset].digits),
        "settings": asdict(settings),
        "starting_weights": start.source() if start else None,
    }
    print(f"{args.username} trains {describe(model)} on {dataset}")
    print(f"data        {data.h5_path}")
    print(f"images      {len(rows[0])} to train on, {len(rows[1])} to validate with")
    if start:
        print(f"start from  {start.path}")
    print(f"output      {run.folder}", flush=True)
    return Training(model, data, rows, settings, run)


def run(args: argparse.Namespace, device: torch.device, members: ranks.Members) -> None:
    """Train as the command line says, as one of the ranks; ``DJSW/main.py`` has the flags."""
    with ExitStack() as until_the_end:
        with ranks.in_turn():
            ready = prepare(args)
            ranks.refuse_batch_norm(ready.model)
            print(f"device      {ranks.described(device, members)}", flush=True)
            if ranks.rank() == 0:
                until_the_end.enter_context(ready.run.locked())
                ready.run.facts = facts(device, members)
        training, validation = (load_rows(ready.data, device, rows) for rows in ready.rows)
        progress = ready.run if ranks.rank() == 0 else Progress()
        train_pipeline(
            ready.model,
            training,
            validation,
            ready.settings,
            progress,
            device,
            resume=args.resume,
        )
    best = progress.best
    print(
        f"best        epoch {best['epoch']}, validation loss {best['validation_loss']:.4f}, "
        f"accuracy {best['validation_accuracy']:.2%}"
    )
    print(f"record      {ready.run.record_file}")
    print(f"curves      {ready.run.file('curves.png')}")
    print(f"checkpoint  {ready.run.best_file}")


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
    run: Progress,
    device: torch.device,
    *,
    resume: bool = False,
) -> None:
    """Train ``model`` with cross-entropy; what comes of it is in ``run`` and on the disk.

    Each of several ranks calls it with the same model and data: a batch is theirs together.

    ``training`` and ``validation`` give images (B, 1, H, W) and classes (B,) for an index tensor.

    :raises UsageError: the name is taken, or what is resumed was trained otherwise.
    :raises RunError: the loss is not finite.
    :raises Stopped: a signal came; the state is saved.
    """
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)  # a resumed run has the same bits
    model.to(device)
    optimizer = Adam(model, settings.lr, settings.weight_decay, settings.averaging)
    with ranks.in_turn():
        run.begin(model, optimizer, settings.num_epochs, settings.patience, resume=resume)
    run.agree(model, optimizer)
    if run.finished:
        print("finished    before; nothing is left to do")
    elif run.history or len(run.losses):
        print(f"resumed     after {len(run.history)} epochs and {len(run.losses)} steps")
    while not run.is_over(settings.num_epochs, settings.patience):
        started = time.perf_counter() - run.seconds
        losses = train_epoch(model, optimizer, training, settings, run, device)
        trained = time.perf_counter()
        validation_loss, accuracy = _validate(model, optimizer, validation, settings, run, device)
        row = {
            "epoch": len(run.history) + 1,
            "train_loss": losses.sum(dtype=torch.float64).item() / len(training),
            "validation_loss": validation_loss,
            "validation_accuracy": accuracy,
            "learning_rate": optimizer.lr,
            "seconds": time.perf_counter() - started,
        }
        run.save_epoch(row, model, optimizer)
        speed = len(training) / (trained - started)
        print(epoch_line(row, settings.num_epochs, speed), flush=True)
    if len(run.history) < settings.num_epochs:
        print(f"stopped early: no better validation loss for {settings.patience} epochs")
    run.finish(model, optimizer)


def train_epoch(
    model: nn.Module,
    optimizer: Adam,
    training: Samples,
    settings: Settings,
    run: Progress,
    device: torch.device,
) -> Tensor:
    """The rest of the epoch under way; returns the steps' losses (steps,), each summed over
    its images.

    A loss that is not finite is noticed within 100 steps; on a GPU, at the end of the epoch or
    before a state is saved.
    """
    model.train()
    gradients = gradients_of(model, settings.label_smoothing)
    shared = SharedGradients(gradients, optimizer.gradients) if ranks.count() > 1 else gradients
    epoch, done, size = len(run.history) + 1, len(run.losses), settings.batch_size
    order = epoch_order(len(training), settings.seed, epoch)
    deformer = _deformer(settings, training, device)
    deformations = _stream(settings.seed, epoch, purpose=DEFORMATIONS)
    seed_step, stream = _seeder(gradients, device), _stream(settings.seed, epoch, ranks.rank())
    # Kept on the device: reading a loss would make a GPU wait.
    losses = torch.zeros(math.ceil(len(order) / size), device=device)
    losses[:done] = run.losses.to(device)
    schedule, steps = SCHEDULES[settings.schedule], settings.num_epochs * len(losses)
    ask_every = 1 if ranks.count() == 1 else ASK_EVERY
    started = saved = time.perf_counter()
    rest = batches(training, order[done * size :], size, device)
    hidden = True if ranks.rank() else None  # None: shown where there is a terminal
    bar = tqdm(rest, f"epoch {epoch}", len(losses), initial=done, leave=False, disable=hidden)
    for step, (images, classes) in enumerate(bar, start=done):
        seed_step(stream + step)
        if deformer:
            whole = min(size, len(order) - step * size)
            images = deformer.share(images, whole, deformations + step)
        optimizer.lr = settings.lr * schedule((epoch - 1) * len(losses) + step, steps)
        losses[step] = shared(images, classes)
        optimizer.step()
        now = time.perf_counter()
        if step % 100 == 99 and device.type == "cpu":
            _require_finite(losses[: step + 1], run, settings.lr)
        if step % ask_every == 0 and (wish := ranks.greatest(_wish(now - saved), device)):
            _require_finite(losses[: step + 1], run, settings.lr)
            signal = Signals(wish).name if wish != SAVE else None
            seconds = run.seconds + now - started
            run.save_step(losses[: step + 1], seconds, model, optimizer, signal)
            saved, started = now, now
    _require_finite(losses, run, settings.lr)
    return losses.cpu()


def _deformer(settings: Settings, training: Samples, device: torch.device) -> Deformer | None:
    if settings.deformation is None:
        return None
    image_size = training[slice(0, 1)][0].shape[-2:]
    return Deformer(image_size, device, **asdict(settings.deformation))


def _seeder(gradients: Gradients, device: torch.device) -> Callable[[int], object]:
    """What seeds a step: what a network draws (dropout) follows from seed, epoch and step."""
    if isinstance(gradients, StackGradients):
        return _nothing_to_seed
    # torch.manual_seed seeds every kind of device, which takes 75 µs.
    return torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed


def _nothing_to_seed(seed: int) -> None:
    """Of a stack, which draws nothing."""


def _wish(seconds: float) -> int:
    """What this rank wishes, so long after the last save."""
    if stop_request.signal:
        return Signals[stop_request.signal]
    return SAVE if seconds > SAVE_SECONDS else 0


def _require_finite(losses: Tensor, run: Progress, lr: float) -> None:
    if losses.isfinite().all():
        return
    step = int(losses.isfinite().logical_not().nonzero()[0])
    raise run.failed(
        f"the loss is {losses[step].item()} in epoch {len(run.history) + 1}, step {step + 1}; "
        f"try a smaller --lr than {lr:g}"
    )


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order (count,) of the images in an epoch; it follows from (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(_stream(seed, epoch))
    return torch.randperm(count, generator=generator)


def _stream(seed: int, epoch: int, rank: int = 0, purpose: int = 0) -> int:
    """A number below 2**63 for a rank's generators in an epoch, unlike that of any other.

    Rank 0's is the same as without ranks: to ``SeedSequence`` a zero at the end is nothing.
    """
    sequence = np.random.SeedSequence([seed, epoch, rank, purpose])
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


def _validate(
    model: nn.Module,
    optimizer: Adam,
    validation: Samples,
    settings: Settings,
    run: Progress,
    device: torch.device,
) -> tuple[float, float]:
    """Mean loss and accuracy."""
    with optimizer.averaged():
        logits, classes = predict(model, validation, device)
    loss = F.cross_entropy(logits, classes).item()
    if not math.isfinite(loss):
        raise run.failed(
            f"the validation loss is {loss} after epoch {len(run.history) + 1}; "
            f"try a smaller --lr than {settings.lr:g}"
        )
    return loss, int((logits.argmax(1) == classes).sum()) / len(classes)
