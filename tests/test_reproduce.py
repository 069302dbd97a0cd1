"""Runs that are repeated from their record and compared with it."""

import json
import os

import pytest
from conftest import write_datasets
from records import changed

from DJSW import main as djsw
from DJSW import reproduce
from utils.engine.signals import stop_request
from utils.records.provenance import source_hashes, source_sha256


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


def test_differences_of_a_run_are_a_table(ran, capsys):
    def change(record):
        record["results"]["best"]["weights_sha256"] = 64 * "0"
        record["results"]["last"]["train_loss"] += 0.5

    changed(ran / "first_run.json", change)
    assert reproduce.main([str(ran / "first_run.json")]) == 2
    assert "first_checkpoint_best.pt is not of the run of" in capsys.readouterr().err
    (ran / "first_checkpoint_best.pt").unlink()
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
        source = source_hashes() | {"models/wmlp.py": 64 * "0", "models/gone.py": 64 * "1"}
        del source["utils/engine/optimizer.py"]
        session |= {"source": source, "source_sha256": source_sha256(source)}
        session["versions"]["torch"] = "1.0"
        session["change"] = "on 1 rank, after 2 ranks: no longer the same bits"

    changed(ran / "first_run.json", change)
    assert reproduce.main([str(ran / "first_run.json")]) == 0
    out = capsys.readouterr().out
    assert (
        "code        differs from the recorded one in "
        "models/gone.py, models/wmlp.py, utils/engine/optimizer.py\n" in out
    )
    assert "version     torch was 1.0, is " in out

    def commit(record):  # which has the source: the record has its hash alone
        session = record["sessions"][-1]
        del session["source"]
        session["git"] = {"commit": "012345", "changed": False}

    changed(ran / "first_run.json", commit)
    assert reproduce.main([str(ran / "first_run.json")]) == 0
    where = "(git diff 012345 -- DJSW models datasetprep utils)"
    assert f"code        differs from the recorded one {where}\n" in capsys.readouterr().out
    assert "note        a later part ran on 1 rank, after 2 ranks" in out


def test_other_data_or_weights_are_refused(ran, capsys, processed):
    for name, change, sentence in (
        ("first_run.json", lambda r: r["dataset"].update(images_sha256="0"), "images_sha256 is"),
        ("first_metrics.json", lambda r: r["checkpoint"].update(sha256="0"), "SHA-256 differs"),
        ("first_run.json", lambda r: r.update(status="stopped"), "is stopped; finish it first"),
        ("first_metrics.json", lambda r: r.update(username="nobody"), "is of nobody on usps_0_6"),
        ("first_metrics.json", lambda r: r.pop("session"), "it lacks session"),
    ):
        text = (ran / name).read_text()
        changed(ran / name, change)
        assert reproduce.main([str(ran / name)]) in (1, 2)
        err = capsys.readouterr().err
        assert sentence in err and len(err.splitlines()) == 1
        (ran / name).write_text(text)
    assert reproduce.main([str(ran / "first_history.csv")]) == 2
    assert reproduce.main([str(ran / "no.json")]) == 2


@pytest.mark.parametrize("text", ["", "epoch\nx\n", "epoch,loss\n1,2,3\n", "epoch\n\xff"], ids=repr)
def test_damaged_history_is_refused(ran, capsys, text):
    (ran / "first_history.csv").write_bytes(text.encode("latin1"))
    status = reproduce.main([str(ran / "first_run.json"), "--check"])
    err = capsys.readouterr().err
    assert status == (2 if text else 0), "nothing to compare in an empty one"
    assert not text or "first_history.csv is not a valid history: " in err


def test_record_that_was_copied(ran, capsys, tmp_path):
    """The copy has another name, and no history."""
    copy = tmp_path / "a_copy.json"
    copy.write_bytes((ran / "first_run.json").read_bytes())
    assert reproduce.main([str(copy)]) == 0
    out = capsys.readouterr().out
    assert "note        no history is beside the record; only the results are compared\n" in out
    assert out.endswith("identical   all 12 numbers and hashes\n")


def test_reproduction_that_was_stopped_is_resumed(ran, capsys, monkeypatch):
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


def test_run_from_weights_is_reproduced(ran, capsys):
    weights = f"--load_checkpoint={ran / 'first_checkpoint_best.pt'}"
    flags = ["--username=waly", "--exp_name=second", f"--output_dir={ran}", "--device=cpu"]
    assert djsw.main([*flags, "--train", "--num_epochs=1", "--lr=3e-4", weights]) == 0
    assert reproduce.main([str(ran / "second_run.json")]) == 0
    assert "identical" in capsys.readouterr().out


def test_run_from_weights_of_other_digits_is_reproduced(ran, capsys):
    weights = f"--load_checkpoint={ran / 'first_checkpoint_best.pt'}"
    flags = ["--username=waly", "--exp_name=other", f"--output_dir={ran}", "--device=cpu"]
    flags += ["--dataset=mnist_0_3", "--train", "--num_epochs=1", "--seed=3", weights]
    assert djsw.main(flags) == 0
    capsys.readouterr()
    assert reproduce.main([str(ran / "other_run.json")]) == 0
    out = capsys.readouterr().out
    assert "kept        fc2 (initialized: fc1, fc3)\n" in out and "identical" in out


def test_run_with_other_arguments_is_reproduced(ran, capsys):
    flags = ["--username=waly", "--exp_name=wide", f"--output_dir={ran}", "--device=cpu"]
    assert djsw.main([*flags, "--train", "--num_epochs=1", "--set", "hidden_dim=12"]) == 0
    assert reproduce.main([str(ran / "wide_run.json")]) == 0
    assert "identical" in capsys.readouterr().out


def test_reproduction_as_a_script(checkout, run_script, tmp_path):
    """It uses the recorded number of threads, on which the bits depend, though another is set."""
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
