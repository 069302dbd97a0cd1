"""What every command shares: a parser with one-sentence errors, and the exit statuses."""

import argparse
import ast
import atexit
import difflib
import io
import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from utils.distributed.environment import env_rank
from utils.errors import PeerAborted, RunError, Stopped, UsageError, one_line

#: Least bytes of address space (torch with CUDA maps 3.3 GB; where there is less it aborts) and
#: least open files.
LIMITS = {"RLIMIT_AS": 4 * 10**9, "RLIMIT_NOFILE": 64}


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one sentence on stderr, with exit status 2."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, allow_abbrev=False)
        if isinstance(sys.stdout, io.TextIOWrapper):  # R² on an ASCII terminal, a name in Latin-1
            sys.stdout.reconfigure(errors="backslashreplace")
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; the words are kept for the error."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with the message, once for all ranks: they were given the same flags.

        An unknown flag gets the one that was probably meant.
        """
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for word in self._given:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                for meant in difflib.get_close_matches(flag, known, 1):
                    message += f"; for {flag}, did you mean {meant}?"
        text = one_line(f"error: {message} (--help lists the flags)")
        self.exit(UsageError.exit_status, None if env_rank() else f"{text}\n")


def run_command(command: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run ``command(args)`` and return its exit status; only bugs end in a traceback.

    0 done; 2 wrong use; 1 a failed run, or an error of the system such as a full disk; 75, 130 or
    143 stopped by SIGUSR1, SIGINT or SIGTERM; 141 by a reader that closed the pipe. Messages of
    ranks other than 0 begin with the rank.
    """
    # What CUDA's matrix products need to give the same bits each time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # What libraries print beside our sentence: torch the stack of a lost rank, Pillow what is odd
    # in a file, matplotlib that its cache is in no home folder.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    for name in ("PIL", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # fontconfig, which matplotlib asks for fonts, prints lines where it has no place for a cache.
    if not os.access(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~"), os.W_OK):
        cache = tempfile.TemporaryDirectory()
        atexit.register(cache.cleanup)
        os.environ["XDG_CACHE_HOME"] = cache.name
    # Figures look the same, and are drawn, whatever the user's settings are.
    os.environ |= {"MATPLOTLIBRC": os.devnull, "MPLBACKEND": "agg"}
    if os.path.exists("matplotlibrc"):  # matplotlib, when imported, prefers it to the variable
        with chdir(Path(__file__).parent):
            import matplotlib  # noqa: F401
    try:
        _check_environment()
        command(args)
        print(end="", flush=True)  # a closed pipe is an error here, not when Python exits
    except (UsageError, RunError) as error:
        return _fail(str(error), error.exit_status)
    except PeerAborted as error:
        return error.exit_status
    except Stopped as stopped:
        print(one_line(str(stopped)), file=sys.stderr)
        return stopped.exit_status
    except BrokenPipeError:  # head, say, has read enough
        _discard_stdout()
        return 141  # as of a process that SIGPIPE ended
    except OSError as error:
        file = f": {error.filename}" if error.filename else ""
        try:
            sys.stdout.flush()
        except OSError:  # it is what cannot be written
            _discard_stdout()
        return _fail(f"{error.strerror or error}{file}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("DJSW", "datasetprep", "models", "utils"):
            raise  # a bug
        remedy = "start it with uv run, or pip install -r requirements.lock"
        return _fail(f"the package {error.name} is not installed; {remedy}", UsageError.exit_status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if "memory" not in f"{type(error).__name__}: {error}".lower():  # torch's RuntimeError
            raise
        return _fail(f"not enough memory ({error}); give it more, or a smaller --batch_size")
    return 0


def _discard_stdout() -> None:
    """Let Python flush at its end what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(sentence: str, status: int = RunError.exit_status) -> int:
    """Print the error as one line, with the rank unless it is 0; return the exit status."""
    rank = f"rank {env_rank()}: " if env_rank() else ""
    print(one_line(f"{rank}error: {sentence}"), file=sys.stderr, flush=True)
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        print(end="", flush=True)
        os._exit(status)  # gloo's threads, which wait for a lost rank, would abort Python's own end
    return status


def _check_environment() -> None:
    """Raise UsageError where variables, limits or the working directory would make torch fail."""
    with suppress(ImportError):  # Windows
        import resource

        for name, least in LIMITS.items():
            limit = resource.getrlimit(getattr(resource, name))[0]
            if 0 <= limit < least:  # -1: none
                raise UsageError(f"{name} is {limit}; raise it to {least} (ulimit -v, ulimit -n)")
    # Networks this small are slower on several threads, and much slower beside a busy neighbor;
    # the number of threads also decides the bits of a result.
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not re.fullmatch(r"[1-9][0-9]{0,3}(,[1-9][0-9]{0,3})*", threads, re.ASCII):
        raise UsageError(f"OMP_NUM_THREADS is {threads!r}; unset it, or set a whole number above 0")
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working directory was deleted; cd to one that exists") from None


def output_flags(flags: Parser, kind: str) -> None:
    """Add ``--output_dir`` and ``--exp_name``, with defaults for a quick try, and ``--check``."""
    flags.add_argument(
        "--output_dir",
        default="reports/scratch",
        help="existing folder for its files; default reports/scratch",
    )
    now = datetime.now(UTC)  # in milliseconds: a comparison takes half a second
    flags.add_argument(
        "--exp_name",
        type=experiment_name,
        default=f"{kind}_{now:%Y%m%d_%H%M%S}_{now.microsecond // 1000:03}",
        help=f"name of its files; default {kind}_ and the time (UTC)",
    )
    flags.add_argument("--check", action="store_true", help="only check the command")


def experiment_name(text: str) -> str:
    """Accept letters, digits, ``.``, ``_`` and ``-``: safe in every file name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text) or ".." in text or len(text) > 100:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name (up to 100 letters, digits, '.', '_' and '-', without '..' "
            "and not starting with '.' or '-')"
        )
    return text


def positive_int(text: str) -> int:
    """Accept a whole number from 1 to a billion."""
    return _whole_number(text, 1, 10**9)


def seed(text: str) -> int:
    """Accept a whole number from 0 to 2**63 - 1, what torch's and NumPy's generators take."""
    return _whole_number(text, 0, 2**63 - 1)


def array_task(text: str) -> int:
    """Accept a whole number from 0, as Slurm counts the tasks of a job array."""
    return _whole_number(text, 0, 10**9)


def _whole_number(text: str, least: int, most: int) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) < 20
    if not (is_number and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


def positive_float(text: str) -> float:
    """Accept a finite number above 0."""
    number = _finite(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return number


def share(text: str) -> float:
    """Accept a number above 0 and up to 1."""
    number = _finite(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return number


def non_negative_float(text: str) -> float:
    """Accept a finite number from 0."""
    number = _finite(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of 0 or more")
    return number


def _finite(text: str) -> float:
    """Return the number, NaN where it is none or not finite."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def fold(text: str) -> str:
    """Accept ``K/N`` or ``K/N/writers``, part K of N of a training file; N is from 2 to 100."""
    found = re.fullmatch(r"([0-9]{1,3})/([0-9]{1,3})(/writers)?", text, re.ASCII)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if found is None or not 1 <= part <= parts <= 100 or parts < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not K/N or K/N/writers, such as 1/5 for part 1 of 5; N is from 2 to 100"
        )
    return f"{part}/{parts}{found[3] or ''}"


def seed_list(text: str) -> list[int]:
    """Accept numbers and ranges, up to 1000 seeds in all.

    >>> seed_list("1-3,7")
    [1, 2, 3, 7]
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            low, high = seed(first), seed(last if dash else first)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}; seeds are such as 1-5 or 1,3,7") from None
        if low > high:
            raise argparse.ArgumentTypeError(f"{part!r} is an empty range; put the lower end first")
        found += range(low, min(high, low + 1000) + 1)
    if len(found) > 1000 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} has over 1000 seeds, or one of them twice")
    return found


def assignment(text: str) -> tuple[str, Any]:
    """Accept ``NAME=VALUE``, the value a number, True, False or None, or else a word.

    >>> assignment("hidden_size=128"), assignment("activation=relu")
    (('hidden_size', 128), ('activation', 'relu'))
    """
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value and value.isprintable()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as hidden_size=128")
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        literal = value
    plain = literal is None or isinstance(literal, (bool, int, float))
    return name, literal if plain else value


def labels(text: str) -> tuple[int, ...]:
    """Accept a list of labels, 0 to 255; return them sorted, each once.

    >>> labels("6,4,5,4")
    (4, 5, 6)
    """
    parts = text.split(",")
    if not all(re.fullmatch("[0-9]{1,3}", part) and int(part) < 256 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of labels such as 4,5,6")
    return tuple(sorted({int(part) for part in parts}))
