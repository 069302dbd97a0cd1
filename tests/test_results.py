"""The README's results and the model cards, from records of tiny runs."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, exit_status, write_datasets
from records import changed

from DJSW import main as djsw
from DJSW import pipelines, results
from DJSW.pipelines import DATASETS, PEOPLE
from DJSW.recipes import RECIPES, Recipe
from utils.records.checkpoint import load_checkpoint, write_checkpoint
from utils.records.typed import content_sha256

TINY = {name: Recipe(num_epochs=2, batch_size=32, lr=0.01) for name in DATASETS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of waly's network by both recipes, the tuned one with two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "git").write_text("0123\n")  # a commit, and no changes
    write_datasets(folder / "processed")
    weights, reports = folder / "weights" / "WMLP", folder / "reports"
    weights.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "PROCESSED", folder / "processed")
        patch.setattr(sys, "argv", ["DJSW/main.py", "--train"])
        patch.setenv("DJSW_GIT", str(folder / "git"))
        for recipe in RECIPES:
            patch.setitem(RECIPES, recipe, TINY)
        for name, seed, recipe in (
            ("wmlp_standard", 42, "standard"),
            ("wmlp_tuned_1", 1, "tuned"),
            ("wmlp_tuned_2", 2, "tuned"),
            ("wmlp_tuned_other", 3, "tuned"),
        ):
            flags = ["--username=waly", f"--exp_name={name}"]
            train = [f"--output_dir={weights}", "--train", f"--seed={seed}", f"--recipe={recipe}"]
            assert djsw.main([*flags, *train]) == 0
            best = f"--load_checkpoint={weights / name}_checkpoint_best.pt"
            (reports / recipe).mkdir(parents=True, exist_ok=True)
            assert djsw.main([*flags, f"--output_dir={reports / recipe}", best]) == 0
    (folder / "README.md").write_text(f"before\n{results.BEGIN}old\n{results.END}after\n")
    return folder


@pytest.fixture
def published(runs, tmp_path, monkeypatch):
    """A copy of the runs, as the repository."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(pipelines, "PROCESSED", tmp_path / "processed")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["DJSW/main.py", "--train"])
    monkeypatch.setenv("DJSW_GIT", str(tmp_path / "git"))
    for recipe in RECIPES:
        monkeypatch.setitem(RECIPES, recipe, TINY)
    return tmp_path


def test_table_and_card_say_what_the_records_say(published, capsys):
    assert results.main([]) == 0
    assert capsys.readouterr().out.count("written     ") == 2
    readme = (published / "README.md").read_text()
    assert readme.startswith(f"before\n{results.BEGIN}\n") and readme.endswith(
        f"{results.END}after\n"
    )
    rows = [line.split("|") for line in readme.splitlines() if line.startswith("| WMLP")]
    assert [row[2].strip() for row in rows] == ["standard", "tuned"]
    loss, accuracy = {}, {}
    for name in ("wmlp_tuned_1", "wmlp_tuned_2"):
        record = json.loads((published / "weights" / "WMLP" / f"{name}_run.json").read_text())
        loss[name] = record["results"]["best"]["validation_loss"]
        measured = json.loads(
            (published / "reports" / "tuned" / f"{name}_metrics.json").read_text()
        )
        accuracy[name] = measured["metrics"]["accuracy"]
    best = min(loss, key=lambda name: loss[name])
    assert rows[1][3].strip() == "2"
    assert rows[1][4].strip().startswith(f"{sum(accuracy.values()) / 2:.4f} ± ")
    assert rows[1][5].strip().startswith(f"{accuracy[best]:.4f} (")
    assert rows[1][6].strip() == f"{round(43 * (1 - accuracy[best]))} of 43"
    card = (published / "weights" / "WMLP" / "README.md").read_text()
    assert card.startswith("# WMLP: waly's network\n") and "36,507 parameters" in card
    assert "seeds 1, 2." in card and "seed 42." in card and "wmlp_tuned_other" not in card
    assert (
        f"(../../reports/tuned/{best}_report.md)" in card and f"`{best}_checkpoint_best.pt`" in card
    )
    assert f"{accuracy[best]:.4f}" in card and results.LICENSES["usps"] in card
    assert "--everyone" not in card
    assert results.main([]) == 0
    assert capsys.readouterr().out == ""  # nothing is out of date


