"""Sweeps: real worker processes for kills and signals, in this process for everything else."""

import csv
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from argparse import Namespace

import pytest
from conftest import clean_environment, copy_code, exit_status, write_datasets

from DJSW import main as djsw
from DJSW import sweep
from utils.records.checkpoint import load_checkpoint, weights_sha256
from utils.records.run import read_run
from utils.report import sweep_page
from utils.report.sweep_page import RankedSettings, SweepRun

pytest.importorskip("optuna")
WALY = ("--username", "waly", "--device", "cpu")


@pytest.fixture
def run(processed, tmp_path, monkeypatch, capsys):
    """Call the command with ``out`` as output folder; its worker is this process."""
    monkeypatch.setattr(
        sweep, "run_workers", lambda s, count: sweep.take_trials(Namespace(sweep=s))
    )
    (tmp_path / "out").mkdir()

    def call(*arguments: object, user: tuple[str, ...] = WALY):
        status = exit_status(sweep.main, *user, "--output_dir", tmp_path / "out", *arguments)
        out, error = capsys.readouterr()
        return status, out, error

    call.out = tmp_path / "out"  # type: ignore[attr-defined]
    return call


def weights(path):
    return weights_sha256(load_checkpoint(path).weights)


def test_seeds_are_runs_like_any_other(run, processed):
    """The same weights as by main.py, names by seed, resumable; more seeds are added."""
    command = ("--exp_name", "w", "--num_epochs", 2, "--seeds")
    status, out, _ = run(*command, "1,3")
    assert status == 0 and "trials to do: 2" in out and "2/2  w_3; validation loss" in out
    before = (run.out / "w_1_run.json").stat().st_mtime_ns
    status, out, _ = run(*command, "1-3")
    assert status == 0 and "trials to do: 1" in out and "3/3  w_2" in out
    assert (run.out / "w_1_run.json").stat().st_mtime_ns == before
    assert "finished    before: " in run(*command, "1-3")[1]
    alone = ("--train", "--exp_name", "alone", "--num_epochs", 2, "--seed", 3)
    assert exit_status(djsw.main, *WALY, "--output_dir", run.out, *alone) == 0
    for ending in ("checkpoint_best.pt", "checkpoint_epoch_2.pt"):
        assert weights(run.out / f"w_3_{ending}") == weights(run.out / f"alone_{ending}")
    found, expected = (read_run(run.out / f"{name}_run.json") for name in ("w_3", "alone"))
    assert found["settings"] == expected["settings"]
    page = (run.out / "w_sweep.md").read_text()
    assert "Runs: 3 finished, 0 pruned, 0 failed" in page and "±" in page


