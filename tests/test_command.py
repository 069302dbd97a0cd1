"""Command line of the dataset scripts: usage errors."""

import pytest

from datasetprep import create_mnist_dataset as mnist


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--train --test --verify"),
        (["--train", "--test"], "not allowed with"),
        (["--train", "--keep", "4,x"], "'4,x' is not a list of digits"),
        (["--train", "--keep", ""], "is not a list of digits"),
        (["--train", "--keep", "4,7"], "give --output"),
        (["--verify", "nothing.h5"], "no existing file"),
    ],
)
def test_usage_errors(capsys, arguments, message):
    try:
        status = mnist.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