def test_missing_files_are_reported(published, capsys):
    (published / "reports" / "tuned" / "wmlp_tuned_2_metrics.json").unlink()
    assert results.main([]) == 2
    assert "wmlp_tuned_2_metrics.json is missing" in capsys.readouterr().err
    (published / "weights" / "WMLP" / "wmlp_tuned_2_run.json").unlink()
    (published / "README.md").write_text("nothing")
    assert results.main([]) == 2
    assert "lacks the lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "stopped by SIGINT"}, "status is stopped by SIGINT, expected finished"),
        ({"settings": {"recipe": "standard"}}, "recipe is standard, expected tuned"),
        ({"username": "dennis"}, None),
        ({"dataset": {"name": "mnist_0_3"}}, None),
    ],
)
def test_only_finished_runs_of_the_recipe_count(published, capsys, change, message):
    path = published / "weights" / "WMLP" / "wmlp_tuned_2_run.json"

    def apply(record):
        for name, value in change.items():
            record[name] = record[name] | value if isinstance(value, dict) else value

    changed(path, apply)
    assert results.main([]) == (2 if message else 0)
    if message:
        assert message in capsys.readouterr().err
    else:
        (tuned,) = [each for each in results.results()["waly"] if each.recipe == "tuned"]
        assert list(tuned.runs) == ["wmlp_tuned_1"]


