"""What ``train_model`` and ``evaluate_model`` take: the flags of ``DJSW/main.py``, typed."""

from argparse import ArgumentTypeError
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from DJSW.pipelines import DATASETS, PEOPLE
from DJSW.recipes import RECIPES
from utils import cli
from utils.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")
_CHOICES: dict[str, Collection[str]] = {
    "username": PEOPLE,
    "dataset": DATASETS,
    "recipe": RECIPES,
    "device": DEVICES,
}
_PARSERS = {
    "exp_name": cli.experiment_name,
    "num_epochs": cli.positive_int,
    "batch_size": cli.positive_int,
    "lr": cli.positive_float,
    "seed": cli.seed,
    "patience": cli.positive_int,
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags that training and evaluation share; paths as on the command line.

    :raises UsageError: a value is not one that the flag takes.
    """

    username: str
    exp_name: str
    output_dir: str | Path
    dataset: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if value is None:
                continue
            if name in _CHOICES and value not in _CHOICES[name]:
                raise UsageError(f"--{name} {value!r}: choose from {', '.join(_CHOICES[name])}")
            try:
                if name in _PARSERS:
                    _PARSERS[name](str(value))
            except ArgumentTypeError as error:
                raise UsageError(f"--{name}: {error}") from None

    @classmethod
    def of(cls, args: Any) -> Self:
        """Read the fields from the attributes of ``args``; a missing one has its default."""
        if isinstance(args, cls):
            return args
        names = [field.name for field in fields(cls) if hasattr(args, field.name)]
        try:
            return cls(**{name: getattr(args, name) for name in names})
        except TypeError as error:
            raise UsageError(f"{cls.__name__}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments):
    """The flags of a training; None takes the recipe's value.

    :ivar load_checkpoint: weights to start from.
    """

    load_checkpoint: str | Path | None = None
    recipe: str = "standard"
    num_epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 42
    patience: int | None = None
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(Arguments):
    """The flags of an evaluation.

    :ivar load_checkpoint: weights to evaluate.
    """

    load_checkpoint: str | Path
