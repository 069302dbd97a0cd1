"""Records: run again and compared (reproduce.py), and listed (runs.py)."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, write_datasets

from DJSW import main as djsw
from DJSW import reproduce, runs
from utils.record import facts, source_hashes, source_sha256
from utils.signals import stop_request


@pytest.fixture
def ran(tmp_path, processed, monkeypatch):
    """A training and an evaluation of it, whose records are in ``out``."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["DJSW/main.py"])
    # What reproduce.py sets for its process would stay for the tests that follow in this one.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--username=waly", "--exp_name=first", f"--output_dir={out}"]
    assert djsw.main([*flags, "--train", "--num_epochs=3", "--seed=5", "--device=cpu"]) == 0
    weights = f"--load_checkpoint={out / 'first_checkpoint_best.pt'}"
    assert djsw.main([*flags, weights, "--device=cpu"]) == 0
    return out


def changed(path, change):
    """The record with a change made to it."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "count"), [("first_run.json", 27), ("first_metrics.json", 89)], ids=["train", "test"]
)
def test_reproduction_is_identical(ran, capsys, name, count):
    before = {path: path.read_bytes() for path in ran.rglob("*") if path.is_file()}
    assert reproduce.main([str(ran / name)]) == 0
    out = capsys.readouterr().out
    assert f"code        as recorded: the same {len(source_hashes())} source files" in out
    assert "data        as recorded" in out
    assert out.endswith(f"identical   all {count} numbers and hashes\n")
    assert "note  " not in out
    assert {path: path.read_bytes() for path in ran.rglob("*") if path.is_file()} == before
    assert reproduce.main([str(ran / name)]) == 2
    assert "holds an earlier reproduction; remove it" in capsys.readouterr().err


def test_differences_of_a_training_are_a_table(ran, capsys):
    def change(record):
        record["results"]["best"]["weights_sha256"] = 64 * "0"
        record["results"]["last"]["train_loss"] += 0.5

    changed(ran / "first_run.json", change)
    history = ran / "first_history.csv"
    rows = [line.split(",") for line in history.read_text().splitlines()]
    rows[2][1] = rows[3][1] = "9.5"  # the train loss of epochs 2 and 3
    history.write_text("".join(",".join(row) + "\n" for row in rows))
    assert reproduce.main([str(ran / "first_run.json")]) == 1
    out, err = capsys.readouterr()
    table = [line.split() for line in out.splitlines()[-4:]]
    assert table[0] == ["recorded", "again", "difference"]
    assert table[1][:2] == ["best.weights_sha256", "000000000000"]
    assert table[2][0] == "last.train_loss" and table[2][3] == "-0.5"
    assert table[3][:3] == ["epoch", "2.train_loss", "9.5"]
    assert err == "error: 4 of 27 numbers and hashes differ, the history from epoch 2 on\n"


def test_differences_of_an_evaluation_are_a_table(ran, capsys):
    changed(ran / "first_metrics.json", lambda record: record["per_class"][2].update(f1=0.25))
    assert reproduce.main([str(ran / "first_metrics.json")]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].split()[:3] == ["digit", "2.f1", "0.25"]
    assert err == "error: 1 of 89 numbers and hashes differ\n"


def test_code_versions_and_devices_that_differ_are_named(ran, capsys):
    def change(record):
        session = record["sessions"][-1]
        session["source"] |= {"models/wmlp.py": 64 * "0", "models/gone.py": 64 * "1"}
        del session["source"]["utils/adam.py"]
        session["versions"]["torch"] = "1.0"
        session["change"] = "on 1 rank, after 2 ranks: no longer the same bits"

    changed(ran / "first_run.json", change)
    assert reproduce.main([str(ran / "first_run.json")]) == 0
    out = capsys.readouterr().out
    assert (
        "code        differs from the recorded one in "
        "models/gone.py, models/wmlp.py, utils/adam.py\n" in out
    )
    assert "version     torch was 1.0, is " in out
    assert "note        a later part ran on 1 rank, after 2 ranks" in out


def test_other_data_or_weights_are_refused(ran, capsys, processed):
    for name, change, sentence in (
        ("first_run.json", lambda r: r["dataset"].update(images_sha256="0"), "images_sha256 is"),
        ("first_metrics.json", lambda r: r["checkpoint"].update(sha256="0"), "SHA-256 differs"),
        ("first_run.json", lambda r: r.update(status="stopped"), "is stopped: finish it first"),
        ("first_metrics.json", lambda r: r.update(username="nobody"), "is of nobody on usps_0_6"),
        ("first_metrics.json", lambda r: r.pop("session"), "is no record"),
    ):
        text = (ran / name).read_text()
        changed(ran / name, change)
        assert reproduce.main([str(ran / name)]) in (1, 2)
        err = capsys.readouterr().err
        assert sentence in err and len(err.splitlines()) == 1
        (ran / name).write_text(text)
    assert reproduce.main([str(ran / "first_history.csv")]) == 2
    assert reproduce.main([str(ran / "no.json")]) == 2


def test_record_that_was_copied(ran, capsys, tmp_path):
    """Under another name, and without its history."""
    copy = tmp_path / "a_copy.json"
    copy.write_bytes((ran / "first_run.json").read_bytes())
    assert reproduce.main([str(copy)]) == 0
    out = capsys.readouterr().out
    assert "note        no history is beside the record; only the results are compared\n" in out
    assert out.endswith("identical   all 12 numbers and hashes\n")


def test_reproduction_that_was_stopped_goes_on(ran, capsys, monkeypatch):
    def stop(*_):
        stop_request.signal = "SIGUSR1"
        return 1.0

    monkeypatch.setattr("DJSW.train.time.perf_counter", stop)
    assert reproduce.main([str(ran / "first_run.json")]) == 75
    monkeypatch.undo()
    monkeypatch.setattr(reproduce, "ROOT", ran.parent)
    monkeypatch.setattr("DJSW.pipelines.PROCESSED", ran.parent / "processed")
    assert reproduce.main([str(ran / "first_run.json")]) == 0
    out = capsys.readouterr().out
    assert "resumed     after 0 epochs and 1 steps" in out and "identical" in out


@pytest.mark.parametrize(
    "damage",
    [
        {"sessions": []},
        {"sessions": [{}]},
        {"sessions": None},
        {"settings": None},
        {"settings": []},
        {"results": None},
        {"starting_weights": "x"},
        {"username": ["waly"]},
        {"dataset": "usps_0_6"},
        {"exp_name": None, "status": None},
    ],
    ids=str,
)
def test_damaged_records_are_refused_before_anything_runs(ran, capsys, damage):
    changed(ran / "first_run.json", lambda record: record.update(damage))
    capsys.readouterr()
    assert reproduce.main([str(ran / "first_run.json")]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert "epoch" not in out


def test_odd_files_do_not_end_the_list(ran, capsys):
    (ran / "folder_run.json").mkdir()
    (ran / "link_run.json").symlink_to(ran / "nowhere")
    (ran / "deep_run.json").write_text(100_000 * "[")
    for name, change in (
        ("slurm", lambda r: r["sessions"][0].update(slurm=None)),
        ("empty", lambda r: r.update(sessions=[])),
        ("list", lambda r: r.update(results=[])),
    ):
        (ran / f"{name}_run.json").write_bytes((ran / "first_run.json").read_bytes())
        changed(ran / f"{name}_run.json", change)
    (ran / "odd_run.json").write_bytes((ran / "first_run.json").read_bytes())
    changed(ran / "odd_run.json", lambda r: r.update(exp_name="a\nb", username=None))
    capsys.readouterr()
    assert runs.main([str(ran)]) == 0
    out, err = capsys.readouterr()
    assert sum(line.startswith("20") for line in out.splitlines()) == 3
    assert "  a b  " in out
    assert len(err.splitlines()) == 6 and "Traceback" not in err


def test_training_from_weights_is_reproduced(ran, capsys):
    weights = f"--load_checkpoint={ran / 'first_checkpoint_best.pt'}"
    flags = ["--username=waly", "--exp_name=second", f"--output_dir={ran}", "--device=cpu"]
    assert djsw.main([*flags, "--train", "--num_epochs=1", "--lr=3e-4", weights]) == 0
    assert reproduce.main([str(ran / "second_run.json")]) == 0
    assert "identical" in capsys.readouterr().out


def test_runs_are_listed_newest_first(ran, capsys):
    changed(
        ran / "first_run.json", lambda r: r["sessions"][0].update(started="2026-01-02T03:04:05")
    )

    def on_lumi(record):
        record["session"] |= {
            "started": "2026-02-03T04:05:06",
            "git": {"commit": "0123456789", "changed": True},
            "slurm": {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
            "device": {"type": "cuda", "name": "AMD Instinct MI250X", "ranks": [{}] * 16},
        }

    changed(ran / "first_metrics.json", on_lumi)
    unfinished = json.loads((ran / "first_run.json").read_text())
    del unfinished["results"]
    unfinished |= {"status": "running", "exp_name": "killed"}
    unfinished["sessions"][0]["started"] = "2025-12-31T23:59:59"
    (ran / "below").mkdir()
    (ran / "below" / "killed_run.json").write_text(json.dumps(unfinished))
    (ran / "broken_run.json").write_text("{")
    capsys.readouterr()
    assert runs.main([str(ran)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    best = unfinished["sessions"][0]["git"]["commit"][:7]
    record = json.loads((ran / "first_run.json").read_text())["results"]
    metrics = json.loads((ran / "first_metrics.json").read_text())["metrics"]
    epochs = f"{record['best']['epoch']} of 3"
    accuracy = f"{record['best']['validation_accuracy']:.4f} validation"
    assert lines[1].startswith("2026-02-03 04:05  waly  first   evaluated   usps_0_6  ")
    assert f"{metrics['accuracy']:.4f} test" in lines[1]
    assert lines[1].endswith("16 x AMD Instinct MI250X  7_3  0123456*")
    assert lines[2].startswith(f"2026-01-02 03:04  waly  first   trained     usps_0_6  {epochs}")
    assert accuracy in lines[2] and best in lines[2]
    assert lines[3].startswith("2025-12-31 23:59  waly  killed  unfinished  usps_0_6  -")
    assert lines[-1].startswith("* with changes")
    assert err == f"no record: {ran / 'broken_run.json'}\n"


def test_no_runs_yet(tmp_path, capsys):
    assert runs.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("no records yet")
    assert runs.main([str(tmp_path / "nowhere")]) == 2


def test_listing_needs_no_torch():
    code = "import sys; from DJSW import runs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_source_hash_is_that_of_the_files():
    shown = subprocess.run(
        r"sha256sum $(git ls-files DJSW models datasetprep utils | grep '\.py$' | LC_ALL=C sort)",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    expected = dict(reversed(line.split()) for line in shown.stdout.splitlines())
    found = source_hashes()
    tracked = {name: found[name] for name in found if name in expected}
    assert tracked == expected
    assert source_sha256({"b": "2", "a": "1"}) != source_sha256({"b": "1", "a": "2"})


def test_facts_of_a_job(monkeypatch, tmp_path):
    """What run.sh hands over; and no Slurm variable that holds an absolute path."""
    (tmp_path / "git").write_text("0123\ndiff --git a/x b/x\n+1\n")
    (tmp_path / "run.sh").write_text("#!/bin/bash\n")
    for name, value in {
        "DJSW_GIT": str(tmp_path / "git"),
        "DJSW_BATCH_SCRIPT": str(tmp_path / "run.sh"),
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NODELIST": "nid[005001-005002]",
        "SLURM_SUBMIT_DIR": "/scratch/project",
    }.items():
        monkeypatch.setenv(name, value)
    members = [{"node": f"nid00500{i // 8}", "device": "AMD Instinct MI250X"} for i in range(16)]
    found = facts(torch.device("cpu"), members)
    assert found["git"] == {"commit": "0123", "changed": True}
    assert found["diff"] == "diff --git a/x b/x\n+1\n"
    assert found["batch_script"] == "#!/bin/bash\n"
    assert found["slurm"]["SLURM_JOB_NODELIST"] == "nid[005001-005002]"
    assert "SLURM_SUBMIT_DIR" not in found["slurm"]
    assert found["device"]["ranks"] == members
    assert found["device"]["name"] == "AMD Instinct MI250X"


@pytest.mark.parametrize("command", ["reproduce", "runs"])
def test_commands_start_as_scripts_from_anywhere(checkout, run_script, tmp_path, command):
    result = run_script(checkout / "DJSW" / f"{command}.py", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout


def test_reproduction_as_a_script(checkout, run_script, tmp_path):
    """With the recorded number of threads, though another is set: they decide the bits."""
    write_datasets(checkout / "data" / "processed")
    flags = ["--username=waly", "--exp_name=e", "--output_dir=weights/WMLP", "--train"]
    command = [*flags, "--num_epochs=2", "--device=cpu"]
    script = checkout / "DJSW" / "main.py"
    assert run_script(script, *command, cwd=checkout).returncode == 0
    result = run_script(
        checkout / "DJSW" / "reproduce.py",
        "weights/WMLP/e_run.json",
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert result.returncode == 0, result.stderr
    (path,) = (checkout / "reports" / "reproduced").glob("e_run_*/e_run.json")
    again = json.loads(path.read_text())
    assert again["sessions"][0]["device"]["threads"] == 1
