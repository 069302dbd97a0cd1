"""Networks of the table: built for a dataset, tried on a batch, recognized in checkpoints."""

from __future__ import annotations

import copy
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from DJSW.pipelines import DATASETS, PEOPLE, import_object
from utils.engine.backward import gradients_of
from utils.engine.optimizer import Adam
from utils.errors import UsageError
from utils.records.checkpoint import Checkpoint, describe, require_fit
from utils.records.files import ROOT
from utils.records.typed import shown

#: What follows a layer's name in the names of its tensors, such as ``.weight``.
TENSOR = re.compile(r"\.parametrizations\..*|\.[^.]*$")


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
        _check_person(checkpoint, username)
        if not _same_classes(checkpoint, dataset):
            entry, metadata = DATASETS[dataset], checkpoint.metadata
            names = metadata.get("class_names")
            own = f"{'' if names else 'the digits '}{shown(names or metadata['classes'])}"
            raise UsageError(
                f"{checkpoint.path} distinguishes {own}, {dataset} holds "
                f"{entry.names or [*entry.labels]}; it fits the dataset "
                f"{shown(metadata['dataset']['name'])}"
            )
        arguments = _recorded_arguments(checkpoint, username, dataset)
    try:
        arguments = model_arguments(username, dataset, {**arguments, **(changes or {})})
        what = f"{network.__name__} cannot be built with {shown(arguments)}"
        model = None if checkpoint is None else _without_memory(network, arguments)
        if model is None:
            with _told_of(username, what):
                model = network(**arguments)
    except UsageError as error:
        if checkpoint is None or changes:
            raise
        raise UsageError(
            f"{checkpoint.path} was made with {shown(arguments)}, which {network.__name__} does "
            f"not take ({error}); use the version that wrote it"
        ) from None
    if checkpoint is not None:
        require_fit(model, checkpoint)
        with _told_of(username, what):
            model = network(**arguments)
        model.load_state_dict(checkpoint.weights)
    return model, arguments


def start_from(
    checkpoint: Checkpoint | None, username: str, dataset: str, changes: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any], list[str], list[str]]:
    """Return what :func:`build_model` does, and the names of the layers kept and of the new ones.

    A checkpoint may also be for other classes or another image size: layers that fit keep its
    weights, the others are random, and so are those whose shapes depend on the classes, if these
    differ. Both lists are empty where there is no such difference.

    :raises UsageError: as :func:`build_model`; or no layer fits.
    """
    try:
        return *build_model(username, dataset, checkpoint, changes), [], []
    except UsageError as error:
        if checkpoint is None:
            raise
        reason = error
    _check_person(checkpoint, username)
    try:
        recorded = _recorded_arguments(checkpoint, username, dataset)
        model, arguments = build_model(username, dataset, None, {**recorded, **changes})
    except UsageError:
        raise reason from None
    output, more = PEOPLE[username].output_argument, dict(arguments)
    if output and not _same_classes(checkpoint, dataset):
        more[output] *= 2
    larger = _without_memory(type(model), more)
    states = (checkpoint.weights, model.state_dict(), larger.state_dict() if larger else {})
    found, own, doubled = ({name: each.shape for name, each in state.items()} for state in states)
    if larger is None or found.keys() != own.keys():
        raise reason
    # With twice the classes, the layers that depend on them have other shapes.
    layer_of = {name: TENSOR.sub("", name) for name in own}
    new = {layer_of[name] for name in own if not found[name] == own[name] == doubled[name]}
    layers = dict.fromkeys(layer_of.values())
    kept = [layer for layer in layers if layer not in new]
    if not kept:
        raise UsageError(
            f"{checkpoint.path} does not fit {describe(model)} on {dataset}: no layer could be kept"
        )
    weights = {name: checkpoint.weights[name] for name in own if layer_of[name] in kept}
    model.load_state_dict(weights, strict=False)
    return model, arguments, kept, [layer for layer in layers if layer in new]


def _recorded_arguments(checkpoint: Checkpoint, username: str, dataset: str) -> dict[str, Any]:
    """Return the arguments that a checkpoint's network was built with, but the dataset's.

    :raises UsageError: one is larger than all weights together.
    """
    network, arguments = _network(username), dict[str, Any]()
    if checkpoint.metadata:
        arguments = dict(checkpoint.metadata["model"]["arguments"])
    elif hasattr(network, "arguments_of"):
        arguments = network.arguments_of(checkpoint.weights)
    for name in _sizes(username, dataset):
        arguments.pop(name, None)
    count = sum(each.numel() for each in checkpoint.weights.values())
    for name, value in arguments.items():  # sizes that take minutes or gigabytes
        if isinstance(value, int) and abs(value) > count:
            raise UsageError(
                f"{checkpoint.path}: {shown(name)} is {value}, it holds {count:,} weights; give "
                "another file"
            )
    return arguments


