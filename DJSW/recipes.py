r"""How networks are trained: the table of recipes.

``standard`` is Adam at 0.001 and nothing else. ``tuned`` is, for each dataset, what did best on its
validation images (``docs/recipes.md`` has what was tried).

Expected of ``tuned``, over ``--seed 1`` to ``5``: test accuracy, mean +- standard deviation, and
minutes of one run on one of two busy cores of an AMD EPYC::

    DJSW/main.py --username sigurd --exp_name smlp_tuned_1 --seed 1 --output_dir weights/SMLP \
        --recipe tuned --train                                    0.9941 +- 0.0007    5 to 7
    DJSW/main.py --username waly --exp_name wmlp_tuned_1 --seed 1 --output_dir weights/WMLP \
        --recipe tuned --train                                    0.9776 +- 0.0022    1 to 2
    DJSW/main.py --username dennis --exp_name dmlp_tuned_1 --seed 1 --output_dir weights/DMLP \
        --recipe tuned --train                                    0.9992 +- 0.0002    6 to 13

Expected of ``standard``, in the same order: 0.9763 +- 0.0020, 0.9519 +- 0.0019 and
0.9941 +- 0.0007, in seconds. Expected of ``distilled``, which takes two to three times as long:
0.9949 +- 0.0003, 0.9792 +- 0.0017 and 0.9991 +- 0.0004.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from utils.engine.schedules import SCHEDULES
from utils.errors import UsageError


@dataclass(frozen=True)
class Augmentation:
    """How far training images are transformed at random, each time they are seen.

    :ivar rotation: up to this, to either side, in degrees.
    :ivar scale: of height and of width, up to this share.
    :ivar shear: up to this, in pixels of a row for each pixel of height.
    :ivar shift: of either coordinate, up to this, in pixels.
    :ivar elastic: standard deviation of the smooth random displacement of a pixel, along either
        side, in pixels.
    :ivar nodes: along a side, 2 or more, between which displacements are interpolated: more are
        finer.
    """

    rotation: float
    scale: float
    shear: float
    shift: float
    elastic: float
    nodes: int


@dataclass(frozen=True)
class Recipe:
    """What decides a run besides its network, its data and its seed.

    :ivar num_epochs: times that each training image is seen.
    :ivar batch_size: images of a step, on all ranks together.
    :ivar lr: learning rate of Adam; its maximum, where the schedule changes it.
    :ivar schedule: a key of :data:`utils.engine.schedules.SCHEDULES`.
    :ivar weight_decay: of AdamW: each step subtracts that share, times ``lr``, of each parameter.
    :ivar augmentation: of the training images.
    :ivar teacher_weight: share of the teachers' probabilities in what is learned, above 0 and up to
        1; the rest is the true class. ``None`` without teachers.
    """

    num_epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 0.0
    augmentation: Augmentation | None = None
    teacher_weight: float | None = None


@dataclass(frozen=True)
class Settings(Recipe):
    """A recipe with the flags applied, and what else decides the result of a run."""

    recipe: str = "standard"
    seed: int = 42
    fold: str | None = None


#: Augmentations by name, the weakest first.
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "weak": Augmentation(6, 0.05, 0.08, 0.5, elastic=0.4, nodes=6),
    "medium": Augmentation(12, 0.1, 0.15, 1, elastic=0.8, nodes=6),
    "strong": Augmentation(16, 0.15, 0.25, 1.5, elastic=1.2, nodes=6),
}
#: Recipe -> dataset -> its values. USPS has a sixth of MNIST's images.
RECIPES: dict[str, dict[str, Recipe]] = {
    "standard": {
        "mnist_4_9": Recipe(),
        "usps_0_6": Recipe(num_epochs=100),
        "mnist_0_3": Recipe(),
    },
    "tuned": {
        "mnist_4_9": Recipe(
            num_epochs=600,
            batch_size=128,
            lr=3e-3,
            schedule="one_cycle",
            weight_decay=0.05,
            augmentation=AUGMENTATIONS["medium"],
        ),
        "usps_0_6": Recipe(
            num_epochs=1200,
            batch_size=128,
            lr=4e-3,
            schedule="one_cycle",
            augmentation=Augmentation(12, 0.12, 0.2, 1, elastic=0.8, nodes=6),
        ),
        "mnist_0_3": Recipe(
            num_epochs=300,
            batch_size=128,
            lr=2e-3,
            schedule="one_cycle",
            augmentation=AUGMENTATIONS["medium"],
        ),
    },
}
#: Those that learn from the networks of five tuned runs; docs/recipes.md has what was tried.
RECIPES["distilled"] = {
    name: replace(recipe, teacher_weight=0.9) for name, recipe in RECIPES["tuned"].items()
}
#: A third of tuned's: a step with five teachers of DMLP's size takes three times as long.
RECIPES["distilled"]["mnist_0_3"] = replace(RECIPES["distilled"]["mnist_0_3"], num_epochs=100)
#: Values of a recipe that a flag replaces.
FLAGS = (
    *("num_epochs", "batch_size", "lr", "schedule", "weight_decay", "augmentation"),
    "teacher_weight",
)
#: Search -> what ``sweep.py --search`` tries: a list of values, or lowest and highest of a number
#: that is drawn on a logarithmic scale.
SEARCHES: dict[str, dict[str, list[Any] | tuple[float, float]]] = {
    "recipe": {
        "num_epochs": [20, 40, 80],
        "batch_size": [32, 64, 128, 256],
        "lr": (3e-4, 1e-2),
        "schedule": [*SCHEDULES],
        "weight_decay": (1e-3, 1.0),
        "augmentation": [*AUGMENTATIONS],
    },
}


def settings(args: Any, dataset: str) -> Settings:
    """Return the recipe that ``args`` name for a dataset, with the flags applied.

    A dataset without an entry has the default ``standard``.

    :raises UsageError: there is no such recipe for the dataset.
    """
    recipe = RECIPES[args.recipe].get(dataset, Recipe() if args.recipe == "standard" else None)
    if recipe is None:
        raise UsageError(
            f"there is no recipe {args.recipe!r} for {dataset}; give --recipe standard, with "
            "--augmentation perhaps, or add one to DJSW/recipes.py"
        )
    if recipe.schedule not in SCHEDULES:
        raise UsageError(
            f"DJSW/recipes.py: {args.recipe} has the unknown schedule {recipe.schedule!r}; choose "
            f"from {', '.join(SCHEDULES)}"
        )
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    if "augmentation" in given:
        given["augmentation"] = AUGMENTATIONS[given["augmentation"]]
    rest = {name: getattr(args, name) for name in ("recipe", "seed", "fold")}
    return Settings(**{**vars(recipe), **given, **rest})


def flags_of(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that give recorded settings; an unnamed augmentation is the recipe's."""
    flags = {name: recorded.get(name) for name in (*FLAGS, "recipe", "seed", "fold")}
    named = {name: a and asdict(a) for name, a in AUGMENTATIONS.items()}
    found = (name for name, values in named.items() if values == recorded.get("augmentation"))
    return {**flags, "augmentation": next(found, None)}