def test_grid_ranks_settings_by_validation_loss(run, processed):
    for path in processed.glob("*test*"):
        path.unlink()  # a sweep never reads them
    grid = ("--grid", "lr=1e-5,0.01", "--set", "hidden_dim=20,30", "--num_epochs", 2)
    assert run("--exp_name", "g", *grid, "--seeds", "1-2")[0] == 0
    with (run.out / "g_sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["status"] for row in rows} == {"finished"}
    means: dict[tuple[str, str], float] = {}
    for row in rows:
        record = read_run(run.out / f"{row['name']}_run.json")
        assert record["settings"]["lr"] == float(row["lr"])
        assert record["settings"]["seed"] == int(row["seed"])
        assert record["model"]["arguments"]["hidden_dim"] == int(row["set.hidden_dim"])
        loss = record["results"]["best"]["validation_loss"]
        assert loss == float(row["loss"])
        key = row["lr"], row["set.hidden_dim"]
        means[key] = means.get(key, 0) + loss / 2
    ranked = json.loads((run.out / "g_sweep.json").read_text())["settings"]
    assert [each["mean"] for each in ranked] == pytest.approx(sorted(means.values()))
    best = ranked[0]["settings"]
    page = (run.out / "g_sweep.md").read_text()
    assert f"--lr {best['lr']} --set hidden_dim={best['set.hidden_dim']}" in page
    assert (run.out / "g_sweep.png").stat().st_size > 10_000


def test_folds_validate_on_each_part_in_turn(run):
    assert run("--exp_name", "f", "--folds", 3, "--num_epochs", 1)[0] == 0
    folds = [read_run(run.out / f"f_42_fold{k}_run.json")["settings"]["fold"] for k in (1, 2, 3)]
    assert folds == ["1/3", "2/3", "3/3"]
    with (run.out / "f_sweep.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    ranked = json.loads((run.out / "f_sweep.json").read_text())["settings"]
    assert ranked[0]["mean"] == pytest.approx(sum(losses) / 3)


def test_search_prunes_and_keeps_the_best_checkpoints(run, monkeypatch):
    ranges = {"lr": (1e-6, 1e-2), "augmentation": ["none", "strong"]}
    monkeypatch.setitem(sweep.SEARCHES, "recipe", ranges)
    command = ("--exp_name", "s", "--search", "recipe", "--folds", 2, "--num_epochs", 10)
    status, out, _ = run(*command, "--trials", 30)
    assert status == 0 and "30/30" in out and "; pruned in epoch" in out
    with (run.out / "s_sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_status = {s: [row for row in rows if row["status"] == s] for s in ("finished", "pruned")}
    assert len(by_status["finished"]) + len(by_status["pruned"]) == len(rows) < 60
    assert {int(row["trial"]) for row in rows} == set(range(30))
    assert by_status["pruned"], "with learning rates this far apart some are hopeless"
    lines = [line for line in out.splitlines() if "/30  s_" in line]
    losses = [
        float(line.split("validation loss ")[1].split()[0])
        for line in lines
        if "validation loss" in line
    ]
    assert f"(best {min(losses):.4f}, complete)" in lines[-1]
    folder = run.out / "s_trials"
    for trial in {row["trial"] for row in by_status["pruned"]}:
        *_, last = (row["name"] for row in by_status["pruned"] if row["trial"] == trial)
        record = json.loads((folder / f"{last}_run.json").read_text())
        assert record["status"] == "pruned" and f" of {last}: the median" in record["reason"]
        assert int(record["reason"].split()[3]) >= 5  # from the middle of the run on
    best = json.loads((run.out / "s_sweep.json").read_text())["settings"][0]["runs"]
    assert sorted(path.name for path in folder.glob("*.pt")) == sorted(
        f"{name}_checkpoint_best.pt" for name in best
    )
    assert not list(folder.glob("*_tensorboard"))
    assert {"lr", "augmentation"} == set(
        json.loads((run.out / "s_sweep.json").read_text())["importance"]
    )
    assert "31/31" in run(*command, "--trials", 31)[1]


def test_a_grid_that_grows_by_a_flag(run):
    same = ("--exp_name", "g", "--num_epochs", 1, "--grid")
    assert run(*same, "lr=1e-5")[0] == 0
    status, out, _ = run(*same, "lr=3e-3", "batch_size=32")
    assert status == 0 and "2/2  g_2_42; lr 0.003, batch_size 32" in out


def test_half_a_line_of_a_journal_is_removed(run):
    assert run("--exp_name", "h", "--num_epochs", 1)[0] == 0
    journal = run.out / "h_sweep.journal"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    (run.out / "h_sweep.json").unlink()
    status, _, err = run("--exp_name", "h", "--num_epochs", 1)
    assert (status, err) == (0, "")


def test_settings_are_compared_on_the_same_seeds_and_folds():
    def ranked(losses):
        runs = [
            SweepRun(0, "n", {}, k, None, "finished", "", 1, loss, 1.0, 1.0)
            for k, loss in enumerate(losses)
        ]
        return RankedSettings({}, runs, statistics.fmean(losses), None)

    first, second = ranked([0.1, 0.5, 0.9]), ranked([0.11, 0.53, 0.92])
    text = sweep_page.sweep_page("e", {"folds": None}, [], [first, second], {})
    error = statistics.stdev([0.01, 0.03, 0.02]) / 3**0.5
    assert f"lower than the next by 0.0200 ± {error:.4f}, beyond two standard errors" in text


def test_diverged_runs_are_results(run):
    status, out, _ = run("--exp_name", "d", "--grid", "lr=0.001,1e30", "--num_epochs", 2)
    assert status == 0 and "the loss is" in out
    page = (run.out / "d_sweep.md").read_text()
    assert "1 finished, 0 pruned, 1 failed" in page and "- d_2_42: the loss is" in page


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--grid", "momentum=1,2"), "--grid: 'momentum=1,2' is not NAME=V1,V2 of recipe,"),
        (("--grid", "lr"), "'lr' lacks a value"),
        (("--grid", "lr=1,1"), "'lr=1,1' lacks a value, or has one or a name twice"),
        (("--grid", "lr=fast"), "--grid lr: 'fast' is not a finite number"),
        (("--grid", "recipe=standard,best"), "--recipe: 'best' is unknown (choose from"),
        (("--grid", "lr=1,2", "--lr", "3"), "--lr is given twice, also by --grid"),
        (("--grid", "lr=1,2", "--search", "recipe"), "--search and a grid of values exclude"),
        (("--seeds", "5-1"), "'5-1' is an empty range"),
        (("--seeds", "1,1"), "'1,1' has over 1000 seeds, or one of them twice"),
        (("--seeds", "a"), "'a' is not a whole number"),
        (("--trials", "0", "--search", "recipe"), "'0' is not a whole number from 1"),
        (("--trials", "5"), "--trials needs --search"),
        (("--set", "nothere=1,2", "--check"), "has no argument 'nothere'"),
        (("--set", "hidden_dim=abc,5", "--check"), "cannot be built"),
        (("--grid", "lr=1e-3,0.001"), "a value is given twice"),
        (("--folds", "1"), "is not N or N/writers, such as 5"),
        (("--set", "1x=2"), "'1x=2' is not NAME=VALUE"),
        (("--set", "width=2"), "has no argument 'width'"),
        (("--jobs", "0"), "'0' is not a whole number from 1"),
        (("--recipe", "tuned", "--dataset", "nowhere"), "invalid choice: 'nowhere'"),
    ],
)
def test_wrong_use_is_one_sentence(run, flags, sentence):
    status, _, error = run("--exp_name", "x", *flags)
    assert status == 2 and sentence in error and error.count("\n") == 1


def test_folds_by_writers_need_writers(run):
    status, _, error = run("--exp_name", "x", "--folds", "2/writers", "--check")
    assert status == 1 and "does not say who wrote its digits" in error
    assert not any(run.out.iterdir())


def test_names_and_studies_of_others_are_refused(run):
    train = ("--train", "--exp_name", "w_2", "--num_epochs", 1, "--output_dir", run.out)
    assert exit_status(djsw.main, *WALY, *train) == 0
    error = run("--exp_name", "w", "--seeds", "1-3")[2]
    assert "w_2_checkpoint_best.pt exists already; give another" in error
    assert run("--exp_name", "v", "--num_epochs", 1)[0] == 0
    error = run("--exp_name", "v", "--num_epochs", 2)[2]
    assert "is of a sweep with num_epochs 1, here it is 2; give the same" in error
    assert "with search None, here it is recipe" in run(
        "--exp_name", "v", "--num_epochs", 1, "--search", "recipe"
    )[2]  # fmt: skip


def test_without_optuna_a_sentence_says_what_to_type(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, error = run("--exp_name", "x")
    assert status == 2 and error.startswith("error: a sweep needs Optuna: pip install")
    assert error.count("\n") == 1


@pytest.mark.parametrize("damage", ["cut", "text", "plan", "folder"])
def test_damaged_journal(run, damage):
    command = ("--exp_name", "j", "--num_epochs", 1)
    assert run(*command)[0] == 0
    journal = run.out / "j_sweep.journal"
    content = journal.read_bytes()
    if damage == "folder":
        journal.unlink()
        journal.mkdir()
    else:
        changed = {"cut": content[:60], "text": b"x\n" + content, "plan": content}[damage]
        journal.write_bytes(changed.replace(b'"changed"', b'"changes"'))
        if damage == "cut":
            journal.write_bytes(content[:60] + b"\n" + content[200:])
    status, _, error = run(*command)
    assert status == 2 and error.count("\n") == 1
    assert "is no file" in error if damage == "folder" else "j_sweep.journal is damaged" in error


@pytest.fixture
def project(tmp_path):
    """A checkout with tiny data."""
    project = copy_code(tmp_path / "project")
    write_datasets(project / "data" / "processed")
    (project / "out").mkdir()
    return project


def start(project, *flags):
    """Start a sweep with workers, in a process group of its own."""
    command = [sys.executable, project / "DJSW" / "sweep.py", *WALY, "--output_dir", "out", *flags]
    return subprocess.Popen(
        [*map(str, command)],
        cwd=project,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(process):
    """Return the workers' process ids."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)],
        capture_output=True,
        text=True,
    )
    lines = [line.split(None, 1) for line in listed.stdout.splitlines()]
    return [int(pid) for pid, command in lines if "spawn_main" in command]


def wait_for(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def all_weights(folder):
    return {path.name: weights(path) for path in sorted(folder.glob("*_checkpoint_best.pt"))}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_all_workers_with_their_states_saved(project, number):
    """As a terminal sends SIGINT and Slurm SIGUSR1, to all processes; SIGTERM to the command."""
    flags = ("--exp_name", "w", "--seeds", "1-3", "--num_epochs", "60", "--jobs", "2")
    process = start(project, *flags)
    states = [project / "out" / f"w_{seed}_history.csv" for seed in (1, 2)]
    wait_for(lambda: all(path.exists() for path in states), process)
    # Only SIGTERM comes to the command alone.
    process.terminate() if number == signal.SIGTERM else os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, 75)
    assert error.count("\n") == 1 and "the same command continues" in error
    for seed in (1, 2):
        record = read_run(project / "out" / f"w_{seed}_run.json")
        assert record["status"] in ("stopped", "finished")
    process = start(project, *flags)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and "3/3" in out, error


def test_killed_workers_lose_no_trial(project):
    """The others take up what a killed one had; the weights are those of an undisturbed sweep."""
    flags = ("--grid", "lr=0.001,0.01", "--seeds", "1-3", "--num_epochs", "150", "--jobs", "2")
    process = start(project, "--exp_name", "calm", *flags)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    process = start(project, "--exp_name", "storm", *flags)
    random.seed(0)
    killed = 0
    while process.poll() is None and killed < 4:
        time.sleep(random.uniform(0.1, 0.8))
        pids = children(process)
        if pids and list((project / "out").glob("storm_*_history.csv")):
            os.kill(random.choice(pids), signal.SIGKILL)
            killed += 1
    out, error = process.communicate(timeout=100)
    while process.returncode == 1:
        assert "are not finished: their workers died; run it again" in error
        process = start(project, "--exp_name", "storm", *flags)
        out, error = process.communicate(timeout=100)
    assert process.returncode == 0 and "6/6" in out and killed >= 2, error
    calm = all_weights(project / "out")
    for name in [name for name in calm if name.startswith("storm")]:
        assert calm[name] == calm[name.replace("storm", "calm")]


@pytest.mark.slow
def test_eight_workers_share_200_trials(project):
    """None is lost, none is done twice, through 30 kills at random moments."""
    seeds = ",".join(map(str, range(1, 21)))
    flags: tuple[str, ...] = (
        "--exp_name",
        "m",
        "--grid",
        "lr=1e-4,3e-4,1e-3,3e-3,1e-2",
        "batch_size=8,16",
    )
    flags += ("--seeds", seeds, "--num_epochs", "3", "--jobs", "8")
    random.seed(1)
    killed, status = 0, None
    while status != 0:
        process = start(project, *flags)
        while process.poll() is None:
            time.sleep(random.uniform(0.1, 0.6))
            pids = children(process)
            if pids and killed < 30 and list((project / "out").glob("m_*_history.csv")):
                os.kill(random.choice(pids), signal.SIGKILL)
                killed += 1
        _, error = process.communicate()
        status = process.returncode
        assert status == 0 or "their workers died" in error
    with (project / "out" / "m_sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [row["name"] for row in rows]
    assert killed == 30 and len(names) == len(set(names)) == 200
    assert {row["status"] for row in rows} == {"finished"}
    journal = (project / "out" / "m_sweep.journal").read_text().splitlines()
    told = [json.loads(line) for line in journal if '"values":[' in line]
    assert len({each["trial_id"] for each in told}) == len(told) == 200
