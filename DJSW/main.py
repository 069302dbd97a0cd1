"""Train or evaluate a person's network: ``python DJSW/main.py --username NAME …``.

Train:     ``--username sigurd --exp_name first --output_dir weights/SMLP --train``
Evaluate:  ``--username sigurd --exp_name first --output_dir reports --load_checkpoint FILE``
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import utils.script  # noqa: F401

import argparse
from collections.abc import Sequence
from importlib import import_module

from DJSW.pipelines import DATASETS, PEOPLE
from DJSW.recipes import RECIPES, SETTINGS_FLAGS, Recipe
from utils.command_line import (
    Parser,
    array_task,
    experiment_name,
    positive_float,
    positive_int,
    run_command,
    seed,
)
from utils.launch import place
from utils.signals import stop_request


def parser() -> Parser:
    """The flags; reading them needs no torch, so that ``--help`` answers at once."""
    flags = Parser("Train or evaluate a person's network on a person's digits.")
    flags.add_argument(
        "--username",
        required=True,
        choices=PEOPLE,
        help="whose network: "
        + ", ".join(f"{name} ({p.model_name}, {p.dataset})" for name, p in PEOPLE.items()),
    )
    flags.add_argument(
        "--exp_name", required=True, type=experiment_name, help="what its files are named after"
    )
    flags.add_argument("--output_dir", required=True, help="existing folder for them")
    flags.add_argument("--train", action="store_true", help="train (otherwise evaluate)")
    flags.add_argument(
        "--load_checkpoint",
        metavar="FILE",
        help="weights to evaluate, or with --train to start from: a checkpoint or a state dict",
    )
    flags.add_argument(
        "--dataset",
        choices=DATASETS,
        help="digits other than the person's; evaluating, only a bare state dict needs it",
    )
    flags.add_argument(
        "--array_task",
        type=array_task,
        metavar="N",
        help="number of a task of a job array: added to --seed and, as _N, to --exp_name",
    )
    flags.add_argument(
        "--check",
        action="store_true",
        help="look whether the command would run, make its data, and stop there",
    )
    flags.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="default auto: a GPU where there is one",
    )
    _add_training(flags)
    return flags


def _add_training(flags: Parser) -> None:
    training = flags.add_argument_group("training")
    training.add_argument(
        "--recipe",
        choices=RECIPES,
        default="standard",
        help="how to train; default standard: Adam and nothing else",
    )
    of_recipe = "default: the recipe's; standard has"
    training.add_argument(
        "--num_epochs", type=positive_int, help=f"{of_recipe} {Recipe.num_epochs}"
    )
    training.add_argument(
        "--batch_size", type=positive_int, help=f"{of_recipe} {Recipe.batch_size}"
    )
    training.add_argument(
        "--lr", type=positive_float, help=f"Adam's, at its highest; {of_recipe} {Recipe.lr}"
    )
    training.add_argument(
        "--seed", type=seed, default=42, help="of the weights and the order of images; default 42"
    )
    training.add_argument(
        "--patience",
        type=positive_int,
        metavar="EPOCHS",
        help="stop after so many epochs without a better validation loss; default: never",
    )
    training.add_argument(
        "--resume",
        action="store_true",
        help="go on with a training of this name where it was stopped, if there is one",
    )


def command(args: argparse.Namespace) -> None:
    """Train or evaluate; only what is needed is imported."""
    watches = args.train and not args.check
    if watches and place().count == 1:
        stop_request.watch()
    task = import_module("DJSW.train" if args.train else "DJSW.evaluate")
    if args.check:
        task.prepare(args)
        print("checked     this command would run")
        return
    from utils import ranks
    from utils.device import choose_device

    device = choose_device(args.device)
    with ranks.joined(device) as members:
        if watches and len(members) > 1:  # a signal could not end the wait for the other ranks
            stop_request.watch()
        task.run(args, device, members)


def main(argv: Sequence[str] | None = None) -> int:
    """The command, as a script and as ``djsw``; returns the exit status."""
    flags = parser()
    args = flags.parse_args(argv)
    if not args.train and args.load_checkpoint is None:
        flags.error("evaluation needs --load_checkpoint FILE, and training needs --train")
    if not args.train:
        for name in (*SETTINGS_FLAGS, "resume"):
            if getattr(args, name) != flags.get_default(name):
                flags.error(f"--{name} goes with --train")
    if args.array_task is not None:
        args.exp_name += f"_{args.array_task}"
        args.seed += args.array_task
    return run_command(command, args)


if __name__ == "__main__":
    sys.exit(main())
