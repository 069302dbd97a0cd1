"""Damaged files given to every command: a sentence, or the numbers of the whole file.

The damage follows from the number of the case: bytes flipped, cut off or repeated; entries of
records, checkpoints, states and HDF5 files removed or replaced by values of other kinds.
"""

import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import processes
import pytest
import torch
from conftest import clean_environment, copy_code, write_datasets
from PIL import Image

from utils.records.checkpoint import load_checkpoint, weights_sha256

#: Cases of a target in the suite, 154 in all; up to this number under ``-m slow``, 3010 in all.
CASES, SLOW_CASES = 11, 215
SECONDS, MEGABYTES, CHARACTERS = 10, 2048, 400

#: Runs a script and writes the peak memory of the process, in MB, where the tests look for it.
MEASURE = """
import atexit, os, resource, runpy, sys
del sys.argv[0]
def note():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    open(os.environ["FUZZ_MEMORY"], "w").write(str(used))
atexit.register(note)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ODD: list[Any] = [
    None, True, -1, 0, 3, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../../x", "\x1b[2J\n",
    "x" * 10_000, [], [1], {}, {"a": 1}, [[[[[]]]]], "usps_0_6", "sigurd",
]  # fmt: skip
TRAIN = "--username waly --train --num_epochs 3 --exp_name e --output_dir out --device cpu"
EVALUATE = "--username waly --exp_name v --output_dir out --device cpu --load_checkpoint"

#: Target -> (the damaged file, the script, its flags).
TARGETS = {
    "evaluated checkpoint": ("run/e_checkpoint_best.pt", "DJSW/main.py", f"{EVALUATE} FILE"),
    "evaluated bare weights": ("run/bare.pt", "DJSW/main.py", f"{EVALUATE} FILE"),
    "test data": (
        "data/processed/usps_test_0_6.h5",
        "DJSW/main.py",
        f"{EVALUATE} run/e_checkpoint_best.pt",
    ),
    "training data": ("data/processed/usps_0_6.h5", "DJSW/main.py", f"{TRAIN} --exp_name n"),
    "resumed state": ("out/e_resume.pt", "DJSW/main.py", f"{TRAIN} --resume"),
    "resumed record": ("out/e_run.json", "DJSW/main.py", f"{TRAIN} --resume"),
    "resumed checkpoint": ("out/e_checkpoint_best.pt", "DJSW/main.py", f"{TRAIN} --resume"),
    "compared metrics": ("run/e_metrics.json", "DJSW/compare.py", "FILE run/f_metrics.json"),
    "compared predictions": (
        "run/e_predictions.csv.gz",
        "DJSW/compare.py",
        "run/e_metrics.json run/f_metrics.json",
    ),
    "image": (
        "run/digit.png",
        "DJSW/predict.py",
        "FILE --load_checkpoint run/e_checkpoint_best.pt",
    ),
    "predicting checkpoint": (
        "run/e_checkpoint_best.pt",
        "DJSW/predict.py",
        "run/digit.png --load_checkpoint FILE",
    ),
    "reproduced run": ("run/e_run.json", "DJSW/reproduce.py", "FILE --check"),
    "listed record": ("run/e_run.json", "DJSW/results.py", "--list run"),
    "verified data": (
        "data/processed/usps_0_6.h5",
        "datasetprep/create_usps_dataset.py",
        "--verify FILE",
    ),
}


def start(project: Path, script: str, flags: str, **environment: str):
    """Start a command of the project."""
    if script in ("DJSW/compare.py", "DJSW/predict.py"):
        flags += " --exp_name c --output_dir out"
    command = [project / "measure.py", project / script, *flags.split()]
    return processes.start(command, env={**clean_environment(), **environment}, cwd=project)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A checkout with tiny data and, in ``run/`` and ``out/``, the files of runs of waly's."""
    folder = tmp_path_factory.mktemp("fuzz")
    project = copy_code(folder / "project")
    write_datasets(project / "data" / "processed")
    (project / "measure.py").write_text(MEASURE)
    for name in ("run", "out"):
        (project / name).mkdir()
    user = "--username waly --device cpu --num_epochs 2 --train"
    weights = "--username waly --output_dir run --load_checkpoint run/e_checkpoint"
    for flags in (
        f"{user} --exp_name e --output_dir run",
        f"{user} --exp_name e --output_dir out",
        f"{weights}_best.pt --exp_name e",
        f"{weights}_epoch_2.pt --exp_name f",
    ):
        done(start(project, "DJSW/main.py", flags, FUZZ_MEMORY=os.devnull), 0)
    checkpoint = load_checkpoint(project / "run" / "e_checkpoint_best.pt")
    torch.save(checkpoint.weights, project / "run" / "bare.pt")
    digit = np.zeros((20, 20), np.uint8)
    digit[3:17, 8:12] = 255
    Image.fromarray(digit).resize((90, 90)).save(project / "run" / "digit.png")
    return project


