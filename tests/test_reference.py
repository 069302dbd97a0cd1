"""Three epochs of each published configuration give the numbers that they always gave."""

import csv
import json
import platform
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from DJSW import pipelines
from DJSW.train import train_model
from utils.distributed.device import device_name
from utils.records.checkpoint import load_checkpoint, weights_sha256

REFERENCE = json.loads(Path(__file__).with_name("reference.json").read_text())
HERE = {
    "torch": torch.__version__,
    "processor": device_name(torch.device("cpu")),
    "machine": platform.machine(),
}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE["runs"])
def test_three_epochs(name, raw_data, tmp_path, monkeypatch):
    """The losses on any machine; on that of the reference the bits of the weights too."""
    for source in ("mnist", "usps"):
        module = f"datasetprep.create_{source}_dataset.RAW_FOLDER"
        monkeypatch.setattr(module, raw_data / source)
    monkeypatch.setattr(pipelines, "PROCESSED", tmp_path)
    if (ROOT / "data" / "processed").exists():
        shutil.copytree(ROOT / "data" / "processed", tmp_path, dirs_exist_ok=True)
    username, recipe = name.split("_")
    flags = {"username": username, "recipe": recipe, "num_epochs": 3, "seed": 1, "device": "cpu"}

    class Args:
        exp_name = name
        output_dir = tmp_path

    for flag, value in flags.items():
        setattr(Args, flag, value)
    result = train_model(Args)
    expected = REFERENCE["runs"][name]
    with result.files.history.open(newline="") as file:
        for found, row in zip(csv.DictReader(file), expected["history"], strict=True):
            for column, value in row.items():
                assert float(found[column]) == pytest.approx(float(value), rel=2e-3), column
    if REFERENCE["made_on"] == HERE:
        last = load_checkpoint(result.files.epoch_checkpoint(3)).weights
        assert weights_sha256(last) == expected["last"]
