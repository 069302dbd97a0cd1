"""The terminal and the environment of a command: one line for each error, whatever is odd."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, clean_environment

from utils import cli
from utils.errors import RunError, UsageError, one_line

EVALUATIONS = ["reports/standard/smlp_standard_4_metrics.json"]


def compare(*arguments, script=ROOT / "DJSW" / "compare.py", before=None, cwd=ROOT, **variables):
    """Run a command that takes half a second in a new Python."""
    return subprocess.run(
        [sys.executable, script, *(arguments or EVALUATIONS)],
        cwd=cwd,
        env=clean_environment() | variables,
        preexec_fn=before,
        capture_output=True,
        timeout=60,
    )


def refused(ran, *parts, status=2):
    """Check that an error is one line of at most 400 characters with these parts."""
    error = ran.stderr.decode()
    assert ran.returncode == status, error
    assert error.count("\n") == 1 and error.isprintable() is False and error[:-1].isprintable()
    assert len(error) <= 401
    for part in parts:
        assert part in error


def test_one_line():
    assert one_line("a\nb\x1b[31m\udcff 四 R²") == "a\\nb\\x1b[31m\\udcff 四 R²"
    long = one_line("begin" + "\x1b" * 10**6 + "(remedy)")
    assert long.startswith("begin\\x1b") and long.endswith("(remedy)") and len(long) <= 400
    for length in (399, 400, 401, 800, 801):
        assert len(one_line(length * "a")) == min(length, 399 if length > 400 else 400)


@pytest.mark.parametrize(("error", "status"), [(UsageError, 2), (RunError, 1), (MemoryError, 1)])
def test_errors_are_one_line(error, status, capsys):
    def command(args):
        raise error("x\ny" * 1000 + "(remedy)")

    assert cli.run_command(command, cli.Parser("").parse_args([])) == status
    text = capsys.readouterr().err
    assert text.startswith("error: ") and "(remedy)" in text
    assert text.count("\n") == 1 and len(text) <= 401


def test_a_missing_package_is_a_sentence_and_a_missing_module_of_ours_a_bug(capsys):
    def needs(name):
        def command(args):
            __import__(name)

        return command

    arguments = cli.Parser("").parse_args([])
    assert cli.run_command(needs("no_such_package"), arguments) == 2
    expected = "error: the package no_such_package is not installed; start it with uv run"
    assert capsys.readouterr().err.startswith(expected)
    with pytest.raises(ModuleNotFoundError, match="utils.no_such_module"):
        cli.run_command(needs("utils.no_such_module"), arguments)


def test_bugs_end_in_a_traceback():
    def command(args):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.run_command(command, cli.Parser("").parse_args([]))


@pytest.mark.parametrize("threads", ["x", "0", "-1", "", "99999999999", "1,x"])
def test_number_of_threads(threads):
    refused(compare(OMP_NUM_THREADS=threads), f"OMP_NUM_THREADS is '{threads}'; unset it")


def test_arguments_are_shown_escaped(tmp_path):
    refused(compare("no\x1b[31m\nfile"), r"EVALUATION 'no\x1b[31m\nfile' is no existing file")
    refused(compare("--flag\n\x1b" + 100_000 * "a"), r"unrecognized arguments: --flag\n\x1b")
    refused(compare(*EVALUATIONS, "--output_dir", 100_000 * "a"), "File name too long", status=1)


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"HOME": "/proc/nothing", "MPLCONFIGDIR": "/proc/nothing"},
        {"SLURM_PROCID": "x"},
        {"MPLBACKEND": "nonsense"},
    ],
)
def test_odd_environments_are_fine(tmp_path, variables):
    ran = compare(*EVALUATIONS, "--output_dir", tmp_path, **variables)
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize("content", [b"text.usetex: True\n", b"\xff\xfe", b"backend: nonsense\n"])
@pytest.mark.parametrize("place", ["working directory", "home", "variable"])
def test_settings_of_matplotlib_are_not_used(tmp_path, content, place):
    (tmp_path / "matplotlib").mkdir()
    folder = tmp_path / ("matplotlib" if place == "home" else "")
    (folder / "matplotlibrc").write_bytes(content)
    cwd = tmp_path if place == "working directory" else ROOT
    variables = {"XDG_CONFIG_HOME": str(tmp_path)} if place == "home" else {}
    if place == "variable":
        variables["MATPLOTLIBRC"] = str(tmp_path / "matplotlibrc")
    (tmp_path / "out").mkdir()
    ran = compare(*EVALUATIONS, "--output_dir", tmp_path / "out", cwd=cwd, **variables)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert list((tmp_path / "out").glob("*.png"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits and folders as of Linux")
def test_limits_of_the_system(tmp_path):
    import resource

    def limit(name, value):
        return lambda: resource.setrlimit(getattr(resource, name), (value, value))

    for gigabytes in (1, 2, 3):
        few = limit("RLIMIT_AS", gigabytes * 10**9)
        refused(compare(before=few), f"RLIMIT_AS is {gigabytes}000000000; raise it to 4000000000")
    refused(compare(before=limit("RLIMIT_NOFILE", 10)), "RLIMIT_NOFILE is 10; raise it to 64")
    ran = compare(*EVALUATIONS, "--output_dir", tmp_path, before=limit("RLIMIT_FSIZE", 1000))
    refused(ran, "File too large", "_comparison.", status=1)
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "DJSW/compare.py", *EVALUATIONS, "--output_dir", tmp_path]
        ran = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60)
    refused(ran, "No space left on device", status=1)


@pytest.mark.skipif(sys.platform != "linux", reason="limits and folders as of Linux")
def test_deleted_working_directory(tmp_path):
    (tmp_path / "gone").mkdir()
    ran = compare(cwd=tmp_path / "gone", before=lambda: shutil.rmtree(tmp_path / "gone"))
    refused(ran, "the working directory was deleted; cd to one that exists")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS and Windows have no such names")
def test_output_folder_that_cannot_be_printed(tmp_path):
    for name in (b"bad\xff", b"new\nline"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        ran = compare(*EVALUATIONS, "--output_dir", os.fsdecode(folder))
        refused(ran, "has characters that cannot be printed; rename it")
        assert not os.listdir(folder)
