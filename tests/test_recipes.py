"""The table of recipes, and runs by the tuned one."""

import json
import shutil
import sys
from dataclasses import replace

import pytest

from DJSW import main as djsw
from DJSW import recipes, reproduce
from DJSW.pipelines import DATASETS
from DJSW.recipes import RECIPES, Augmentation, Recipe
from utils.engine.optimizer import Adam
from utils.engine.signals import stop_request
from utils.errors import UsageError
from utils.records.checkpoint import load_checkpoint, weights_sha256


def parsed(*words):
    flags = ("--username=waly", "--exp_name=e", "--output_dir=.", "--train")
    return djsw.parser().parse_args([*flags, *words])


def test_flags_change_the_recipe(monkeypatch):
    standard = recipes.settings(parsed(), "usps_0_6")
    assert (standard.num_epochs, standard.batch_size, standard.lr) == (100, 64, 1e-3)
    assert (standard.recipe, standard.seed) == ("standard", 42)
    assert (standard.schedule, standard.augmentation) == ("constant", None)
    assert standard.weight_decay == 0
    tuned = replace(RECIPES["standard"]["usps_0_6"], num_epochs=7, lr=0.1, weight_decay=0.2)
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": tuned})
    found = recipes.settings(parsed("--recipe=tuned", "--lr=0.5"), "usps_0_6")
    assert (found.num_epochs, found.lr, found.weight_decay) == (7, 0.5, 0.2)
    with pytest.raises(UsageError, match="no recipe 'tuned' for mnist_4_9; give --recipe standard"):
        recipes.settings(parsed("--recipe=tuned"), "mnist_4_9")


def test_unknown_schedule(monkeypatch):
    odd = Recipe(schedule="cosine")
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": odd})
    sentence = "tuned has the unknown schedule 'cosine'; choose from constant, one_cycle"
    with pytest.raises(UsageError, match=sentence):
        recipes.settings(parsed("--recipe=tuned"), "usps_0_6")


def test_every_dataset_has_the_standard_recipe():
    assert RECIPES["standard"].keys() <= DATASETS.keys()
    assert RECIPES["standard"].keys() >= RECIPES["tuned"].keys() > set()


def test_a_new_dataset_has_the_default_standard_recipe():
    assert recipes.settings(parsed(), "digits") == recipes.Settings()


def test_a_tuned_run_resumes_to_the_same_bits(tmp_path, processed, monkeypatch):
    """A run with all features, stopped in the second epoch, against an uninterrupted one."""
    everything = Recipe(
        num_epochs=3,
        batch_size=16,
        lr=3e-3,
        schedule="one_cycle",
        weight_decay=0.05,
        augmentation=Augmentation(9, 0.07, 0.1, 1, 0.8, 5),
    )
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": everything})
    monkeypatch.setattr(sys, "argv", ["main.py"])
    flags = ["--username=waly", f"--output_dir={tmp_path}", "--train", "--recipe=tuned"]
    assert djsw.main([*flags, "--exp_name=whole"]) == 0
    steps = []

    def stop(self):
        steps.append(1)
        if len(steps) == 9:  # in the second epoch of 7 steps
            stop_request.signal = "SIGUSR1"
        return step(self)

    step = Adam.step
    with monkeypatch.context() as patch:
        patch.setattr(Adam, "step", stop)
        assert djsw.main([*flags, "--exp_name=parts"]) == 75
    assert djsw.main([*flags, "--exp_name=parts", "--resume"]) == 0
    histories, weights = [], []
    for name in ("whole", "parts"):
        rows = (tmp_path / f"{name}_history.csv").read_text().splitlines()
        histories.append([row.split(",")[:5] for row in rows])
        weights.append(load_checkpoint(tmp_path / f"{name}_checkpoint_epoch_3.pt").weights)
    assert histories[0] == histories[1] and len(histories[0]) == 4
    assert weights_sha256(weights[0]) == weights_sha256(weights[1])
    rates = [float(row[4]) for row in histories[0][1:]]
    assert rates[-1] < 1e-6 < rates[0]  # the end of the schedule
    record = json.loads((tmp_path / "parts_run.json").read_text())
    assert record["settings"]["augmentation"]["elastic"] == 0.8
    assert record["settings"]["recipe"] == "tuned"


def test_a_schedule_s_length_is_fixed(tmp_path, processed, monkeypatch, capsys):
    """More epochs would need other learning rates from the first step."""
    """The record decides, not today's recipe, but for an augmentation that has no name."""
    augmentation = Augmentation(5, 0.1, 0.1, 1, elastic=0.5, nodes=4)
    recipe = Recipe(2, batch_size=32, schedule="one_cycle", augmentation=augmentation)
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": recipe})
    monkeypatch.setattr(sys, "argv", ["main.py"])
    flags = ["--username=waly", f"--output_dir={tmp_path}", "--train", "--exp_name=e"]
    assert djsw.main([*flags, "--recipe=tuned"]) == 0
    capsys.readouterr()
    assert djsw.main([*flags, "--recipe=tuned", "--num_epochs=3", "--resume"]) == 2
    assert "was trained with num_epochs 2, not 3" in capsys.readouterr().err


def test_reproduction_of_a_tuned_run(tmp_path, processed, monkeypatch, capsys):
    """The record decides, not today's recipe, but for an augmentation that has no name."""
    augmentation = Augmentation(5, 0.1, 0.1, 1, elastic=0.5, nodes=4)
    recipe = Recipe(2, batch_size=32, schedule="one_cycle", augmentation=augmentation)
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": recipe})
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    flags = ["--username=waly", f"--output_dir={tmp_path}", "--train", "--exp_name=e"]
    assert djsw.main([*flags, "--recipe=tuned", "--device=cpu", "--lr=0.002"]) == 0
    assert reproduce.main([str(tmp_path / "e_run.json")]) == 0
    assert "identical   all" in capsys.readouterr().out
    changed = replace(recipe, num_epochs=3, weight_decay=0.5, schedule="constant")
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": changed})
    shutil.rmtree(tmp_path / "reports")
    assert reproduce.main([str(tmp_path / "e_run.json")]) == 0
    changed = replace(recipe, augmentation=replace(augmentation, rotation=6))
    monkeypatch.setitem(RECIPES, "tuned", {"usps_0_6": changed})
    shutil.rmtree(tmp_path / "reports")
    assert reproduce.main([str(tmp_path / "e_run.json")]) == 1
    assert "recipe      augmentation.rotation was 5, is 6" in capsys.readouterr().out
