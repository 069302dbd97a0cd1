"""Every person of the table on every dataset of the table."""

import json
import re
from pathlib import Path

import h5py
import pytest
from conftest import digit_images, write_datasets, write_h5

from DJSW import compare, predict
from DJSW import main as djsw
from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE, ImageDataset, Person, import_object, open_split
from utils.errors import RunError
from utils.mnist_dataset import MnistH5Dataset
from utils.records.evaluation import read_evaluation
from utils.records.files import ROOT

PUBLISHED = {
    "sigurd": ("SMLP", "mnist_4_9", 78_931),
    "waly": ("WMLP", "usps_0_6", 36_507),
    "dennis": ("DMLP", "mnist_0_3", 417_304),
}


@pytest.mark.parametrize("username", PEOPLE)
def test_published_networks(username):
    person = PEOPLE[username]
    model, _ = build_model(username, person.dataset)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    expected = PUBLISHED.get(username, (person.model_name, person.dataset, parameters))
    assert (person.model_name, person.dataset, parameters) == expected
    assert type(model).__name__ == person.model_name


def test_missing_file_is_created_and_reported(tmp_path, monkeypatch, capsys, processed):
    made = []

    def create(path: Path, train: bool, labels_to_keep: tuple[int, ...]) -> None:
        made.append((path, train, labels_to_keep))
        write_h5(path, *digit_images((4, 5, 6, 7, 8, 9), (28, 28), 120))

    monkeypatch.setattr("DJSW.pipelines.import_object", lambda name: create)
    path = processed / "mnist_test_4_9.h5"
    path.unlink()
    assert len(open_split("mnist_4_9", train=False)) == 120
    assert made == [(path, False, (4, 5, 6, 7, 8, 9))]
    assert f"{path} does not exist yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [{"dataset": "usps"}, {"split": "test"}, {"kept_labels": [4, 5, 6, 7, 8]}],
    ids=str,
)
def test_files_with_other_attributes_are_refused(processed, change):
    path = processed / "mnist_4_9.h5"
    data = open_split("mnist_4_9", train=True)
    write_h5(path, data.images, data.labels)
    with h5py.File(path, "r+") as file:
        file.attrs.update(dataset="mnist", split="train", kept_labels=[4, 5, 6, 7, 8, 9])
    open_split("mnist_4_9", train=True)
    with h5py.File(path, "r+") as file:
        file.attrs.update(change)
    (name, value), *_ = change.items()
    with pytest.raises(RunError, match=f"{name} is {re.escape(str(value))}, expected"):
        open_split("mnist_4_9", train=True)


def test_unknown_origin_is_reported(processed, capsys):
    data = open_split("mnist_4_9", train=True)
    assert data.source == "the tests"
    assert "note" not in capsys.readouterr().out
    write_h5(processed / "mnist_4_9.h5", data.images, data.labels)
    assert open_split("mnist_4_9", train=True).source is None
    assert "note        " in (out := capsys.readouterr().out) and "origin is unknown" in out


@pytest.mark.parametrize("known", [True, False])
def test_records_have_the_source_of_the_digits(processed, tmp_path, capsys, known):
    """And a note precedes the run and the evaluation if it is unknown."""
    for name in () if known else ("usps_0_6.h5", "usps_test_0_6.h5"):
        data = MnistH5Dataset(processed / name)
        write_h5(processed / name, data.images, data.labels)
    flags = ["--username=waly", "--exp_name=e", f"--output_dir={tmp_path}", "--device=cpu"]
    assert djsw.main([*flags, "--train", "--num_epochs=1"]) == 0
    assert djsw.main([*flags, f"--load_checkpoint={tmp_path / 'e_checkpoint_best.pt'}"]) == 0
    for ending in ("run", "metrics"):
        record = json.loads((tmp_path / f"e_{ending}.json").read_text())
        assert record["dataset"]["source"] == ("the tests" if known else None)
    assert capsys.readouterr().out.count("their origin is unknown") == (0 if known else 2)


def test_files_of_another_dataset_are_refused(processed):
    (processed / "mnist_0_3.h5").rename(processed / "mnist_4_9.h5")
    with pytest.raises(RunError, match=r"labels \[0, 1, 2, 3\], expected \[4, "):
        open_split("mnist_4_9", train=True)
    (processed / "usps_0_6.h5").rename(processed / "mnist_0_3.h5")
    with pytest.raises(RunError, match=r"images \(16, 16\), expected \(28, 28\)"):
        open_split("mnist_0_3", train=True)


@pytest.mark.parametrize("dataset", DATASETS)
def test_table_of_datasets_is_consistent(dataset):
    entry = DATASETS[dataset]
    assert callable(import_object(entry.create))
    assert list(entry.labels) == sorted(set(entry.labels))
    files = [name for d in DATASETS.values() for name in (d.train_file, d.test_file)]
    assert len(set(files)) == 2 * len(DATASETS)


def test_shared_code_names_nobody():
    """Outside the table, code names no person and no person's network."""
    names = [*PEOPLE, *(person.model_name for person in PEOPLE.values())]
    shared = [
        path
        for package in ("DJSW", "utils", "datasetprep")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "pipelines.py"
    ]
    assert len(shared) > 10
    for path in shared:
        code = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text(encoding="utf-8"))
        assert not [name for name in names if re.search(rf"\b{name}\b", code)], path


