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
from utils.records.checkpoint import Checkpoint, load_weights, require_fit
from utils.records.files import ROOT
from utils.records.typed import shown

#: What follows a layer's name in the name of a tensor, such as ``.weight``.
TENSOR = re.compile(r"\.parametrizations\..*|\.[^.]*$")


def build_model(
    username: str,
    dataset: str,
    checkpoint: Checkpoint | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    partly: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a person's network for a dataset, and the arguments it was built with.

    The weights are random, or the checkpoint's. A checkpoint also has its own arguments; a bare
    state dict shows its depth, where the network has ``arguments_of(weights)``.

    :param changes: arguments that replace those of the entry, as by ``--set``.
    :param partly: the checkpoint may be of other classes or another image size; layers that depend
        on what differs stay random.
    :raises UsageError: the network cannot be imported or built, or does not take the arguments; or
        the checkpoint is of another network, or of other classes, or no layer could be kept.
    """
    network, arguments, sizes = _network(username), {}, _sizes(username, dataset)
    if checkpoint is not None:
        other = _check_fit(checkpoint, username, dataset)
        if other and not partly:
            raise other
        if checkpoint.metadata:
            arguments = dict(checkpoint.metadata["model"]["arguments"])
        elif hasattr(network, "arguments_of"):
            arguments = network.arguments_of(checkpoint.weights)
        for name in sizes:
            arguments.pop(name, None)
    try:
        count = sum(each.numel() for each in checkpoint.weights.values()) if checkpoint else 0
        for name, value in arguments.items():  # sizes that take minutes or gigabytes
            if isinstance(value, int) and abs(value) > count:
                raise UsageError(f"{shown(name)} is {value}, it holds {count:,} weights")
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
        drawn: set[str] | None = None
        if partly:
            classes = sizes.keys() & {PEOPLE[username].output_argument} if other else ()
            doubled = ({name: 2 * sizes[name] for name in names} for names in (classes, sizes))
            drawn = _to_draw(model, checkpoint, *({**arguments, **each} for each in doubled))
            if other and drawn is None:
                raise other
        require_fit(model, checkpoint, drawn or ())
        with _told_of(username, what):
            model = network(**arguments)
        load_weights(model, checkpoint, drawn or ())
    return model, arguments


def kept_layers(model: nn.Module, checkpoint: Checkpoint) -> dict[str, bool]:
    """Return for each layer whether its weights are the checkpoint's."""
    kept: dict[str, bool] = {}
    for name, tensor in model.state_dict().items():
        layer, own = TENSOR.sub("", name), checkpoint.weights[name].to(tensor.dtype)
        kept[layer] = kept.get(layer, True) and torch.equal(tensor, own)
    return kept


def _to_draw(model: nn.Module, checkpoint: Checkpoint, *doubled: Any) -> set[str] | None:
    """Return the tensors of layers for other classes or another image size; None if that is all.

    :param doubled: arguments with twice the classes, if these differ, and with twice all sizes:
        a dimension depends on them if it is another in such a network.
    """
    built = [model, *(_without_memory(type(model), arguments) for arguments in doubled)]
    states = [checkpoint.weights, *(each.state_dict() if each else {} for each in built)]
    found, own, by_classes, by_sizes = ({n: state[n].shape for n in state} for state in states)
    layers = {TENSOR.sub("", n) for n in own if not found.get(n) == own[n] == by_classes.get(n)}
    drawn = set()
    for name in own.keys() & found.keys():  # other differences are errors
        sizes = zip(own[name], found[name], by_sizes.get(name, own[name]), strict=False)
        if TENSOR.sub("", name) in layers and all(a == b or a != c for a, b, c in sizes):
            drawn.add(name)
    return None if drawn == own.keys() else drawn


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
            f"({', '.join(map(str, takes.values()))}): {error}; mend input_argument, "
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
            raise UsageError(f"{name} returns values that are not finite; mend forward()")
        if train:
            if not _weights_behind(logits) <= {*trial.parameters()} or not logits.requires_grad:
                raise UsageError(
                    f"{name}'s logits come from other weights than its parameters; make layers "
                    "attributes (lists of them nn.ModuleList), without detach()"
                )
            Adam(trial, lr=0.1)
            classes = torch.arange(images) % expected[1]
            gradients_of(trial)(batch, classes, images)
    if logits.min() >= 0 and logits.max() <= 1:
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


def _check_fit(checkpoint: Checkpoint, username: str, dataset: str) -> UsageError | None:
    """Compare what a checkpoint says about itself with the person; return the error of classes."""
    if not checkpoint.metadata:
        return None
    model_name = checkpoint.metadata["model"]["name"]
    if model_name != PEOPLE[username].model_name:
        owners = [name for name, person in PEOPLE.items() if person.model_name == model_name]
        raise UsageError(
            f"{checkpoint.path} holds {shown(model_name)}, {username} runs "
            f"{PEOPLE[username].model_name}; give --username "
            f"{' or '.join(owners) or 'of the person who runs it'}"
        )
    entry, metadata = DATASETS[dataset], checkpoint.metadata
    own, other = (metadata["classes"], metadata.get("class_names")), ([*entry.labels], entry.names)
    if own == other:
        return None
    of_digits = "" if own[1] else "the digits "
    return UsageError(
        f"{checkpoint.path} distinguishes {of_digits}{shown(own[1] or own[0])}, {dataset} "
        f"holds {other[1] or other[0]}; give --dataset {shown(metadata['dataset']['name'])}"
    )