def done(process, *statuses: int) -> tuple[int, str, str]:
    """Wait for the end; return exit status and output."""
    out, error = process.communicate(timeout=SECONDS)
    status = process.wait()
    assert not statuses or status in statuses, error
    return status, out, error


def numbers(project: Path, out: str) -> dict[str, Any]:
    """Return what a command computed, by file, and what it printed, without times and names."""
    found: dict[str, Any] = {}
    folder = project / "out"
    for path in folder.glob("*_metrics.json"):
        record = json.loads(path.read_text())
        found[path.name[:1]] = [record[name] for name in ("metrics", "confusion", "calibration")]
    for path in folder.glob("?_checkpoint_*.pt"):
        found[path.name] = weights_sha256(load_checkpoint(path).weights)
    for path in folder.glob("?_history.csv"):
        lines = path.read_text().splitlines()
        found[path.name] = [line.rpartition(",")[0] for line in lines]  # without the seconds
    for path in [*folder.glob("c_comparison.csv"), *folder.glob("c_predicted.csv")]:
        found[path.name] = path.read_text()
    if not found:
        found["printed"] = re.sub(r"\S*\d\d:\d\d\S*", "", out)
    return found


def files_outside(project: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file but those of the output folder."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in project.rglob("*")
        if path.is_file() and not {"__pycache__", "out"} & set(path.relative_to(project).parts)
    }


def damage(content: bytes, name: str, dice: random.Random) -> bytes:
    """Return other content for the file ``name``."""
    structured = {".json": damage_json, ".pt": damage_tensors, ".h5": damage_h5}
    change = structured.get(Path(name).suffix)
    if change and dice.random() < 0.6:
        return change(content, dice)
    changed = bytearray(content)
    kind = dice.choice(("flip", "flip", "cut", "block", "repeat", "empty"))
    place = dice.randrange(len(content))
    if kind == "flip":
        for _ in range(dice.choice((1, 1, 10))):
            changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del changed[place:]
    elif kind == "block":
        changed[place : place + 64] = dice.randbytes(64)
    elif kind == "repeat":
        changed[place:place] = changed[place : place + 1000]
    else:
        changed.clear()
    return bytes(changed)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value inside nested dicts and lists."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(inside):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


def change_one(value: Any, dice: random.Random, odd: list[Any]) -> None:
    """Remove an entry, or replace it."""
    container, key = dice.choice(list(places(value)))
    if dice.random() < 0.3:
        del container[key]
    else:
        container[key] = dice.choice(odd)


def damage_json(content: bytes, dice: random.Random) -> bytes:
    value = json.loads(content)
    if dice.random() < 0.1:
        return b"[" * 100_000
    change_one(value, dice, ODD)
    return json.dumps(value).encode()


def damage_tensors(content: bytes, dice: random.Random) -> bytes:
    scratch = Path(os.environ["FUZZ_SCRATCH"])
    scratch.write_bytes(content)
    value = torch.load(scratch, weights_only=True)
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    expanded = torch.zeros(1).expand(10**9)
    odd = [
        *ODD,
        torch.zeros(3),
        torch.full((100, 256), float("nan")),
        expanded,
        cyclic,
        b"x",
        60_000,
    ]
    odd += [torch.zeros(100, 256, dtype=torch.int64), torch.zeros(7, dtype=torch.complex64)]
    change_one(value, dice, odd)
    torch.save(value, scratch)
    return scratch.read_bytes()