#: What each part may import besides itself (DJSW may import anything).
LAYERS: dict[str, set[str]] = {
    "models": set(),
    "utils.errors": set(),
    "utils.records": {"utils.errors"},
    "utils.distributed": {"utils.errors"},
    "utils.cli": {"utils.errors", "utils.distributed"},
    "utils.mnist_dataset": {"utils.errors", "utils.records"},
    "utils.metrics": set(),
    "utils.statistics": {"utils.errors", "utils.records"},
    "utils.engine": {"utils.errors", "utils.records", "utils.distributed", "utils.mnist_dataset"},
    "utils.report": {"utils.errors", "utils.records", "utils.statistics"},
    "utils.handwriting": set(),
    "datasetprep": {"utils.errors", "utils.records", "utils.mnist_dataset", "utils.cli"},
}


def test_imports_go_one_way():
    """Each part imports what LAYERS allows; ``models`` imports only torch."""
    for part, allowed in LAYERS.items():
        path = ROOT / part.replace(".", "/")
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            text = file.read_text(encoding="utf-8")
            found = re.findall(
                r"^\s*(?:from|import) ((?:DJSW|models|datasetprep|utils)\b[\w.]*)", text, re.M
            )
            for module in found:
                inside = module == part or module.startswith(f"{part}.")
                known = any(module == each or module.startswith(f"{each}.") for each in allowed)
                assert inside or known or module == "utils", f"{file} imports {module}"
            if part == "models":
                imported = re.findall(r"^(?:from|import) (\w+)", text, re.M)
                assert set(imported) <= {"torch", "collections", "itertools"}, file


CNN = """
from torch import nn

class CNN(nn.Module):
    def __init__(self, colors, rows, columns, kinds):
        super().__init__()
        layers = nn.Conv2d(colors, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1)
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(4 * rows * columns, kinds)

    def forward(self, x):
        return self.output(self.features(x).flatten(1))
"""


def test_color_images_of_classes_with_names(tmp_path, processed, monkeypatch, capsys):
    """An MLP and a CNN are trained and evaluated; names appear wherever a class is shown."""
    names = {2: "disc", 5: "T-shirt/top", 9: "a|b <i>"}
    shapes = ImageDataset(
        "mine", names, (8, 6, 3), "shapes.h5", "shapes_test.h5", "datasetprep.none:none"
    )
    monkeypatch.setitem(DATASETS, "shapes", shapes)
    write_datasets(processed)
    (tmp_path / "models_of_mine.py").write_text(CNN)
    monkeypatch.syspath_prepend(tmp_path)
    cnn = Person(
        "models_of_mine:CNN",
        "shapes",
        output_argument="kinds",
        channels_argument="colors",
        height_argument="rows",
        width_argument="columns",
    )
    monkeypatch.setitem(PEOPLE, "anna", cnn)
    for username in ("anna", "waly"):
        own = ["--username", username, "--exp_name", username, "--output_dir", str(tmp_path)]
        train = ["--train", "--dataset", "shapes", "--num_epochs", "8", "--augmentation", "weak"]
        assert djsw.main([*own, *train, "--lr", "0.01"]) == 0
        best = tmp_path / f"{username}_checkpoint_best.pt"
        capsys.readouterr()
        assert djsw.main([*own, "--load_checkpoint", str(best)]) == 0
        out = capsys.readouterr().out
        assert "T-shirt/top" in out and "label distance" not in out and "digit" not in out
        record = json.loads((tmp_path / f"{username}_metrics.json").read_text())
        assert record["class_names"] == [*names.values()] and record["classes"] == [2, 5, 9]
        assert record["label_distance"] == {} and record["metrics"]["accuracy"] > 0.6
        evaluation = read_evaluation(tmp_path / f"{username}_metrics.json")
        assert set(evaluation.predicted) <= set(names)
        page = (tmp_path / f"{username}_report.md").read_text()
        assert "| T-shirt/top" in page and "quantities" not in page and "digit" not in page
        assert (tmp_path / f"{username}_confusion.png").exists()
    first, second = (str(tmp_path / f"{name}_metrics.json") for name in ("anna", "waly"))
    assert compare.main([first, second, "--exp_name", "c", "--output_dir", str(tmp_path)]) == 0
    image = str(tmp_path / "anna_confusion.png")
    capsys.readouterr()
    for arguments, sentence in (
        ([image, "--load_checkpoint", str(best)], "pictures are converted to gray digits only"),
        ([image, "--load_checkpoint", str(best), "--raw"], "gray digits only"),
    ):
        assert predict.main([*arguments, "--output_dir", str(tmp_path)]) == 2
        assert sentence in capsys.readouterr().err
    flags = ["--username", "waly", "--exp_name", "x", "--output_dir", str(tmp_path)]
    assert djsw.main([*flags, "--load_checkpoint", str(best), "--dataset", "usps_0_6"]) == 2
    error = capsys.readouterr().err
    assert "distinguishes ['disc', 'T-shirt/top', 'a|b <i>'], usps_0_6 holds [0, 1" in error


def test_entries_that_no_file_has_are_refused():
    for shape, classes in (((8, 8, 2), {0: "a"}), ((8,), {0: "a"}), ((8, 8), {256: "a"})):
        with pytest.raises(ValueError, match="expected"):
            ImageDataset("mine", classes, shape, "a.h5", "b.h5", "c:d")
