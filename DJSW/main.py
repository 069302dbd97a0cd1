"""Train or evaluate a person's network: ``python DJSW/main.py --username NAME …``.

Train:     ``--username sigurd --exp_name e --output_dir reports/scratch --train``
Evaluate:  ``--username sigurd --exp_name e --output_dir reports/scratch --load_checkpoint FILE``
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

from DJSW import __version__
from DJSW.arguments import Arguments, EvaluateArguments, TrainArguments, add_flag
from utils import cli
from utils.distributed.environment import rank_info
from utils.engine.signals import stop_request

EVALUATION = {each.name: each for each in fields(EvaluateArguments)}
#: The flags of training that evaluation does not have.
TRAINING = [each for each in fields(TrainArguments) if each.name not in EVALUATION]


class Version(argparse.Action):
    """A flag that prints the versions of the project and of what its results depend on."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help, default=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, given: argparse.Namespace, *_: Any) -> None:
        """Print them and exit."""
        parser.exit(cli.run_command(print_versions, given))


def print_versions(args: argparse.Namespace) -> None:
    """Print version, commit and packages."""
    from utils.records.provenance import code_provenance

    code = code_provenance()
    git = code["git"] or {"commit": "unknown", "changed": False}
    changes = " with changes that are not committed" * git["changed"]
    packages = ", ".join(f"{name} {version}" for name, version in code["versions"].items())
    print(f"DJSW {__version__}, commit {git['commit'][:7]}{changes}\n{packages}")


def parser() -> cli.Parser:
    """Return the parser; it needs no torch, so that ``--help`` answers at once."""
    flags = cli.Parser("Train or evaluate a person's network on a dataset.")
    flags.add_argument("--version", action=Version, help="print what runs here, and exit")
    for each in fields(Arguments):
        add_flag(flags, each)
    flags.add_argument("--train", action="store_true", help="train (otherwise evaluate)")
    add_flag(flags, EVALUATION["load_checkpoint"], required=False)
    flags.add_argument(
        "--array_task",
        type=cli.array_task,
        metavar="N",
        help="number of a task of a job array: added to --seed and, as _N, to --exp_name",
    )
    flags.add_argument(
        "--check", action="store_true", help="only check the command, and create its data"
    )
    training = flags.add_argument_group("training")
    for each in TRAINING:
        add_flag(training, each)
    return flags


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
        # Watch before torch is imported, which takes seconds. Several ranks begin to watch later,
        # when they have met: until then a signal has to end their wait.
        with stop_request.watch() if rank_info().world_size == 1 else nullcontext():
            from DJSW.train import train_model

            train_model(args)
    if args.check:
        untried = f", if there is a GPU ({args.device})" * (args.device == "cuda")
        print(f"checked     this command would run{untried}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    flags = parser()
    args = flags.parse_args(argv)
    if not args.train and args.load_checkpoint is None:
        flags.error("evaluation needs --load_checkpoint FILE, and training needs --train")
    for each in TRAINING:
        if not args.train and getattr(args, each.name) != flags.get_default(each.name):
            flags.error(f"--{each.name} needs --train")
    if args.train and args.load_checkpoint is not None:
        if len(args.load_checkpoint) > 1:
            flags.error("--train starts from one checkpoint; give one --load_checkpoint")
        (args.load_checkpoint,) = args.load_checkpoint
    if args.array_task is not None:
        args.exp_name += f"_{args.array_task}"
        args.seed += args.array_task
    return cli.run_command(command, args)


if __name__ == "__main__":
    sys.exit(main())