def damage_h5(content: bytes, dice: random.Random) -> bytes:
    scratch = Path(os.environ["FUZZ_SCRATCH"])
    scratch.write_bytes(content)
    with h5py.File(scratch, "r+") as file:
        kind = dice.choice(("roll", "attribute", "no attribute", "link", "claim", "kind", "value"))
        name = dice.choice(("images", "labels"))
        if kind == "roll":
            file[name][:] = np.roll(file[name][:], 1, 0)
        elif kind == "value":
            file[name][3] = 255 - file[name][3]
        elif kind == "attribute":
            for key in dice.sample(sorted(file.attrs), min(2, len(file.attrs))):
                file.attrs[key] = dice.choice(["x", 3, b"\xff", [1.5]])
        elif kind == "no attribute":
            for key in list(file.attrs):
                del file.attrs[key]
        else:
            old = file[name][:]
            del file[name]
            if kind == "link":
                file[name] = h5py.ExternalLink("/etc/passwd", "/x")
            elif kind == "claim":
                file.create_dataset(name, (10**6, *old.shape[1:]), old.dtype, chunks=True)
            else:
                file[name] = old.astype(dice.choice(["f4", "i8", "S3"]))
    return scratch.read_bytes()


def check_target(project: Path, tmp_path: Path, target: str, cases: range) -> list[str]:
    """Return what went wrong, a line for each case."""
    name, script, flags = TARGETS[target]
    flags = flags.replace("FILE", name)
    kept = tmp_path / "kept"
    shutil.copytree(project / "out", kept)
    file, memory = project / name, tmp_path / "memory"
    whole, wrong, expected = file.read_bytes(), [], None
    for case in (None, *cases):
        shutil.rmtree(project / "out")
        shutil.copytree(kept, project / "out")
        if case is not None:
            file.write_bytes(damage(whole, name, random.Random(f"{target} {case}")))
        before, started = files_outside(project), time.monotonic()
        memory.write_text("0")
        try:
            process = start(project, script, flags, FUZZ_MEMORY=str(memory))
            status, out, error = done(process)
        except TimeoutError:
            wrong.append(f"{case}: more than {SECONDS} s")
            continue
        finally:
            file.write_bytes(whole)
        after = files_outside(project)
        after.pop(str(file), None), before.pop(str(file), None)
        lines = [
            each for each in error.splitlines() if not each.startswith(("skipped: ", "no rec"))
        ]
        problems = {
            "status": status not in (0, 1, 2),
            "lines": len(lines) != (status != 0) or (lines and not lines[0].startswith("error: ")),
            "length": any(len(line) > CHARACTERS for line in error.splitlines()),
            "traceback": "Traceback" in error,
            "escapes": bool(re.search(r"[\x00-\x08\x0b-\x1f]", error + out.replace("\r", ""))),
            "time": time.monotonic() - started > SECONDS,
            "memory": int(memory.read_text()) > MEGABYTES,
            "outside": after != before,
        }
        if case is None:
            assert status == 0, error
            expected = numbers(project, out)
        elif status == 0 and target != "listed record":
            problems["numbers"] = numbers(project, out) != expected
        found = [problem for problem, is_wrong in problems.items() if is_wrong]
        if found:
            wrong.append(f"{case}: {', '.join(found)}: {status} {error[-600:]}")
    return wrong


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files(project, tmp_path, monkeypatch, target):
    monkeypatch.setenv("FUZZ_SCRATCH", str(tmp_path / "scratch"))
    assert check_target(project, tmp_path, target, range(CASES)) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_damaged_files(project, tmp_path, monkeypatch, target):
    monkeypatch.setenv("FUZZ_SCRATCH", str(tmp_path / "scratch"))
    assert check_target(project, tmp_path, target, range(CASES, SLOW_CASES)) == []
