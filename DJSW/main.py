"""Train or evaluate a person's network: ``python DJSW/main.py --username NAME …``.

Train:     ``--username sigurd --exp_name first --output_dir weights/SMLP --train``
Evaluate:  ``--username sigurd --exp_name first --output_dir reports --load_checkpoint FILE``
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence
from contextlib import nullcontext

from DJSW.arguments import DEVICES, EvaluateArguments, TrainArguments
from DJSW.pipelines import DATASETS, PEOPLE
from DJSW.recipes import RECIPES, Recipe
from utils import cli
from utils.distributed.environment import rank_info
from utils.engine.signals import stop_request

#: Flags that only a training has.
TRAINING_FLAGS = ("recipe", "num_epochs", "batch_size", "lr", "seed", "patience", "resume")


def parser() -> cli.Parser:
    """Return the parser; it needs no torch, so that ``--help`` answers at once."""
    flags = cli.Parser("Train or evaluate a person's network on a person's digits.")
    people = ", ".join(f"{name} ({p.model_name}, {p.dataset})" for name, p in PEOPLE.items())
    flags.add_argument("--username", required=True, choices=PEOPLE, help=f"whose network: {people}")
    flags.add_argument(
        "--exp_name", required=True, type=cli.experiment_name, help="name of its files"
    )
    flags.add_argument("--output_dir", required=True, help="existing folder for its files")
    flags.add_argument("--train", action="store_true", help="train (otherwise evaluate)")
    flags.add_argument(
        "--load_checkpoint",
        metavar="FILE",
        help="weights to evaluate, or with --train to start from: a checkpoint or a state dict",
    )
    flags.add_argument(
        "--dataset",
        choices=DATASETS,
        help="other digits than the person's; in an evaluation only a bare state dict needs it",
    )
    flags.add_argument(
        "--array_task",
        type=cli.array_task,
        metavar="N",
        help="number of a task of a job array: added to --seed and, as _N, to --exp_name",
    )
    flags.add_argument(
        "--check", action="store_true", help="only check the command, and create its data"
    )
    flags.add_argument(
        "--device", choices=DEVICES, default="auto", help="default auto: a GPU where there is one"
    )
    _add_training(flags)
    return flags


def _add_training(flags: cli.Parser) -> None:
    training = flags.add_argument_group("training")
    training.add_argument(
        "--recipe",
        choices=RECIPES,
        default="standard",
        help="how to train; default standard: Adam and nothing else",
    )
    default = "default: the recipe's; standard has"
    training.add_argument(
        "--num_epochs", type=cli.positive_int, help=f"{default} {Recipe.num_epochs}, on USPS 100"
    )
    training.add_argument(
        "--batch_size", type=cli.positive_int, help=f"{default} {Recipe.batch_size}"
    )
    training.add_argument(
        "--lr", type=cli.positive_float, help=f"(maximum) learning rate; {default} {Recipe.lr}"
    )
    training.add_argument(
        "--seed",
        type=cli.seed,
        default=42,
        help="of the weights, the order of the images and augmentation; default 42",
    )
    training.add_argument(
        "--patience",
        type=cli.positive_int,
        metavar="EPOCHS",
        help="stop after so many epochs without a better validation loss; default: never",
    )
    training.add_argument(
        "--resume",
        action="store_true",
        help="continue the run of this name from its saved state, if there is one",
    )


def command(args: argparse.Namespace) -> None:
    """Train or evaluate, or only check; torch is imported here."""
    if not args.train:
        from DJSW.evaluate import evaluate_model, prepare_evaluation

        evaluation = EvaluateArguments.of(args)
        prepare_evaluation(evaluation) if args.check else evaluate_model(evaluation)
    elif args.check:
        from DJSW.train import prepare_training

        prepare_training(TrainArguments.of(args))
    else:
        # Importing torch takes seconds. Several ranks watch once they have met: a signal that is
        # only noted could not end the wait for the others.
        with stop_request.watch() if rank_info().world_size == 1 else nullcontext():
            from DJSW.train import train_model

            train_model(args)
    if args.check:
        print("checked     this command would run")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    flags = parser()
    args = flags.parse_args(argv)
    if not args.train and args.load_checkpoint is None:
        flags.error("evaluation needs --load_checkpoint FILE, and training needs --train")
    if not args.train:
        for name in TRAINING_FLAGS:
            if getattr(args, name) != flags.get_default(name):
                flags.error(f"--{name} needs --train")
    if args.array_task is not None:
        args.exp_name += f"_{args.array_task}"
        args.seed += args.array_task
    return cli.run_command(command, args)


if __name__ == "__main__":
    sys.exit(main())
