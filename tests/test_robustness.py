"""``robustness.py``: its numbers against predictions made here, and wrong use."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import Call, write_datasets

from DJSW import predict, robustness
from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE, open_split
from utils.corruptions import CORRUPTIONS, corrupt
from utils.handwriting import refit
from utils.records.checkpoint import write_checkpoint
from utils.report.robustness_page import SHARES


@pytest.fixture
def call(tmp_path, processed, capsys):
    write_datasets(processed, writers=9)
    (tmp_path / "out").mkdir()

    def call(*arguments):
        given = [*arguments, "--output_dir", tmp_path / "out", "--exp_name", "r"]
        return robustness.main([*map(str, given)]), *capsys.readouterr()

    return Call(call, tmp_path / "out")


def checkpoint(folder, name, username, seed=0, dataset=None):
    torch.manual_seed(seed)
    dataset = dataset or PEOPLE[username].dataset
    model, arguments = build_model(username, dataset)
    metadata = {
        "model": {"name": type(model).__name__, "arguments": arguments},
        "dataset": {"name": dataset},
        "classes": list(DATASETS[dataset].labels),
    }
    path = folder / f"{name}_checkpoint_best.pt"
    write_checkpoint(path, model.state_dict(), metadata)
    return path, model


def test_images_in_color(call, tmp_path):
    """The accuracies of a network on SVHN, against those computed here."""
    path, model = checkpoint(tmp_path, "a", "waly", dataset="svhn")
    assert call(path)[0] == 0
    own = json.loads((call.out / "r_robustness.json").read_text())["datasets"]["svhn"]
    data = open_split("svhn", train=False)
    images = torch.from_numpy(data.images.transpose(0, 3, 1, 2) / np.float32(255))
    with torch.inference_mode():
        for kind in ("none", *CORRUPTIONS):
            seen = images if kind == "none" else corrupt(images, kind, 0)
            correct = model(seen).argmax(1).numpy() == data.labels
            found = own["networks"]["a"]["accuracy"][kind][kind != "none"]
            assert found[0] == pytest.approx(correct.mean())
    assert own["networks"]["a"]["unknown"].keys() == {"noise"}


def test_numbers_follow_from_the_network(call, tmp_path):
    first, model = checkpoint(tmp_path, "a", "waly")
    second, _ = checkpoint(tmp_path, "b", "waly", seed=1)
    third, _ = checkpoint(tmp_path, "c", "dennis")
    status, out, err = call(first, second, third)
    assert (status, err) == (0, "")
    record = json.loads((call.out / "r_robustness.json").read_text())
    assert record["datasets"].keys() == {"usps_0_6", "mnist_0_3"}
    found = record["datasets"]["usps_0_6"]
    assert found["networks"].keys() == {"a", "b"} and found["clusters"] == "9 writers"
    own = found["networks"]["a"]
    data = open_split("usps_0_6", train=False)
    images = torch.tensor(data.images).unsqueeze(1) / 255
    with torch.inference_mode():
        for kind in CORRUPTIONS:
            accuracies = [
                float((model(corrupt(images, kind, k)).argmax(1).numpy() == data.classes).mean())
                for k in range(5)
            ]
            values = own["accuracy"][kind]
            assert [mean for mean, _, _ in values[1:]] == pytest.approx(accuracies)
            assert values[0][0] == pytest.approx(np.mean(accuracies))
            assert all(low <= mean <= high for mean, low, high in values)
        other = open_split("mnist_4_9", train=False)
        rows = np.flatnonzero(other.labels <= 6)
        form = DATASETS["usps_0_6"]
        fitted = np.stack([refit(image / np.float32(255), form) for image in other.images[rows]])
        predicted = model(torch.from_numpy(fitted)[:, None]).argmax(1).numpy()
        accuracy = (predicted == other.labels[rows]).mean()
    assert own["accuracy"]["4, 5, 6 of mnist_4_9"][0][0] == pytest.approx(accuracy)
    assert own["unknown"].keys() == {"7, 8, 9 of mnist_4_9", "fashion", "noise"}
    assert [confidence for _, confidence in own["selective"]] == sorted(
        confidence for _, confidence in own["selective"]
    )
    assert own["threshold"] == own["selective"][SHARES.index(0.05)][1]
    for area in own["unknown"].values():
        assert 0 <= area[2] <= area[1] <= area[3] <= 1
    page = (call.out / "r_robustness.md").read_text()
    assert page in out and "| none " in page
    with (call.out / "r_robustness.csv").open(newline="") as file:
        rows_of_csv = list(csv.DictReader(file))
    # Shared digits and unknown images: 2 and 3 kinds for each WMLP, 1 and 4 for DMLP.
    assert len(rows_of_csv) == 3 * (1 + 8 * 6 + len(SHARES) + 5 + 1)
    for name in ("usps_0_6", "mnist_0_3"):
        picture = (call.out / f"r_robustness_{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


def test_predict_takes_the_threshold_from_the_page(call, tmp_path, monkeypatch):
    path, _ = checkpoint(tmp_path, "a", "waly")
    other, _ = checkpoint(tmp_path, "b", "waly", seed=1)
    assert call(path)[0] == 0
    record = call.out / "r_robustness.json"
    monkeypatch.setattr(predict, "THRESHOLDS", record)
    own = json.loads(record.read_text())["datasets"]["usps_0_6"]["networks"]["a"]
    assert predict.threshold([path]) == own["threshold"]
    assert predict.threshold([other]) == predict.threshold([path, other]) == predict.UNSURE
    record.write_text("{}")
    with pytest.raises(predict.UsageError, match="is damaged: it lacks thresholds"):
        predict.threshold([path])


def test_wrong_use(call, tmp_path):
    path, _ = checkpoint(tmp_path, "a", "waly")
    (tmp_path / "other").mkdir()
    twin, _ = checkpoint(tmp_path / "other", "a", "waly", seed=1)
    (tmp_path / "text.pt").write_text("hello")
    for given, expected in (
        ((path, twin), "two are named 'a'"),
        ((tmp_path / "text.pt",), "is cut off, damaged or no PyTorch file"),
        ((tmp_path / "no.pt",), "no.pt"),
    ):
        status, _, err = call(*given)
        assert status == 2 and expected in err and err.count("\n") == 1
    assert not any(call.out.iterdir())
    assert "checked     this command would run" in call(path, "--check")[1]
    assert not any(call.out.iterdir())
    assert call(path)[0] == 0
    assert "exists already" in call(path)[2]
