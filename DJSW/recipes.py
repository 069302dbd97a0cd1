"""How networks are trained: the table of recipes.

``standard`` is Adam at 0.001 for every dataset, with nothing else. ``tuned`` is, for each dataset,
what did best on its validation images (``docs/recipes.md`` has what was tried).

Expected of ``tuned``, over ``--seed 1`` to ``5``: test accuracy, mean +- standard deviation, and
minutes of one training on one of two busy cores of an AMD EPYC::

    DJSW/main.py --username sigurd --exp_name smlp_tuned_1 --seed 1 --output_dir weights/SMLP \\
        --recipe tuned --train                                    0.9947 +- 0.0004    5 to 9
    DJSW/main.py --username waly --exp_name wmlp_tuned_1 --seed 1 --output_dir weights/WMLP \\
        --recipe tuned --train                                    0.9776 +- 0.0022    1.4 to 2.2
    DJSW/main.py --username dennis --exp_name dmlp_tuned_1 --seed 1 --output_dir weights/DMLP \\
        --recipe tuned --train                                    0.9992 +- 0.0002    5 to 8

Of ``standard`` (``--num_epochs 100`` for waly, 10 for the others): 0.9754 +- 0.0021,
0.9500 +- 0.0029 and 0.9940 +- 0.0007, in seconds.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from DJSW.pipelines import DATASETS
from utils.failures import UsageError


@dataclass(frozen=True)
class Deformation:
    """By how much training images are deformed, anew each time they are seen.

    :ivar rotation: at most, to either side, in degrees.
    :ivar scale: at most, of height and of width, as a share.
    :ivar shear: at most, in pixels of a row for each pixel of height.
    :ivar shift: at most, of either coordinate, in pixels.
    :ivar elastic: standard deviation of the smooth random displacement of a pixel, along either
        side, in pixels.
    :ivar nodes: along a side, 2 or more, from which the displacements are blended: the more, the
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
    """What decides a training besides its network, its data and its seed.

    :ivar num_epochs: times that each training image is seen.
    :ivar batch_size: images of a step, of all ranks together.
    :ivar lr: of Adam; the highest, where the schedule changes it.
    :ivar schedule: ``"constant"``, or ``"one_cycle"``: up in the first 30 % of the steps, then down
        to nothing.
    :ivar weight_decay: of AdamW: each step takes ``lr * weight_decay`` of a parameter away.
    :ivar label_smoothing: share of a label that is spread over all classes.
    :ivar averaging: share that the running mean of the weights keeps at each step; the mean is what
        is validated and saved. 0: no mean.
    :ivar deformation: of the training images; none: they are trained on as they are.
    """

    num_epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    averaging: float = 0.0
    deformation: Deformation | None = None


@dataclass(frozen=True)
class Settings(Recipe):
    """A recipe as the command line changes it, and the rest of what decides a training's result."""

    recipe: str = "standard"
    seed: int = 42
    patience: int | None = None


RECIPES: dict[str, dict[str, Recipe]] = {
    "standard": dict.fromkeys(DATASETS, Recipe()),
    "tuned": {
        "mnist_4_9": Recipe(
            num_epochs=600,
            batch_size=128,
            lr=3e-3,
            schedule="one_cycle",
            weight_decay=0.05,
            deformation=Deformation(12, 0.1, 0.15, 1, elastic=0.8, nodes=6),
        ),
        "usps_0_6": Recipe(
            num_epochs=1200,
            batch_size=128,
            lr=4e-3,
            schedule="one_cycle",
            deformation=Deformation(12, 0.12, 0.2, 1, elastic=0.8, nodes=6),
        ),
        "mnist_0_3": Recipe(
            num_epochs=300,
            batch_size=128,
            lr=2e-3,
            schedule="one_cycle",
            deformation=Deformation(12, 0.1, 0.15, 1, elastic=0.8, nodes=6),
        ),
    },
}
#: Of a recipe, what has a flag.
FLAGS = ("num_epochs", "batch_size", "lr")
#: Of settings, what has a flag.
SETTINGS_FLAGS = ("recipe", *FLAGS, "seed", "patience")


def settings(args: argparse.Namespace, dataset: str) -> Settings:
    """The recipe that the command line names, with what it says otherwise.

    :raises UsageError: there is no such recipe for the dataset.
    """
    recipe = RECIPES[args.recipe].get(dataset)
    if recipe is None:
        raise UsageError(
            f"there is no recipe {args.recipe!r} for {dataset}; give --recipe standard, or add one "
            "to DJSW/recipes.py"
        )
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    rest = {"recipe": args.recipe, "seed": args.seed, "patience": args.patience}
    return Settings(**{**vars(recipe), **given, **rest})