def test_only_runs_by_recipe_and_entry_from_committed_code_are_published(
    published, capsys, monkeypatch
):
    path, readme = published / "weights" / "WMLP" / "wmlp_tuned_2_run.json", published / "README.md"
    before = path.read_text(), readme.read_text()
    start = {"file": "a.pt", "sha256": "0"}
    for change, message in (
        (lambda r: r["settings"].update(num_epochs=1), "settings.num_epochs is 1, expected 2"),
        (lambda r: r["settings"].pop("seed"), "settings.seed is None, expected any number"),
        (lambda r: r["settings"].update(fold="1/5"), "settings.fold is 1/5, expected None"),
        (
            lambda r: r["settings"].update(augmentation={"nodes": 6}),
            "settings.augmentation.nodes is 6, expected None",
        ),
        (lambda r: r.update(starting_weights=start), "starting_weights.file is a.pt, expected"),
        (
            lambda r: r["model"]["arguments"].update(hidden_dim=50),
            "arguments.hidden_dim is 50, expected 100",
        ),
        (
            lambda r: r["sessions"][0]["git"].update(changed=True),
            "sessions.0.git.changed is True, expected False",
        ),
        (
            lambda r: r["sessions"].append(r["sessions"][0] | {"git": None}),
            "sessions.1.git.changed is None, expected False",
        ),
    ):
        changed(path, change)
        assert results.main([]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {path} cannot be published: {message}")
        assert len(err.splitlines()) == 1 and "train it again by the recipe 'tuned'" in err
        path.write_text(before[0])
    wider = dataclasses.replace(PEOPLE["waly"], arguments={"hidden_dim": 128})
    monkeypatch.setitem(PEOPLE, "waly", wider)
    assert results.main([]) == 2
    assert "arguments.hidden_dim is 100, expected 128" in capsys.readouterr().err
    assert readme.read_text() == before[1]


def test_evaluations_and_checkpoints_of_other_weights_are_not_published(published, capsys):
    """An evaluation of the standard run under the tuned run's name, and the like."""
    weights, tuned = published / "weights" / "WMLP", published / "reports" / "tuned"
    metrics, best = tuned / "wmlp_tuned_2_metrics.json", weights / "wmlp_tuned_2_checkpoint_best.pt"
    other = weights / "wmlp_tuned_1_checkpoint_best.pt"
    predictions = tuned / "wmlp_tuned_2_predictions.csv.gz"
    evaluated = metrics.read_bytes(), predictions.read_bytes()
    own, loaded = best.read_bytes(), load_checkpoint(best)

    def refused(sentence):
        assert results.main([]) == 2
        err = capsys.readouterr().err
        assert sentence in err and len(err.splitlines()) == 1

    for path in (best, other):  # with and without the run's own checkpoint
        metrics.unlink()
        flags = ["--username=waly", "--exp_name=wmlp_tuned_2", f"--output_dir={tuned}"]
        assert djsw.main([*flags, f"--load_checkpoint={other}"]) == 0
        refused("the evaluation wmlp_tuned_2 is not of the run of")
        if path is best:
            best.unlink()
    metrics.write_bytes(evaluated[0])
    predictions.write_bytes(evaluated[1])
    best.write_bytes(other.read_bytes())
    refused("wmlp_tuned_2_checkpoint_best.pt is not of the run of")
    settings = {**loaded.metadata["settings"], "lr": 0.5}
    write_checkpoint(best, loaded.weights, {**loaded.metadata, "settings": settings})
    refused("settings.lr is 0.5, not 0.01")
    best.write_bytes(own)
    bits = bytearray((weights / "wmlp_tuned_2_run.json").read_bytes())
    bits[bits.index(b"train_loss") + 15] ^= 1
    (weights / "wmlp_tuned_2_run.json").write_bytes(bits)
    refused("wmlp_tuned_2_run.json is not a valid record of a run: it was changed")


def test_evaluations_on_other_test_sets_are_not_published(published, capsys):
    """Their mean over the seeds would be of different images."""
    path = published / "reports" / "tuned" / "wmlp_tuned_2_metrics.json"
    before = path.read_text()
    for name, value, found in (
        ("name", "mnist_0_3", "is mnist_0_3, expected usps_0_6 "),
        ("images_sha256", "0" * 64, "0" * 64),  # which of the two is right is not known
        ("labels_sha256", "0" * 64, "0" * 64),
        ("source", None, "is None, expected "),
    ):
        changed(path, lambda record, new={name: value}: record["dataset"].update(new))
        assert results.main([]) == 2
        err = capsys.readouterr().err
        assert "cannot be published: dataset." in err and len(err.splitlines()) == 1
        assert f"dataset.{name} of its test set is " in err and found in err
        path.write_text(before)
    changed(path, lambda record: record["dataset"].pop("source"))  # as earlier records
    assert results.main([]) == 0


def test_cards_name_only_files_that_exist(published):
    (tuned,) = [each for each in results.results()["waly"] if each.recipe == "tuned"]
    (published / "reports" / "tuned" / f"{tuned.name}_report.md").unlink()
    (published / "weights" / "WMLP" / "wmlp_standard_mnist_0_3_run.json").touch()
    assert results.main([]) == 0
    card = (published / "weights" / "WMLP" / "README.md").read_text()
    assert "standard_report.md" in card and f"{tuned.name}_report.md" not in card
    assert "Other runs in this folder are those of `compare.py --everyone`" in card


def test_every_source_has_a_license():
    assert {entry.source for entry in DATASETS.values()} <= results.LICENSES.keys()


def test_odd_files_do_not_end_the_list(ran, capsys):
    (ran / "folder_run.json").mkdir()
    (ran / "link_run.json").symlink_to(ran / "nowhere")
    (ran / "deep_run.json").write_text(100_000 * "[")
    os.mkfifo(ran / "pipe_run.json")
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
    assert results.main(["--list", str(ran)]) == 0
    out, err = capsys.readouterr()
    assert sum(line.startswith("20") for line in out.splitlines()) == 2
    assert len(err.splitlines()) == 8 and "Traceback" not in err
    assert all(line.startswith(f"no record: {ran}/") for line in err.splitlines())
    assert max(map(len, err.splitlines())) <= 411
    for sentence in (
        "pipe_run.json is not a valid record of a run: it is no regular file",
        "slurm_run.json is not a valid record of a run: sessions[0].slurm is 'None', expected",
        "odd_run.json is not a valid record of a run: exp_name is 'a\\\\nb', expected printable",
        "deep_run.json is not a valid record of a run: it is nested more than 50 levels deep",
    ):
        assert sentence in err


def test_runs_are_listed_newest_first(ran, capsys):
    changed(
        ran / "first_run.json", lambda r: r["sessions"][0].update(started="2026-01-02T03:04:05")
    )

    def on_lumi(record):
        record["session"] |= {
            "started": "2026-02-03T04:05:06",
            "git": {"commit": "0123456789", "changed": True},
            "slurm": {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
            "device": {
                "type": "cuda",
                "name": "AMD Instinct MI250X",
                "threads": 1,
                "ranks": [{}] * 16,
            },
        }

    changed(ran / "first_metrics.json", on_lumi)
    unfinished = json.loads((ran / "first_run.json").read_text())
    del unfinished["results"]
    unfinished |= {"status": "running", "exp_name": "killed"}
    unfinished["sessions"][0]["started"] = "2025-12-31T23:59:59"
    unfinished["sha256"] = content_sha256(unfinished)
    (ran / "below").mkdir()
    (ran / "below" / "killed_run.json").write_text(json.dumps(unfinished))
    (ran / "broken_run.json").write_text("{")
    capsys.readouterr()
    assert results.main(["--list", str(ran)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    best = unfinished["sessions"][0]["git"]["commit"][:7]
    record = json.loads((ran / "first_run.json").read_text())["results"]
    metrics = json.loads((ran / "first_metrics.json").read_text())["metrics"]
    epochs = f"{record['best']['epoch']} of 3"
    accuracy = f"{record['best']['validation_accuracy']:.4f} validation"
    assert lines[1].startswith("2026-02-03 04:05  waly  first       evaluated   usps_0_6  ")
    assert f"{metrics['accuracy']:.4f} test" in lines[1]
    assert lines[1].endswith("16 x AMD Instinct MI250X  7_3  0123456*")
    assert lines[2].startswith(
        f"2026-01-02 03:04  waly  first       trained     usps_0_6  {epochs}"
    )
    assert accuracy in lines[2] and best in lines[2]
    assert lines[3].startswith("2025-12-31 23:59  waly  killed      unfinished  usps_0_6  -")
    assert lines[-1].startswith("* with changes")
    assert err.startswith(f"no record: {ran / 'broken_run.json'} is not a valid record of a run: ")
    assert err.count("\n") == 1


def test_list_has_settings_seed_and_loss_and_is_sorted(ran, capsys):
    first = json.loads((ran / "first_run.json").read_text())
    augmentation = {"rotation": 1.0, "scale": 0.0}
    for name, loss, status, settings, arguments in (
        ("a_10", 0.5, "finished", {"lr": 0.003, "seed": 10}, {"hidden_dim": 200}),
        ("a_9", 0.25, "pruned", {"num_epochs": 100, "seed": 9, "fold": "1/5"}, {}),
        ("a_2", 10.0, "failed", {"augmentation": augmentation}, {}),
    ):
        record = json.loads(json.dumps(first)) | {"exp_name": name, "status": status}
        record["settings"] |= settings
        record["model"]["arguments"] |= arguments
        record["results"]["best"]["validation_loss"] = loss
        record["sha256"] = content_sha256(record)
        (ran / f"{name}_run.json").write_text(json.dumps(record))
    table = ran / "list.csv"

    def listed(*flags):
        capsys.readouterr()
        assert results.main(["--list", str(ran), *flags]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return {line.split()[3]: line for line in out.splitlines() if line.startswith("20")}, out

    lines, out = listed("--sort", "validation_loss", "--csv", str(table))
    assert out.startswith("time (UTC)        user  experiment  status") and "\x1b" not in out
    losses = [first["results"]["best"]["validation_loss"], 0.25, 0.5, 10.0]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["validation_loss"]) for row in rows[:4]] == sorted(losses)
    assert rows[4]["status"] == "evaluated" and rows[4]["validation_loss"] == ""
    assert "0.5000     10    num_epochs 3, lr 0.003, hidden_dim 200 " in lines["a_10"]
    assert "  pruned  " in lines["a_9"] and "0.2500     9     fold 1/5 " in lines["a_9"]
    assert "  failed  " in lines["a_2"] and "augmentation another" in lines["a_2"]
    by_name = {row["experiment"]: row for row in rows}
    assert by_name["a_10"]["settings.lr"] == "0.003"
    assert by_name["a_10"]["settings.batch_size"] == "64"
    assert by_name["a_10"]["arguments.hidden_dim"] == "200"
    assert by_name["a_2"]["settings.augmentation.rotation"] == "1.0"
    for column, expected in (
        ("experiment", ["a_2", "a_9", "a_10", "first"]),
        ("seed", ["first", "a_9", "a_10"]),
    ):
        order = list(listed("--sort", column)[0])
        assert [name for name in order if name in expected] == expected
    for flags, sentence in (
        (["--list", str(ran), "--sort", "los"], "argument --sort: invalid choice: 'los'"),
        (["--sort", "seed"], "--sort and --csv are for the list of runs; give --list"),
        (["--list", str(ran), "--csv", str(ran / "none" / "x.csv")], "--csv"),
    ):
        assert exit_status(results.main, *flags) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and sentence in err and err.count("\n") == 1


def test_no_runs_yet(tmp_path, capsys):
    assert results.main(["--list", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("no records yet")
    assert results.main(["--list", str(tmp_path / "nowhere")]) == 2


def test_listing_needs_no_torch():
    code = "import sys; import DJSW.results; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("command", ["reproduce", "results"])
def test_commands_start_as_scripts_from_anywhere(checkout, run_script, tmp_path, command):
    result = run_script(checkout / "DJSW" / f"{command}.py", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout
