"""Training: ``train_model(args)``, and the one loop for all networks."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from DJSW import recipes
from DJSW.arguments import TrainArguments
from DJSW.networks import identify_checkpoint, start_from, try_model
from DJSW.pipelines import DATASETS, dataset_of, open_split
from DJSW.recipes import Settings
from utils.distributed import collectives
from utils.distributed.device import choose_device
from utils.engine.augmentation import augmenter
from utils.engine.backward import gradients_of
from utils.engine.batches import (
    Samples,
    batches,
    confusion_matrix,
    load_rows,
    loss_and_accuracy,
    one_ahead,
)
from utils.engine.checkpointer import Checkpointer, noting_errors, require_finite
from utils.engine.distillation import Teachers
from utils.engine.history import History, Row, epoch_line
from utils.engine.optimizer import Adam
from utils.engine.schedules import SCHEDULES
from utils.engine.seeds import AUGMENTATION, DROPOUT, derive_seed, epoch_order, split_rows
from utils.engine.signals import stop_request
from utils.engine.trackers import MLflow, TensorBoard, log
from utils.errors import Diverged, UsageError
from utils.mnist_dataset import MnistH5Dataset
from utils.records.checkpoint import Checkpoint, count_parameters, describe, load_checkpoint
from utils.records.files import find_file, find_folder, relative_to_root, require_distinct
from utils.records.provenance import provenance
from utils.records.run_files import RunFiles

#: tqdm's own lock is a semaphore, which a worker that is stopped may leak.
tqdm.set_lock(threading.RLock())
AfterEpoch = Callable[[Row], None]
#: Returns the targets (B,) or (B, classes) of images (B, channels, H, W) with classes (B,).
Targets = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingResult:
    """What a run made: a row for each epoch, and the paths of its files."""

    history: History
    files: RunFiles


@dataclass(frozen=True)
class TrainingJob:
    """A run that is ready to start; ``rows`` are those to train on and to validate with."""

    model: nn.Module
    data: MnistH5Dataset
    rows: tuple[Tensor, Tensor]
    settings: Settings
    files: RunFiles
    metadata: dict[str, Any]
    teachers: list[nn.Module]


def train_model(args: Any, after_epoch: AfterEpoch | None = None) -> TrainingResult:
    """Train a person's network; as one of several ranks where the process is one.

    :param args: :class:`TrainArguments`, or anything with the flags as attributes.
    :param after_epoch: called with each finished epoch; it may raise ``Pruned`` to end the run.
    :raises UsageError: a flag is wrong, or the name is taken.
    :raises RunError: the data are missing or damaged, or the loss is not finite.
    :raises Stopped: a signal came; the state is saved.
    """
    args = TrainArguments.of(args)
    device = choose_device(args.device)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)  # a resumed run has the same bits
    with ExitStack() as stack:
        devices = stack.enter_context(collectives.process_group(device))
        stack.enter_context(stop_request.watch())
        with collectives.rank_zero_first():
            job = prepare_training(args)
            collectives.refuse_batch_norm(job.model)
            print(f"device      {collectives.describe_devices(device, devices)}", flush=True)
            if collectives.rank() == 0:
                stack.enter_context(job.files.locked())
        kinds = [TensorBoard, MLflow] if os.environ.get("MLFLOW_TRACKING_URI") else [TensorBoard]
        trackers = [kind(job.files, job.metadata) for kind in kinds]
        checkpointer = Checkpointer(job.files, job.metadata, provenance(device, devices), trackers)
        training, validation = (load_rows(job.data, device, rows) for rows in job.rows)
        model, targets, settings = job.model.to(device), true_classes, job.settings
        if settings.teacher_weight:
            teachers = [teacher.to(device) for teacher in job.teachers]
            targets = Teachers(teachers, settings.teacher_weight)
        history = train_pipeline(
            model,
            training,
            validation,
            settings,
            checkpointer,
            targets=targets,
            resume=args.resume,
            after_epoch=after_epoch,
        )
        confusion = confusion_matrix(model, validation)
        if collectives.rank() == 0:
            from utils.report.figures import save_curves  # matplotlib: half a second

            title = f"{type(model).__name__} on {job.metadata['dataset']['name']}"
            save_curves(job.files.curves, title, history.rows)
            if not checkpointer.was_finished:
                log(checkpointer.trackers, "finish", confusion)
        if stop_request.signal:
            print(f"note        {stop_request.signal} came after the last step: nothing is lost")
        best = history.best
        print(
            f"best        epoch {best['epoch']}, validation loss {best['validation_loss']:.4f}, "
            f"accuracy {best['validation_accuracy']:.4f}\n"
            f"record      {job.files.record}\n"
            f"curves      {job.files.curves}\n"
            f"checkpoint  {job.files.best_checkpoint}"
        )
    return TrainingResult(history, job.files)


def prepare_training(args: TrainArguments) -> TrainingJob:
    """Validate the arguments, create missing data, build the model; print what will run."""
    files = RunFiles(find_folder(args.output_dir, "--output_dir"), args.exp_name)
    if not (args.resume and files.state.exists()):
        files.require_new()
    dataset = args.dataset or dataset_of(args.username)
    settings = recipes.settings(args, dataset)
    if bool(args.teachers) != bool(settings.teacher_weight):
        given, lacks = f"--teacher_weight {settings.teacher_weight}", "--teachers"
        if args.teachers:
            given, lacks = lacks, "--teacher_weight, or --recipe distilled, which has one"
        raise UsageError(f"{given} needs {lacks} (docs/recipes.md#distilled)")
    file = args.load_checkpoint
    start = None if file is None else load_checkpoint(find_file(file, "--load_checkpoint"))
    taught_by = [find_file(each, "--teachers") for each in args.teachers or ()]
    require_distinct(taught_by, "--teachers")
    teachers = [*map(load_checkpoint, taught_by)]
    torch.manual_seed(settings.seed)
    changes = dict(args.set or {})
    model, arguments, kept, new = start_from(start, args.username, dataset, changes)
    data = open_split(dataset, train=True)
    rows = split_rows(len(data), settings.fold, data.writers)
    smallest = (len(rows[0]) - 1) % settings.batch_size + 1  # images of an epoch's last batch
    try_model(model, args.username, dataset, min(smallest, 2), train=True)
    metadata: dict[str, Any] = {
        "exp_name": args.exp_name,
        "username": args.username,
        "model": {"name": type(model).__name__, "arguments": arguments},
        "dataset": {
            "name": dataset,
            "file": relative_to_root(data.h5_path),
            "source": data.source,
            **data.sha256,
            **(data.authors_sha256 if (settings.fold or "").endswith("/writers") else {}),
        },
        "classes": list(DATASETS[dataset].labels),
        **({"class_names": DATASETS[dataset].names} if DATASETS[dataset].names else {}),
        "settings": asdict(settings),
        "starting_weights": start and {**start.source(), **({"kept": kept} if kept else {})},
    }
    if teachers:
        metadata["teachers"] = [each.source() for each in teachers]
    networks = [build_teacher(each, dataset, settings) for each in teachers]
    print(f"{args.username} trains {describe(model)} on {dataset}")
    print(f"parameters  {count_parameters(model):,}")
    if args.set:
        print(f"arguments   {', '.join(f'{name} {value}' for name, value in arguments.items())}")
    print(f"data        {data.h5_path}")
    print(f"images      {len(rows[0])} for training, {len(rows[1])} for validation")
    if start:
        print(f"start from  {start.path}")
    if kept:
        print(f"kept        {', '.join(kept)} (initialized: {', '.join(new) or 'none'})")
    for teacher in teachers:
        print(f"teacher     {teacher.path}")
    print(f"output      {files.folder}", flush=True)
    return TrainingJob(model, data, rows, settings, files, metadata, networks)


def build_teacher(checkpoint: Checkpoint, dataset: str, settings: Settings) -> nn.Module:
    """Return the network of a checkpoint, whoever's it is.

    :raises UsageError: it is of other classes, or was trained on what validates this run.
    """
    *_, model = identify_checkpoint(checkpoint, dataset)
    recorded = checkpoint.metadata.get("settings")
    if recorded is not None and recorded.get("fold") != settings.fold:
        raise UsageError(
            f"{checkpoint.path} was trained with --fold {recorded.get('fold')}, here it is "
            f"{settings.fold}: it has seen validation images; give the same fold"
        )
    return model


def true_classes(images: Tensor, classes: Tensor) -> Tensor:
    """Return the classes: the targets where there are no teachers."""
    return classes


def train_pipeline(
    model: nn.Module,
    training: Samples,
    validation: Samples,
    settings: Settings,
    checkpointer: Checkpointer,
    *,
    targets: Targets = true_classes,
    resume: bool = False,
    after_epoch: AfterEpoch | None = None,
) -> History:
    """Train ``model`` with cross-entropy; ``checkpointer`` keeps the results.

    Every rank calls it with the same model, on the device to train on, and the same data.
    """
    history = checkpointer.history
    optimizer = Adam(model, settings.lr, settings.weight_decay)
    with noting_errors(checkpointer):
        checkpointer.start(model, optimizer, settings.num_epochs, resume=resume)
        if checkpointer.was_finished:
            print("finished    before; nothing to do")
        elif history.rows or len(checkpointer.losses):
            print(f"resumed     after {len(history)} epochs and {len(checkpointer.losses)} steps")
        while len(history) < settings.num_epochs:
            started = time.perf_counter() - checkpointer.seconds
            epoch = len(history) + 1
            losses = train_epoch(checkpointer, training, settings, targets)
            speed = len(training) / (time.perf_counter() - started)
            loss, accuracy = loss_and_accuracy(model, validation)
            if not math.isfinite(loss):
                raise Diverged(
                    f"the validation loss is {loss} after epoch {epoch}; give a smaller --lr"
                )
            row: Row = {
                "epoch": epoch,
                "train_loss": losses.sum(dtype=torch.float64).item() / len(training),
                "validation_loss": loss,
                "validation_accuracy": accuracy,
                "learning_rate": optimizer.lr,
                "seconds": time.perf_counter() - started,
            }
            checkpointer.after_epoch(row)
            print(epoch_line(row, settings.num_epochs, speed), flush=True)
            if after_epoch:
                after_epoch(row)
            if epoch == 1:
                _warn_if_worse_than_a_guess(loss, len(checkpointer.metadata["classes"]))
        checkpointer.finish()
    return history


def _warn_if_worse_than_a_guess(loss: float, classes: int) -> None:
    guess = math.log(classes)
    if loss > guess:
        print(
            f"warning     the validation loss {loss:.5g} is above {guess:.5g}, that of a guess; "
            "change --lr, or check the network",
            flush=True,
        )


def train_epoch(
    checkpointer: Checkpointer,
    training: Samples,
    settings: Settings,
    targets: Targets = true_classes,
) -> Tensor:
    """Run the epoch, from the resumed step if any; return each step's loss, summed over images."""
    model, optimizer = checkpointer.model.train(), checkpointer.optimizer
    epoch, done = len(checkpointer.history) + 1, len(checkpointer.losses)
    losses = checkpointer.start_epoch(math.ceil(len(training) / settings.batch_size))
    schedule, steps = SCHEDULES[settings.schedule], settings.num_epochs * len(losses)
    gradients = gradients_of(model)
    height, width = training.images.shape[-2:]
    augment = augmenter(settings.augmentation, (height, width), losses.device)
    dropout_seed = derive_seed(settings.seed, epoch, DROPOUT, collectives.rank())
    augmentation_seed = derive_seed(settings.seed, epoch, AUGMENTATION)
    order = epoch_order(len(training), settings.seed, epoch)[done * settings.batch_size :]
    rest = batches(training, order, settings.batch_size)

    def prepared() -> Iterator[tuple[Tensor, Tensor, int]]:
        for step, (images, classes, batch_size) in enumerate(rest, start=done):
            augmented = augment(images, batch_size, augmentation_seed + step)
            yield augmented, targets(augmented, classes), batch_size

    slow = settings.augmentation is not None or targets is not true_classes
    ready = one_ahead(prepared(), wanted=slow and losses.is_cpu)
    hidden = True if collectives.rank() else None  # None: shown on a terminal
    bar = tqdm(ready, f"epoch {epoch}", len(losses), initial=done, leave=False, disable=hidden)
    for step, (images, wanted, batch_size) in enumerate(bar, start=done):
        gradients.seed(dropout_seed + step)
        optimizer.lr = settings.lr * schedule((epoch - 1) * len(losses) + step, steps)
        loss = gradients(images, wanted, batch_size)
        collectives.all_reduce_sum(optimizer.gradients, loss)
        losses[step] = loss
        optimizer.step()
        checkpointer.after_step(step)
    require_finite(losses, epoch)
    return losses.cpu()
