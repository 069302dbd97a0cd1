"""The README's results and the model cards, from records of tiny trainings."""

import json
import sys

import pytest

from DJSW import main as djsw
from DJSW import results
from DJSW.pipelines import DATASETS
from DJSW.recipes import RECIPES, Recipe


@pytest.fixture
def published(tmp_path, processed, monkeypatch):
    """waly's network by both recipes, the tuned one with two seeds."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["DJSW/main.py", "--train"])
    tiny = {name: Recipe(num_epochs=2, batch_size=32, lr=0.01) for name in DATASETS}
    monkeypatch.setitem(RECIPES, "tuned", tiny)
    weights, reports = tmp_path / "weights" / "WMLP", tmp_path / "reports"
    weights.mkdir(parents=True)
    reports.mkdir()
    for name, seed, recipe in (
        ("wmlp_standard", 42, "standard"),
        ("wmlp_tuned_1", 1, "tuned"),
        ("wmlp_tuned_2", 2, "tuned"),
        ("wmlp_tuned_other", 3, "tuned"),
    ):
        flags = ["--username=waly", f"--exp_name={name}"]
        train = [f"--output_dir={weights}", "--train", f"--seed={seed}", f"--recipe={recipe}"]
        assert djsw.main([*flags, *train, "--num_epochs=2"]) == 0
        best = f"--load_checkpoint={weights / name}_checkpoint_best.pt"
        assert djsw.main([*flags, f"--output_dir={reports}", best]) == 0
    (tmp_path / "README.md").write_text(f"before\n{results.BEGIN}old\n{results.END}after\n")
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
        measured = json.loads((published / "reports" / f"{name}_metrics.json").read_text())
        accuracy[name] = measured["metrics"]["accuracy"]
    best = min(loss, key=loss.get)
    assert rows[1][3].strip() == "2" and rows[1][5].strip() == f"`{best}`"
    assert rows[1][4].strip().startswith(f"{sum(accuracy.values()) / 2:.4f} ± ")
    assert rows[1][6].strip().startswith(f"{accuracy[best]:.4f} (")
    assert rows[1][7].strip() == f"{round(43 * (1 - accuracy[best]))} of 43"
    card = (published / "weights" / "WMLP" / "README.md").read_text()
    assert card.startswith("# WMLP: waly's network\n") and "36,507 parameters" in card
    assert "seeds 1, 2." in card and "seed 42." in card and "wmlp_tuned_other" not in card
    assert f"(../../reports/{best}_report.md)" in card
    assert f"{accuracy[best]:.4f}" in card and results.LICENCES["usps"] in card
    assert results.main([]) == 0
    assert capsys.readouterr().out == ""  # nothing is out of date


def test_what_is_missing_is_said(published, capsys):
    (published / "reports" / "wmlp_tuned_2_metrics.json").unlink()
    assert results.main([]) == 2
    assert "wmlp_tuned_2 is not evaluated" in capsys.readouterr().err
    (published / "weights" / "WMLP" / "wmlp_tuned_2_run.json").unlink()
    (published / "README.md").write_text("nothing")
    assert results.main([]) == 2
    assert "lacks the lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "stopped by SIGINT"}, "that is stopped by SIGINT"),
        ({"settings": {"recipe": "standard"}}, "by the recipe 'standard'"),
        ({"username": "dennis"}, None),
        ({"dataset": {"name": "mnist_0_3"}}, None),
    ],
)
def test_only_finished_trainings_of_the_recipe_count(published, capsys, change, said):
    path = published / "weights" / "WMLP" / "wmlp_tuned_2_run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert results.main([]) == (2 if said else 0)
    if said:
        assert said in capsys.readouterr().err
    else:
        (tuned,) = [each for each in results.results()["waly"] if each.recipe == "tuned"]
        assert list(tuned.records) == ["wmlp_tuned_1"]


def test_every_source_has_a_licence():
    assert {entry.source for entry in DATASETS.values()} <= results.LICENCES.keys()
