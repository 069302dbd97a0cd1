"""Runs of several ranks, which divide each batch, against runs of one."""

import csv
import json
import re
import signal
import socket
import subprocess
import sys
import time

import processes
import pytest
from conftest import clean_environment, digit_images, write_h5

from DJSW.pipelines import DATASETS
from utils.distributed import collectives
from utils.engine.seeds import DROPOUT, derive_seed
from utils.records.checkpoint import load_checkpoint, weights_sha256

NETWORK_WITH_DRAWS = """
from torch import nn

class WMLP(nn.Module):
    def __init__(self, input_dim, output_dim):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(input_dim, 8), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(8, output_dim),
        )

    def forward(self, x):
        return self.net(x)
"""


def start(project, count, *flags, each=list, script="DJSW/main.py", start=processes.start):
    """Start the command as ``count`` ranks, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = clean_environment() | {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [project / script, "--username", "waly", *flags]
    return [
        start(
            [*command, *each()],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=project,
        )
        for rank in range(count)
    ]


def finish(ranks):
    """Return the exit statuses, and the output of each rank on stdout and on stderr.

    Without the lines that Gloo of torch 2.10 writes itself.
    """
    written = [
        [re.sub(r"^\[Gloo\] .*\n", "", text, flags=re.MULTILINE) for text in rank.communicate(120)]
        for rank in ranks
    ]
    return [rank.returncode for rank in ranks], *zip(*written, strict=True)


def train(project, count, name, *flags):
    flags = ("--exp_name", name, "--output_dir", "weights/WMLP", "--train", *flags)
    return finish(start(project, count, *flags, "--device", "cpu"))


def file_of(project, ending):
    return project / "weights" / "WMLP" / ending


def losses_of(project, name):
    with file_of(project, f"{name}_history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[kind]) for row in rows for kind in ("train_loss", "validation_loss")]


def test_ranks_give_the_losses_and_the_results_of_one(project):
    """108 images in batches of 35: the last has 3, none of them for one of the 4 ranks."""
    for count, name in ((1, "one"), (4, "four")):
        statuses, out, err = train(project, count, name, "--batch_size=35", "--num_epochs=3")
        assert statuses == [0] * count, err
    assert out[1:] == ("", "", "") == err[1:], "only rank 0 writes"
    assert "device      4 ranks on " in out[0]
    assert losses_of(project, "four") == pytest.approx(losses_of(project, "one"), rel=1e-5)

    names = {path.name.removeprefix("four_") for path in file_of(project, "").glob("four_*")}
    assert names == {path.name.removeprefix("one_") for path in file_of(project, "").glob("one_*")}

    correct = {}
    for count, name in ((1, "one"), (4, "four")):
        checkpoint = file_of(project, f"{name}_checkpoint_best.pt")
        flags = ("--exp_name", name, "--output_dir=reports", "--load_checkpoint", checkpoint)
        statuses, out, err = finish(start(project, count, *flags, "--device=cpu"))
        assert statuses == [0] * count, err
        measured = json.loads((project / "reports" / f"{name}_metrics.json").read_text())
        assert measured["images"] == 43 == sum(row["support"] for row in measured["per_class"])
        correct[name] = measured["correct"]
    assert abs(correct["four"] - correct["one"]) <= 2


def test_started_by_torchrun(project):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["DJSW/main.py", "--username=waly", "--exp_name=two", "--output_dir=weights/WMLP"]
    command += ["--train", "--num_epochs=2", "--device=cpu"]
    result = subprocess.run(
        command, cwd=project, env=clean_environment(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(file_of(project, "two_run.json").read_text())
    assert len(record["sessions"][0]["device"]["ranks"]) == 2
    train(project, 1, "one", "--num_epochs=2")
    assert losses_of(project, "two") == pytest.approx(losses_of(project, "one"), rel=1e-5)


def test_network_with_dropout(project):
    """Each rank draws its own masks, and all keep the same weights."""
    (project / "models" / "wmlp.py").write_text(NETWORK_WITH_DRAWS)
    for name in ("a", "b"):
        statuses, _, err = train(project, 2, name, "--num_epochs=2", "--batch_size=20")
        assert statuses == [0, 0], err
    assert losses_of(project, "a") == losses_of(project, "b")
    assert len({derive_seed(42, 1, DROPOUT, rank) for rank in range(8)}) == 8


def test_batch_norm_is_refused(project):
    text = NETWORK_WITH_DRAWS.replace("nn.Dropout(0.5)", "nn.BatchNorm1d(8)")
    (project / "models" / "wmlp.py").write_text(text)
    statuses, _, err = train(project, 2, "normed")
    assert statuses == [2, 2]
    assert err[0].startswith("error: WMLP has batch norm") and err[1] == ""


def test_ranks_with_different_flags(project):
    """Without the check they would wait for each other forever."""
    flags = ("--exp_name=odd", "--output_dir=weights/WMLP", "--train", "--device=cpu")
    sizes = iter(("--batch_size=8", "--batch_size=9"))
    statuses, _, err = finish(start(project, 2, *flags, each=lambda: [next(sizes)]))
    assert statuses == [2, 2]
    assert "ranks were given different flags" in err[0]


def test_rank_that_never_joins(project):
    """The rank that waits alone ends at the first signal."""
    flags = ("--exp_name=alone", "--output_dir=weights/WMLP", "--train", "--device=cpu")
    first, second = start(project, 2, *flags)
    second.kill()
    second.communicate()
    time.sleep(3)
    first.terminate()
    assert first.wait(20) != 0
    first.communicate()


def test_usage_error_is_printed_once(project):
    train(project, 1, "taken", "--num_epochs=1")
    for flags in ((), ("--epochs=3",), ("--load_checkpoint=none.pt",)):
        statuses, out, err = train(project, 2, "taken", *flags)
        assert statuses == [2, 2], (flags, err)
        assert err[0].startswith("error: ") and len(err[0].splitlines()) == 1
        assert err[1] == "" == out[1]


def test_loss_that_is_not_finite_is_reported_once(project):
    statuses, _, err = train(project, 2, "wild", "--lr=1e30")
    assert statuses == [1, 1]
    assert err[0].startswith("error: the loss is nan") and err[1] == ""
    assert not list(file_of(project, "").glob("wild*"))


def larger_data(project):
    """Write data for an epoch of about a second: 200 steps, with four messages each."""
    images, labels = digit_images(DATASETS["usps_0_6"].labels, (16, 16), 20_000)
    write_h5(project / "data" / "processed" / DATASETS["usps_0_6"].train_file, images, labels)


def start_long(project, count, name, *flags):
    """Start a long run and wait until it has written its first epoch."""
    flags = ("--exp_name", name, "--output_dir=weights/WMLP", "--train", *flags)
    started = start(project, count, *flags, "--num_epochs=100000", "--device=cpu")
    while not started[0].stdout.readline().startswith("epoch "):
        assert started[0].poll() is None, started[0].communicate()
    return started


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_signal_to_one_rank_stops_all_and_one_rank_resumes(project):
    larger_data(project)
    started = start_long(project, 2, "stopped")
    started[1].send_signal(signal.SIGUSR1)
    statuses, _, err = finish(started)
    assert statuses == [75, 75]
    assert err[0].startswith("stopped by SIGUSR1 in epoch") and err[1] == ""
    epochs = len(losses_of(project, "stopped")) // 2 + 1
    statuses, out, err = train(project, 1, "stopped", "--resume", f"--num_epochs={epochs}")
    assert statuses == [0], err
    notes = [line[12:] for line in out[0].splitlines() if line.startswith("note  ")]
    (note,) = (each for each in notes if not each.endswith("their origin is unknown"))
    assert (
        note.startswith("on 1 rank of 1 thread, cpu (") and ", after 2 ranks of 1 thread, " in note
    )
    assert note.endswith(": the bits may differ from those of an uninterrupted run")
    sessions = json.loads(file_of(project, "stopped_run.json").read_text())["sessions"]
    assert [session["ended_by"] for session in sessions] == ["SIGUSR1", "finished"]
    assert [session["change"] for session in sessions] == [None, note]
    statuses, out, err = train(project, 1, "whole", f"--num_epochs={epochs}")
    assert losses_of(project, "stopped") == pytest.approx(losses_of(project, "whole"), rel=1e-4)


def test_run_of_one_rank_is_resumed_by_two(project):
    """Both ranks start from the state that rank 0 has read."""
    train(project, 1, "grown", "--num_epochs=2")
    statuses, _, err = train(project, 2, "grown", "--num_epochs=4", "--resume")
    assert statuses == [0, 0], err
    train(project, 1, "whole", "--num_epochs=4")
    assert losses_of(project, "grown") == pytest.approx(losses_of(project, "whole"), rel=1e-5)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("lost", [0, 1])
def test_lost_rank_ends_the_others_with_a_sentence(project, lost):
    larger_data(project)
    started = start_long(project, 2, "lost")
    began = time.monotonic()
    started[lost].kill()
    statuses, _, err = finish(started)
    assert time.monotonic() - began < 30
    assert statuses[lost] == -signal.SIGKILL and statuses[1 - lost] == 1
    who = "error: " if lost else "rank 1: error: "
    assert err[1 - lost].startswith(f"{who}another of the 2 ranks was lost (")
    assert len(err[1 - lost].splitlines()) == 1
    epochs = len(losses_of(project, "lost")) // 2 + 1
    statuses, _, err = train(project, 2, "lost", "--resume", f"--num_epochs={epochs}")
    assert statuses == [0, 0], err
    sessions = json.loads(file_of(project, "lost_run.json").read_text())["sessions"]
    first = "another of the 2 ranks was lost (" if lost else "unknown: killed, or its machine"
    assert sessions[0]["ended_by"].startswith(first)
    assert sessions[1]["ended_by"] == "finished"


#: The command with a short limit; rank 0 takes longer than that to prepare its data.
IMPATIENT = """
import os, sys, time
from datetime import timedelta
sys.path[0] = os.getcwd()
os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"
from DJSW import main, train
from utils.distributed import collectives
collectives.TIMEOUT, collectives.ALIVE_EVERY = timedelta(seconds=4), 1
prepare = train.prepare_training

