"""Every person of the table on every dataset of the table."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import h5py
import pytest
import torch
from conftest import digit_images, python_blocks, write_datasets, write_h5

from DJSW import compare, predict
from DJSW import main as djsw
from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE, ImageDataset, Person, digits, import_object, open_split
from utils.errors import RunError, UsageError
from utils.mnist_dataset import MnistH5Dataset
from utils.records.checkpoint import write_checkpoint
from utils.records.evaluation import read_evaluation
from utils.records.files import ROOT
from utils.report import figures

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


def documented(page, folder, monkeypatch):
    """Add the network and the entry of a page, in this process; return its username."""
    network, entry, *_ = python_blocks(page)
    ((username, person),) = eval(f"dict({entry})", {"Person": Person}).items()
    module = person.model.removeprefix("models.").partition(":")[0]
    (folder / f"{module}.py").write_text(network)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(PEOPLE, username, replace(person, model=person.model[len("models.") :]))
    return username


SHAPES = {2: "disc", 5: "T-shirt/top", 9: "a|b <i>"}


@pytest.fixture
def shapes(processed, monkeypatch):
    """A dataset of images in color, of classes with names."""
    entry = ImageDataset("mine", SHAPES, (8, 6, 3), "s.h5", "s_test.h5", "datasetprep.none:none")
    monkeypatch.setitem(DATASETS, "shapes", entry)
    write_datasets(processed)
    return entry


def test_documented_networks_on_digits_and_in_color(tmp_path, shapes, monkeypatch, capsys):
    """The MLP of README.md and the CNN of docs/extending.md, trained, evaluated and compared.

    Names appear wherever a class is shown, and "digit" only where classes are digits.
    """
    pages = ("README.md", "docs/extending.md")
    users = [documented(page, tmp_path, monkeypatch) for page in pages]
    for dataset, least in (("mnist_4_9", 0.25), ("shapes", 0.6)):
        records = []
        for username in users:
            name = f"{username}_{dataset}"
            own = ["--username", username, "--exp_name", name, "--output_dir", str(tmp_path)]
            train = ["--train", "--dataset", dataset, "--num_epochs", "8", "--augmentation", "weak"]
            assert djsw.main([*own, *train, "--lr", "0.01"]) == 0
            best = tmp_path / f"{name}_checkpoint_best.pt"
            capsys.readouterr()
            assert djsw.main([*own, "--load_checkpoint", str(best)]) == 0
            records.append(str(tmp_path / f"{name}_metrics.json"))
            record, out = json.loads(Path(records[-1]).read_text()), capsys.readouterr().out
            page = (tmp_path / f"{name}_report.md").read_text()
            assert record["metrics"]["accuracy"] > least
            if dataset == "shapes":
                assert record["class_names"] == [*SHAPES.values()] and record["classes"] == [
                    2,
                    5,
                    9,
                ]
                assert record["label_distance"] == {} and "| T-shirt/top" in page
                assert "T-shirt/top" in out and "label distance" not in out
                assert set(read_evaluation(Path(records[-1])).predicted) <= SHAPES.keys()
            for text in (out, page):
                assert ("digit" in text) == (dataset == "mnist_4_9")
            assert (tmp_path / f"{name}_confusion.png").exists()
        flags = ["--exp_name", f"c_{dataset}", "--output_dir", str(tmp_path)]
        assert compare.main([*records, *flags]) == 0
    capsys.readouterr()
    image = str(tmp_path / f"{name}_confusion.png")
    for raw in ([], ["--raw"]):
        given = [image, "--load_checkpoint", str(best), "--output_dir", str(tmp_path), *raw]
        assert predict.main(given) == 2
        assert "is of shapes, in color: pictures are read in gray" in capsys.readouterr().err


def test_errors_are_drawn_in_color(tmp_path, shapes, monkeypatch):
    """Of a network that was never trained, so that there are some."""
    drawn = []
    monkeypatch.setattr(figures, "save_mosaic", lambda path, title, *rest, **_: drawn.append(rest))
    torch.manual_seed(0)
    model, arguments = build_model("waly", "shapes")
    metadata = {
        **{"model": {"name": "WMLP", "arguments": arguments}, "dataset": {"name": "shapes"}},
        **{"classes": [*SHAPES], "class_names": [*SHAPES.values()]},
    }
    write_checkpoint(tmp_path / "c.pt", model.state_dict(), metadata)
    flags = ["--username=waly", "--exp_name=e", f"--output_dir={tmp_path}"]
    assert djsw.main([*flags, f"--load_checkpoint={tmp_path / 'c.pt'}"]) == 0
    ((images, captions),) = drawn
    data = open_split("shapes", train=False)
    rows = [(data.images == image).all((1, 2, 3)).argmax() for image in images]
    names = [SHAPES[label] for label in data.labels[rows]]
    assert [each.partition(" → ")[0] for each in captions] == names and len(names) > 5


@pytest.mark.parametrize(
    ("username", "change", "status", "message"),
    [
        (
            "waly",
            {"classes": {2: "disc", 5: "coat"}},
            1,
            r"labels \[9\], expected \[2, 5\] ",
        ),
        (
            "waly",
            {"image_shape": (6, 8, 3)},
            1,
            r"images \(8, 6, 3\), expected \(6, 8, 3\) ",
        ),
        ("newcomer", {}, 2, r"CNet fails on images \(2, 3, 8, 6\) of shapes: .* got 3 channels"),
    ],
    ids=["a label without a name", "another shape", "another number of channels"],
)
def test_what_does_not_fit_is_one_sentence(
    tmp_path, shapes, monkeypatch, capsys, username, change, status, message
):
    user = documented("docs/extending.md", tmp_path, monkeypatch)
    gray = replace(PEOPLE[user], channels_argument=None, arguments={"channels": 1})
    monkeypatch.setitem(PEOPLE, user, gray)
    monkeypatch.setitem(DATASETS, "shapes", replace(shapes, **change))
    flags = ["--username", username, "--exp_name", "e", "--output_dir", str(tmp_path)]
    assert djsw.main([*flags, "--train", "--dataset", "shapes"]) == status
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.splitlines()) == 1


def test_color_is_refused_by_a_checkpoint_of_gray_images(tmp_path, shapes, monkeypatch, capsys):
    monkeypatch.setitem(DATASETS, "gray", replace(shapes, image_shape=(8, 6)))
    user = documented("docs/extending.md", tmp_path, monkeypatch)
    for username in (user, "waly"):
        model, arguments = build_model(username, "gray")
        metadata = {
            "model": {"name": type(model).__name__, "arguments": arguments},
            **{"dataset": {"name": "gray"}, "classes": [*SHAPES]},
            "class_names": [*SHAPES.values()],
        }
        write_checkpoint(tmp_path / "c.pt", model.state_dict(), metadata)
        flags = ["--username", username, "--exp_name", "e", "--output_dir", str(tmp_path)]
        given = ["--load_checkpoint", str(tmp_path / "c.pt"), "--dataset"]
        assert djsw.main([*flags, *given, "shapes"]) == 2
        error = capsys.readouterr().err
        assert "does not fit" in error and len(error.splitlines()) == 1
        assert djsw.main([*flags, *given, "usps_0_6"]) == 2
        error = capsys.readouterr().err
        assert "distinguishes ['disc', 'T-shirt/top', 'a|b <i>'], usps_0_6 holds [0, 1" in error


def test_entries_that_no_file_has_are_refused():
    """And labels without a name of their own."""
    for shape, classes, sentence in (
        *((s, {0: "a", 1: "b"}, "image_shape") for s in ((8, 8, 2), (8,), [8, 8], 8, (0, 8), "88")),
        *(((8, 8), classes, "0 to 255") for classes in ({}, {256: "a"}, {True: "a"}, ("a", "b"))),
        ((8, 8), {0: "a"}, "two or more, named apart"),
        ((8, 8), {0: "a", 1: " "}, "two or more, named apart"),
        ((8, 8), {0: "a", 1: "b", 2: "a"}, "two or more, named apart"),
    ):
        with pytest.raises(ValueError, match=f"the entry of a.h5 has .*{sentence}"):
            ImageDataset("mine", cast(Any, classes), cast(Any, shape), "a.h5", "b.h5", "c:d")


def test_classes_may_have_any_order(processed, monkeypatch):
    """The k-th of the entry is class k."""
    entry = replace(DATASETS["usps_0_6"], classes=digits(3, 0, 6, 1, 2, 5, 4))
    monkeypatch.setitem(DATASETS, "usps_0_6", entry)
    data = open_split("usps_0_6", train=True)
    assert [data.labels[data.classes == k][0] for k in range(7)] == [3, 0, 6, 1, 2, 5, 4]


@pytest.mark.parametrize("create", ["datasetprep.x:y", "datasetprep.create_mnist_dataset:y", "y"])
def test_function_that_does_not_exist_is_named(processed, monkeypatch, create):
    entry = replace(DATASETS["fashion"], create=create, train_file="other.h5")
    monkeypatch.setitem(DATASETS, "fashion", entry)
    with pytest.raises(UsageError, match=f"create of fashion is '{create}': .*; name a function"):
        open_split("fashion", train=True)
