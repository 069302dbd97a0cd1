"""The flags of ``DJSW/main.py``, typed: what ``train_model`` and ``evaluate_model`` take."""

from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from DJSW.pipelines import DATASETS, PEOPLE
from DJSW.recipes import AUGMENTATIONS, RECIPES, Recipe
from utils import cli
from utils.engine.schedules import SCHEDULES
from utils.errors import UsageError

_OF_RECIPE = "default: the recipe's; standard has"


def _flag(help: str, default: Any = MISSING, **options: Any) -> Any:
    """Return a field that is a flag; ``options`` are those of ``add_argument``."""
    return field(default=default, metadata={"help": help, **options})


def _people() -> str:
    return ", ".join(f"{name} ({p.model_name}, {p.dataset})" for name, p in PEOPLE.items())


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags that training and evaluation share; paths as on the command line.

    :raises UsageError: a value is not one that the flag takes.
    """

    username: str = _flag(f"whose network: {_people()}", choices=PEOPLE)
    exp_name: str = _flag("name of its files", type=cli.experiment_name)
    output_dir: str | Path = _flag("existing folder for its files")
    dataset: str | None = _flag(
        "another dataset than the person's; in an evaluation only a bare state dict needs it",
        None,
        choices=DATASETS,
    )
    device: str = _flag(
        "default auto: a GPU of NVIDIA or AMD where there is one",
        "auto",
        choices=("auto", "cpu", "cuda"),
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value, options = getattr(self, each.name), each.metadata
            if value is None or "nargs" in options or options.get("action") == "append":
                continue
            if value not in options.get("choices", [value]):
                names = ", ".join(options["choices"])
                raise UsageError(f"--{each.name}: {value!r} is unknown (choose from {names})")
            try:
                if "type" in options:
                    object.__setattr__(self, each.name, options["type"](str(value)))
            except ArgumentTypeError as error:
                raise UsageError(f"--{each.name}: {error}") from None

    @classmethod
    def of(cls, args: Any) -> Self:
        """Read the fields from the attributes of ``args``; a missing one has its default."""
        if isinstance(args, cls):
            return args
        given = {
            each.name: getattr(args, each.name) for each in fields(cls) if hasattr(args, each.name)
        }
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in given]
        if missing:
            raise UsageError(f"{cls.__name__}: no {', '.join(missing)} (set each as an attribute)")
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(Arguments):
    """The flags of an evaluation."""

    load_checkpoint: str | Path | Sequence[str | Path] = _flag(
        "weights to evaluate, or with --train to start from: a checkpoint or a state dict; of "
        "several the mean probabilities are evaluated",
        nargs="+",
        metavar="FILE",
    )

    @property
    def checkpoints(self) -> list[str | Path]:
        """The files: those of an ensemble, or one."""
        given = self.load_checkpoint
        return [given] if isinstance(given, (str, Path)) else [*given]


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments):
    """The flags of training; None takes the recipe's value."""

    load_checkpoint: str | Path | None = _flag("weights to start from", None, metavar="FILE")
    recipe: str = _flag(
        "how to train; default standard: Adam and nothing else", "standard", choices=RECIPES
    )
    num_epochs: int | None = _flag(
        f"{_OF_RECIPE} {Recipe.num_epochs}, on USPS 100", None, type=cli.positive_int
    )
    batch_size: int | None = _flag(f"{_OF_RECIPE} {Recipe.batch_size}", None, type=cli.positive_int)
    lr: float | None = _flag(
        f"(maximum) learning rate; {_OF_RECIPE} {Recipe.lr}", None, type=cli.positive_float
    )
    schedule: str | None = _flag(
        f"schedule of the learning rate; {_OF_RECIPE} {Recipe.schedule}", None, choices=SCHEDULES
    )
    weight_decay: float | None = _flag(
        f"weight decay of AdamW; {_OF_RECIPE} none", None, type=cli.non_negative_float
    )
    augmentation: str | None = _flag(
        f"random changes of the training images; {_OF_RECIPE} none", None, choices=AUGMENTATIONS
    )
    teachers: Sequence[str | Path] | None = _flag(
        "learn from the mean probabilities of these networks, too: distillation",
        None,
        nargs="+",
        metavar="FILE",
    )
    teacher_weight: float | None = _flag(
        "share of the teachers in what is learned; default: the recipe's", None, type=cli.share
    )
    seed: int = _flag(
        "seed of weights, order of images and augmentation; default 42", 42, type=cli.seed
    )
    fold: str | None = _flag(
        "validate on part K of N of the training file, instead of on a random tenth of it; with "
        "/writers on parts that share no writer",
        None,
        type=cli.fold,
        metavar="K/N[/writers]",
    )
    set: Mapping[str, Any] | Sequence[tuple[str, Any]] | None = _flag(
        "an argument of the network's constructor, instead of the entry's; may be repeated",
        None,
        type=cli.assignment,
        action="append",
        metavar="NAME=VALUE",
    )
    resume: bool = _flag(
        "continue the run of this name from its saved state, if there is one", False
    )


def add_flag(parser: Any, each: "Field[Any]", *, required: bool = True) -> None:
    """Add a field to an argparse parser or group."""
    options: dict[str, Any] = {"default": each.default, **each.metadata}
    if each.default is MISSING:
        options |= {"default": None, "required": required}
    if each.default is False:
        options["action"] = "store_true"
    parser.add_argument(f"--{each.name}", **options)