def prepare_slowly(args):
    if collectives.rank() == 0:
        print("preparing", flush=True)
        time.sleep(6)
    return prepare(args)

train.prepare_training = prepare_slowly
sys.exit(main.main())
"""


def start_impatient(project, name, epochs=100_000):
    (project / "impatient.py").write_text(IMPATIENT)
    flags = ("--exp_name", name, "--output_dir=weights/WMLP", "--train", "--device=cpu")
    return start(
        project, 2, *flags, "--num_epochs", epochs, script="impatient.py", start=start_python
    )


def start_python(command, **options):
    """Start a new Python: where torch is loaded already, it logs what a command keeps from it."""
    pipe = subprocess.PIPE
    words = [sys.executable, *map(str, command)]
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, **options)


def check_end(started, lost, sentence):
    """Check that the rank that is left ends soon, with a sentence."""
    began = time.monotonic()
    status, left = started[1 - lost].wait(60), time.monotonic() - began
    (_, error), who = started[1 - lost].communicate(), "error: " if lost else "rank 1: error: "
    assert (status, error.count("\n")) == (1, 1), error
    assert error.startswith(f"{who}{sentence}") and left < 25
    started[lost].kill()
    started[lost].communicate()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows has no SIGSTOP")
@pytest.mark.parametrize(
    ("how", "lost"),
    [
        ("SIGSTOP", 0),
        ("SIGKILL", 1),
        pytest.param("SIGKILL", 0, marks=pytest.mark.slow),
        pytest.param("SIGSTOP", 1, marks=pytest.mark.slow),
    ],
)
def test_rank_that_is_lost_before_they_meet(project, lost, how):
    started = start_impatient(project, "never")
    started[lost].send_signal(getattr(signal, how))
    check_end(started, lost, "the 2 ranks did not meet at 127.0.0.1:")


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows has no SIGSTOP")
@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("preparing", 0),
        ("epoch ", 1),
        pytest.param("preparing", 1, marks=pytest.mark.slow),
        pytest.param("epoch ", 0, marks=pytest.mark.slow),
    ],
)
def test_rank_that_is_stopped_ends_the_other_with_a_sentence(project, lost, line):
    started = start_impatient(project, "stopped")
    while not started[0].stdout.readline().startswith(line):
        assert started[0].poll() is None, started[0].communicate()
    started[lost].send_signal(signal.SIGSTOP)
    check_end(started, lost, "another of the 2 ranks was lost (")


def test_rank_0_may_prepare_for_longer_than_the_limit(project):
    statuses, _, err = finish(start_impatient(project, "patient", 2))
    assert (statuses, err) == ([0, 0], ("", ""))


@pytest.mark.parametrize(("count", "total"), [(1, 5), (2, 5), (3, 7), (4, 3), (8, 5843), (3, 0)])
def test_shares_are_a_division(monkeypatch, count, total):
    monkeypatch.setattr(collectives, "world_size", lambda: count)
    seen, sizes = [], []
    for rank in range(count):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        part = list(range(total))[collectives.shard(total)]
        seen += part
        sizes.append(len(part))
    assert seen == list(range(total))
    assert max(sizes) - min(sizes) <= 1


def test_same_seed_and_ranks_same_bits(project):
    for name in ("a", "b"):
        train(project, 2, name, "--num_epochs=2")
    hashes = {
        weights_sha256(load_checkpoint(file_of(project, f"{name}_checkpoint_best.pt")).weights)
        for name in ("a", "b")
    }
    assert len(hashes) == 1
