"""The typed arguments of train_model and evaluate_model."""

from argparse import Namespace

import pytest

from DJSW.arguments import EvaluateArguments, TrainArguments
from utils.errors import UsageError

REQUIRED = {"username": "waly", "exp_name": "e", "output_dir": "."}


def test_missing_attributes_have_the_flags_defaults():
    args = TrainArguments.of(Namespace(**REQUIRED, lr=0.1))
    assert args == TrainArguments(username="waly", exp_name="e", output_dir=".", lr=0.1)
    assert (args.seed, args.recipe, args.device, args.resume) == (42, "standard", "auto", False)
    assert TrainArguments.of(args) is args


def test_required_attributes_are_named():
    with pytest.raises(UsageError, match=r"^TrainArguments: no exp_name, output_dir \(set each"):
        TrainArguments.of(Namespace(username="waly"))
    with pytest.raises(UsageError, match="^EvaluateArguments: no load_checkpoint "):
        EvaluateArguments.of(Namespace(**REQUIRED))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1}, "--lr: '-1' is not a finite number above 0"),
        ({"num_epochs": 1.5}, "--num_epochs: '1.5' is not a whole number"),
        ({"exp_name": "a/b"}, "--exp_name: 'a/b' is not a name"),
        ({"username": "bob"}, "--username: 'bob' is unknown .choose from sigurd"),
        ({"recipe": "x"}, "--recipe: 'x' is unknown .choose from standard"),
    ],
)
def test_values_are_checked_as_on_the_command_line(change, message):
    with pytest.raises(UsageError, match=message):
        TrainArguments.of(Namespace(**REQUIRED | change))