def _without_memory(network: Any, arguments: Mapping[str, Any]) -> nn.Module | None:
    """Build a network of shapes alone; None where it needs values while it is built."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the network itself follows, if it fits
            model: nn.Module = network(**arguments)
    except Exception:  # their code may raise anything
        return None
    return model


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
    own = PEOPLE[username].arguments
    given = f"DJSW/pipelines.py: the entry of {username} gives {', '.join([*sizes, *own])}"
    if twice := sizes.keys() & own:
        raise UsageError(f"{given}; remove {', '.join(twice)} from arguments: the dataset gives it")
    try:
        bound = signature(network).bind(**{**own, **changes, **sizes})
    except TypeError as error:
        raise UsageError(
            f"{given}, which does not fit {network.__name__}"
            f"({', '.join(map(str, takes.values()))}): {error}; correct input_argument, "
            "output_argument or arguments"
        ) from None
    bound.apply_defaults()
    return dict(bound.arguments)


def _sizes(username: str, dataset: str) -> dict[str, int]:
    """Return the arguments that the dataset decides."""
    person, entry = PEOPLE[username], DATASETS[dataset]
    height, width = entry.image_size
    sizes = {
        person.input_argument: height * width * entry.channels,
        person.output_argument: len(entry.classes),
        person.channels_argument: entry.channels,
        person.height_argument: height,
        person.width_argument: width,
    }
    return {name: size for name, size in sizes.items() if name is not None}


def try_model(model: nn.Module, username: str, dataset: str, images: int, *, train: bool) -> None:
    """Pass so many random images through a copy of the network, in training backward too.

    A warning is printed where the outputs look like probabilities.

    :raises UsageError: it fails, changes its input, does not use its parameters, or does not return
        finite logits (images, classes).
    """
    entry, name = DATASETS[dataset], type(model).__name__
    size = (images, entry.channels, *entry.image_size)
    batch = torch.rand(size, generator=torch.Generator().manual_seed(0))
    given, expected = batch.clone(), (images, len(entry.classes))
    what = f"{name} fails on images {tuple(batch.shape)} of {dataset}"
    if any(isinstance(each, UninitializedParameter) for each in model.parameters()):
        raise UsageError(f"{name} has lazy layers, whose sizes are unknown; give the sizes")
    if train and not any(each.requires_grad for each in model.parameters()):
        raise UsageError(
            f"{name} has no parameters to train; make layers in the constructor, as attributes"
        )
    with torch.random.fork_rng(devices=[]), _told_of(username, what):  # dropout draws
        trial = copy.deepcopy(model).train(train)
        logits = trial(given)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            shape = isinstance(logits, Tensor) and tuple(logits.shape)
            raise UsageError(
                f"{name} returns {shape or f'a {type(logits).__name__}'} for images "
                f"{tuple(batch.shape)} of {dataset}, expected {expected}: one logit for each class"
            )
        if not torch.equal(given, batch):
            raise UsageError(f"{name} changes its input; let forward() work on a copy (x = x - 1)")
        if train and not logits.isfinite().all():
            raise UsageError(f"{name} returns values that are not finite; correct forward()")
        if train:
            if not _weights_behind(logits) <= {*trial.parameters()} or not logits.requires_grad:
                raise UsageError(
                    f"{name}'s logits come from other weights than its parameters; make layers "
                    "attributes (lists of them nn.ModuleList), without detach()"
                )
            Adam(trial, lr=0.1)
            classes = torch.arange(images) % expected[1]
            gradients_of(trial)(batch, classes, images)
        alike = logits.min() >= 0 and logits.max() <= 1
        if alike:  # small logits may be, by chance; those of brighter images are not
            brighter = trial(1000 * batch)
            alike = brighter.min() >= 0 and brighter.max() <= 1
    if alike:
        print(
            f"warning     {name} returns values from 0 to 1, like probabilities; return logits, "
            "without softmax or sigmoid: the loss applies it"
        )


def _weights_behind(logits: Tensor) -> set[Tensor]:
    """Return the tensors with gradients that ``logits`` are computed from."""
    found, seen, rest = set(), set(), [logits.grad_fn]
    while rest:
        node = rest.pop()
        if node is not None and node not in seen:
            seen.add(node)
            rest += [inner for inner, _ in node.next_functions]
            if hasattr(node, "variable"):
                found.add(node.variable)
    return found


def identify_checkpoint(
    checkpoint: Checkpoint, dataset: str | None = None
) -> tuple[str, str, nn.Module]:
    """Return whose network a checkpoint holds, the dataset of its classes, and the network.

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
                return username, name, build_model(username, name, checkpoint)[0]
            except UsageError as error:
                reason = reason or error
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
        raise UsageError(
            f"{username}'s network {model!r} is not a torch.nn.Module (class "
            f"{model.partition(':')[2]}(nn.Module))"
        )
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
    except (Exception, SystemExit) as error:  # their code may raise anything
        module = PEOPLE[username].model.partition(":")[0]
        file = Path(*module.split(".")).with_suffix(".py")
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == ROOT / file
        ]
        message = str(error)
        if isinstance(error, SyntaxError) and error.filename == str(ROOT / file):
            lines, message = [error.lineno], error.msg
        where = file.as_posix() if (ROOT / file).exists() else "DJSW/pipelines.py"
        where += f", line {lines[-1]}" if lines else ""
        message = " ".join(message.split())
        raise UsageError(f"{where}: {what}: {type(error).__name__}: {message}") from None


def _check_person(checkpoint: Checkpoint, username: str) -> None:
    """Compare the network that a checkpoint says it holds with the person's."""
    if not checkpoint.metadata:
        return
    model_name = checkpoint.metadata["model"]["name"]
    if model_name != PEOPLE[username].model_name:
        owners = [name for name, person in PEOPLE.items() if person.model_name == model_name]
        raise UsageError(
            f"{checkpoint.path} holds {shown(model_name)}, {username} runs "
            f"{PEOPLE[username].model_name}; give --username "
            f"{' or '.join(owners) or 'of the person who runs it'}"
        )


def _same_classes(checkpoint: Checkpoint, dataset: str) -> bool:
    """Whether a checkpoint has the dataset's classes, by label and name, as far as it says so."""
    entry, metadata = DATASETS[dataset], checkpoint.metadata
    own = [*entry.labels], entry.names
    return not metadata or (metadata["classes"], metadata.get("class_names")) == own
