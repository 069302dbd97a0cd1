"""Usage errors of the dataset scripts."""

import pytest
from conftest import exit_status

from datasetprep import create_mnist_dataset as mnist


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--train --test --verify"),
        (["--train", "--test"], "not allowed with"),
        (["--train", "--keep", "4,x"], "'4,x' is not a list of labels"),
        (["--train", "--keep", ""], "is not a list of labels"),
        (["--train", "--keep", "4,7"], "give --output"),
        (["--verify", "nothing.h5"], "no existing file"),
    ],
)
def test_usage_errors(capsys, arguments, message):
    assert exit_status(mnist.main, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
