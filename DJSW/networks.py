"""Networks of the table: built for a dataset, tried on a batch, recognized in checkpoints."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from DJSW.pipelines import DATASETS, PEOPLE, import_object
from utils.engine.backward import gradients_of
from utils.errors import UsageError
from utils.records.checkpoint import Checkpoint, load_weights
from utils.records.files import ROOT


def build_model(
    username: str,
    dataset: str,
    checkpoint: Checkpoint | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a person's network for a dataset, and the arguments it was built with.

    The weights are random, or the checkpoint's. A checkpoint also has its own arguments; a bare
    state dict shows its depth, where the network has ``arguments_of(weights)``.

    :param changes: arguments that replace those of the entry, as by ``--set``.
    :raises UsageError: the network cannot be imported or built, or does not take the arguments; or
        the checkpoint is of another network, or of other classes.
    """
    network, arguments = _network(username), {}
    if checkpoint is not None:
        _check_fit(checkpoint, username, dataset)
        if checkpoint.metadata:
            arguments = dict(checkpoint.metadata["model"]["arguments"])
        elif hasattr(network, "arguments_of"):
            arguments = network.arguments_of(checkpoint.weights)
        for name in _sizes(username, dataset):
            arguments.pop(name, None)
    try:
        arguments = model_arguments(username, dataset, {**arguments, **(changes or {})})
        with _told_of(username, f"{network.__name__} cannot be built with {arguments}"):
            model: nn.Module = network(**arguments)
    except UsageError as error:
        if checkpoint is None or changes:
            raise
        raise UsageError(
            f"{checkpoint.path} was made with {arguments}, which {network.__name__} does not take "
            f"({error}); use the version that wrote it"
        ) from None
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model, arguments


def model_arguments(
    username: str, dataset: str, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return all arguments of a person's network: the entry's, the dataset's and the defaults.

    Defaults are among them, and so in records, so that a default can change without harm.

    :raises UsageError: the network does not take them, or ``changes`` has one of the dataset's.
    """
    network, changes = _network(username), changes or {}
    sizes, takes = _sizes(username, dataset), signature(network).parameters
    for name in changes:
        if name in sizes:
            raise UsageError(f"{name} is {sizes[name]} by the dataset {dataset}; do not set it")
        if name not in takes:
            raise UsageError(
                f"{network.__name__} has no argument {name!r}; it has {', '.join(takes)}"
            )
    try:
        bound = signature(network).bind(**{**PEOPLE[username].arguments, **changes, **sizes})
    except TypeError as error:
        raise UsageError(
            f"DJSW/pipelines.py: the entry of {username} does not fit {network.__name__}"
            f"({', '.join(map(str, takes.values()))}): {error}; mend input_argument, "
            "output_argument or arguments"
        ) from None
    bound.apply_defaults()
    return dict(bound.arguments)


def _sizes(username: str, dataset: str) -> dict[str, int]:
    """Return the arguments that the dataset decides."""
    person, entry = PEOPLE[username], DATASETS[dataset]
    height, width = entry.image_size
    sizes = {person.input_argument: height * width, person.output_argument: len(entry.digits)}
    return {name: size for name, size in sizes.items() if name is not None}


def try_model(model: nn.Module, username: str, dataset: str, *, train: bool) -> None:
    """Pass two random images through a copy of the network, in training backward too.

    A warning is printed where the outputs are probabilities.

    :raises UsageError: it fails, has nothing to train, or does not return logits (2, classes).
    """
    entry, name = DATASETS[dataset], type(model).__name__
    images = torch.rand(2, 1, *entry.image_size, generator=torch.Generator().manual_seed(0))
    expected, trial = (2, len(entry.digits)), copy.deepcopy(model).train(train)
    if train and not any(each.requires_grad for each in trial.parameters()):
        raise UsageError(f"{name} has no parameters to train; give it a layer")
    given = f"images {tuple(images.shape)} of {dataset}"
    failing = f"{name} fails on a batch of {given}"
    with torch.random.fork_rng(devices=[]):  # dropout draws
        with _told_of(username, failing), torch.no_grad():
            logits = trial(images)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else repr(logits)
            raise UsageError(
                f"{name} gives {found} for {given}, expected {expected}: one logit for each class"
            )
        if train:
            for parameter in trial.parameters():
                parameter.grad = torch.zeros_like(parameter)
            with _told_of(username, failing):
                gradients_of(trial)(images, torch.tensor([0, expected[1] - 1]), 2)
    if logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-4:
        print(
            f"warning     {name} returns probabilities; return logits, without softmax: the loss "
            "applies it"
        )


def identify_checkpoint(checkpoint: Checkpoint, dataset: str | None = None) -> tuple[str, str]:
    """Return whose network a checkpoint holds, and the dataset of its classes.

    A checkpoint says both; a bare state dict is of the first person whose network it fits.

    :param dataset: the dataset, where it is known.
    :raises UsageError: it fits nobody's network.
    """
    metadata, reason = checkpoint.metadata, None
    for username, person in PEOPLE.items():
        if metadata and metadata["model"]["name"] != person.model_name:
            continue
        own = metadata["dataset"]["name"] if metadata else person.dataset
        for name in [dataset] if dataset else [own, *DATASETS]:
            if name not in DATASETS:
                continue
            try:
                build_model(username, name, checkpoint)
            except UsageError as error:
                reason = reason or error
            else:
                return username, name
    if reason and metadata:
        raise reason
    raise UsageError(
        f"{checkpoint.path} fits no network of DJSW/pipelines.py on {dataset or 'any dataset'}; "
        f"give a checkpoint of {', '.join(PEOPLE)}"
    )


def _network(username: str) -> Any:
    """Import a person's network."""
    model = PEOPLE[username].model
    with _told_of(username, f"{username}'s network {model!r} cannot be imported"):
        network = import_object(model)
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise UsageError(f"{username}'s network {model!r} is not a class of torch.nn.Module")
    return network


@contextmanager
def _told_of(username: str, what: str) -> Iterator[None]:
    """Raise an error of somebody's network as a sentence with the line of their file.

    :raises UsageError: the block raised an exception.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # their code may raise anything
        module = PEOPLE[username].model.partition(":")[0]
        file = Path(*module.split(".")).with_suffix(".py")
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == ROOT / file
        ]
        if isinstance(error, SyntaxError) and error.filename == str(ROOT / file):
            lines.append(error.lineno)
        where = f"{file.as_posix()}, line {lines[-1]}" if lines else "DJSW/pipelines.py"
        message = " ".join(str(error).split())
        raise UsageError(f"{where}: {what}: {type(error).__name__}: {message}") from None


def _check_fit(checkpoint: Checkpoint, username: str, dataset: str) -> None:
    """Compare what a checkpoint says about itself with the person and the dataset."""
    if not checkpoint.metadata:
        return
    model_name = checkpoint.metadata["model"]["name"]
    if model_name != PEOPLE[username].model_name:
        owners = [name for name, person in PEOPLE.items() if person.model_name == model_name]
        raise UsageError(
            f"{checkpoint.path} holds {model_name}, {username} runs {PEOPLE[username].model_name}; "
            f"give --username {' or '.join(owners) or 'of the person who runs it'}"
        )
    classes, digits = checkpoint.metadata["classes"], list(DATASETS[dataset].digits)
    if classes != digits:
        raise UsageError(
            f"{checkpoint.path} distinguishes the digits {classes}, {dataset} holds {digits}; "
            f"give --dataset {checkpoint.metadata['dataset']['name']}"
        )
