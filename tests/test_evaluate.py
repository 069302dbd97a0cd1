"""Evaluations: numbers, page, figures and predictions."""

import csv
import gzip
import json
import sys
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import write_datasets, write_h5
from PIL import Image
from records import changed

from DJSW import main as djsw
from DJSW import reproduce
from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, open_split
from utils import metrics
from utils.errors import UsageError
from utils.records.evaluation import read_evaluation
from utils.records.files import exclusive_output
from utils.records.provenance import without_nan
from utils.report import figures
from utils.report.evaluation_page import evaluation_page, evaluation_summary
from utils.statistics import intervals, probabilities
from utils.statistics.measure import measure

random = np.random.default_rng(0)


def evaluate(folder, weights, exp_name="e", username="sigurd", *flags):
    argv = ["--username", username, "--exp_name", exp_name, "--output_dir", folder]
    argv = list(map(str, [*argv, "--load_checkpoint", weights, *flags]))
    return djsw.main(argv)


@pytest.fixture
def measured(tmp_path, processed, monkeypatch):
    """Evaluate an untrained SMLP; return the folder and the content of the metrics file."""
    monkeypatch.setattr(sys, "argv", ["DJSW/main.py"])
    torch.manual_seed(0)
    torch.save(build_model("sigurd", "mnist_4_9")[0].state_dict(), tmp_path / "bare.pt")
    (tmp_path / "out").mkdir()
    assert evaluate(tmp_path / "out", tmp_path / "bare.pt") == 0
    return tmp_path / "out", json.loads((tmp_path / "out" / "e_metrics.json").read_text())


def test_numbers_follow_from_the_predictions(measured):
    """The reference computes all of metrics.json from the CSV with scikit-learn."""
    folder, record = measured
    with gzip.open(folder / "e_predictions.csv.gz", "rt") as file:
        predictions = list(csv.DictReader(file))
    with (folder / "e_probabilities.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(predictions[0]) == ["digit", "predicted", "confidence"]
    assert list(rows[0]) == ["digit", *(f"p_{d}" for d in range(4, 10))]
    digits = np.array([int(row["digit"]) for row in rows])
    assert [int(row["digit"]) for row in predictions] == digits.tolist()
    assert digits.tolist() == open_split("mnist_4_9", train=False).labels.tolist()
    predicted = np.array([int(row["predicted"]) for row in predictions])
    p = np.array([[float(row[f"p_{digit}"]) for digit in range(4, 10)] for row in rows])
    assert (p.argmax(1) + 4 == predicted).all()
    confidence = [float(row["confidence"]) for row in predictions]
    assert confidence == pytest.approx(p.max(1), rel=6e-3)
    assert p.sum(1) == pytest.approx(np.ones(43), abs=1e-5)
    for metric in (metrics.accuracy, metrics.balanced_accuracy):
        assert record["metrics"][metric.__name__] == pytest.approx(metric(digits, predicted))
    for metric in (metrics.precision, metrics.recall, metrics.f1):
        expected = metric(digits, predicted, range(4, 10))
        assert record["metrics"][metric.__name__] == pytest.approx(expected)
    for metric in (metrics.mse, metrics.rmse, metrics.mae, metrics.r2):
        expected = metric(digits, predicted)
        assert record["label_distance"][metric.__name__] == pytest.approx(expected)
    losses = probabilities.image_losses(np.log(p), digits - 4)
    for name, values in losses.items():
        assert record["probabilities"][name] == pytest.approx(values.mean(), rel=1e-4)
    confusion = np.array(record["confusion"])
    assert confusion.sum() == 43 and confusion.trace() == record["correct"]
    assert confusion[2, 3] == ((digits == 6) & (predicted == 7)).sum()
    for name, (low, high) in record["intervals"].items():
        value = (record["metrics"] | record["probabilities"] | record["label_distance"])[name]
        assert low - 1e-12 <= value <= high + 1e-12, name

    def wilson(correct, count):
        return list(scipy.stats.binomtest(int(correct), int(count)).proportion_ci(method="wilson"))

    ends = record["intervals"]
    correct = digits == predicted
    clusters = record["clusters"]
    assert (clusters["kind"], clusters["count"]) == ("runs of 10 consecutive images", 5)
    assert clusters["wilson"] == pytest.approx(wilson(correct.sum(), 43))
    own_ends = intervals.accuracy_interval(correct[None], intervals.Clusters.of(None, 43))
    assert ends["accuracy"] == list(own_ends) == ends["weighted_recall"]
    assert record["series"] == []  # the file does not have them
    for row in record["calibration"]:
        inside = (p.max(1) > row["above"]) & (p.max(1) <= row["up_to"])
        assert (row["images"], row["right"]) == (inside.sum(), correct[inside].sum())
        expected = wilson(row["right"], row["images"])
        assert [row["low"], row["high"]] == pytest.approx(expected, abs=1e-9)
    read = read_evaluation(folder / "e_metrics.json")
    assert (read.labels == digits).all() and (read.predicted == predicted).all()


@pytest.fixture
def networks(tmp_path, processed):
    """Files of three untrained SMLPs."""
    (tmp_path / "out").mkdir()
    paths = [tmp_path / f"{seed}.pt" for seed in range(3)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        torch.save(build_model("sigurd", "mnist_4_9")[0].state_dict(), path)
    return paths


def probabilities_of(folder, name):
    rows = np.loadtxt(folder / f"{name}_probabilities.csv", delimiter=",", skiprows=1)
    return rows[:, 1:]


def test_ensemble_is_the_mean_of_probabilities(networks, tmp_path, capsys):
    out = tmp_path / "out"
    for path in networks:
        assert evaluate(out, path, path.stem) == 0
    assert evaluate(out, networks[0], "e", "sigurd", *networks[1:]) == 0
    mean = np.mean([probabilities_of(out, path.stem) for path in networks], axis=0)
    assert probabilities_of(out, "e") == pytest.approx(mean, abs=1e-5)
    record = read_evaluation(out / "e_metrics.json").record
    single = read_evaluation(out / "0_metrics.json").record
    assert record["model"]["layers"] == f"3 x {single['model']['layers']}"
    assert record["model"]["parameters"] == 3 * single["model"]["parameters"]
    assert record["training"] is None and record["checkpoint"]["file"] == "ensemble of 3"
    found = [each["sha256"] for each in record["members"]]
    assert found == [
        read_evaluation(out / f"{k}_metrics.json").record["checkpoint"]["sha256"] for k in range(3)
    ]
    page = (out / "e_report.md").read_text()
    assert all(f"{k}.pt`, SHA-256 `{sha256}`" in page for k, sha256 in enumerate(found))
    capsys.readouterr()
    assert reproduce.main([str(out / "e_metrics.json")]) == 0
    assert "identical   all" in capsys.readouterr().out


def test_wrong_ensembles(networks, tmp_path, capsys):
    out, first = tmp_path / "out", networks[0]
    torch.save(build_model("sigurd", "mnist_0_3")[0].state_dict(), tmp_path / "other.pt")
    for more, expected in (
        ([first], "a network is given twice"),
        ([tmp_path / "other.pt"], "does not fit SMLP 784-77-77-77-77-6"),
        ([tmp_path / "no.pt"], "no.pt"),
    ):
        assert evaluate(out, first, "e", "sigurd", *more) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        evaluate(out, first, "e", "sigurd", networks[1], "--train")
    assert "--train starts from one checkpoint" in capsys.readouterr().err
    assert not any(out.iterdir())


def test_writers_and_series(networks, tmp_path, processed):
    write_datasets(processed, writers=9)
    out = tmp_path / "out"
    assert evaluate(out, networks[0]) == 0
    read = read_evaluation(out / "e_metrics.json")
    record, data = read.record, open_split("mnist_4_9", train=False)
    assert (record["clusters"]["kind"], record["clusters"]["count"]) == ("writers", 9)
    clusters = intervals.Clusters.of(data.writers, 43)
    ends = intervals.accuracy_interval(read.correct[None], clusters)
    assert record["intervals"]["accuracy"] == list(ends)
    by = {row["series"]: (row["by"], row["images"], row["errors"]) for row in record["series"]}
    for number, who in ((0, "census employees"), (4, "high-school students")):
        wrong = ~read.correct[data.series == number]
        assert by.pop(number) == (who, len(wrong), wrong.sum())
    assert not by
    page = (out / "e_report.md").read_text()
    assert "Intervals are of a bootstrap over 9 writers" in page and "high-school students" in page


def test_page_shows_the_record(measured):
    folder, record = measured
    page = (folder / "e_report.md").read_text()
    assert page.startswith("# e: SMLP 784-77-77-77-77-6 on the test set of mnist_4_9\n")
    assert f"{record['correct']} of 43 images correct" in page
    for name, value in record["metrics"].items():
        low, high = record["intervals"][name]
        title = name.replace("_", " ").replace("f1", "F1")
        assert f"| {title:<18} | {value:.4f} | {low:.4f} to {high:.4f} |" in page
    confusion = np.array(record["confusion"])
    for row, digit in enumerate(range(4, 10)):
        wrong = confusion[row].sum() - confusion[row, row]
        line = next(line for line in page.splitlines() if line.startswith(f"| {digit}  "))
        assert line.split("|")[-3:-1] == [f" {confusion[row].sum():<6} ", f" {wrong:<6} "]
    np.fill_diagonal(confusion, 0)
    most = np.unravel_index(confusion.argmax(), (6, 6))
    lines = page.split("Most confused:\n\n")[1].split("\n\n")[0].splitlines()[2:]
    assert lines[0].split()[1:7:2] == [str(most[0] + 4), str(most[1] + 4), str(confusion.max())]
    counts = [int(line.split("|")[3]) for line in lines]
    assert counts == sorted(confusion[confusion > 0].tolist(), reverse=True)[:10]
    assert record["dataset"]["images_sha256"] in page and record["checkpoint"]["sha256"] in page
    for name in ("confusion", "errors", "reliability"):
        assert f"(e_{name}.png)" in page
        with Image.open(folder / f"e_{name}.png") as picture:
            colors = picture.convert("RGB").getcolors(2**24)
            assert picture.size[0] > 400 and colors is not None and len(colors) > 50


def test_pictures_show_their_arguments(tmp_path, monkeypatch):
    """Texts and heights are read back from matplotlib's artists."""
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path, *_: drawn.append(figure))
    names = ("above", "up_to", "images", "right", "confidence", "low", "high")
    rows = [(0.4, 0.6, 4, 1, 0.5, 0.1, 0.7), (0.8, 1, 9, 9, 0.9, 0.7, 1)]
    record = {
        **{"model": {"name": "SMLP"}, "dataset": {"name": "d"}, "images": 47, "correct": 45},
        **{"classes": [3, 8], "confusion": [[5, 0], [2, 40]]},
        "calibration": [dict(zip(names, row, strict=True)) for row in rows],
    }
    figures.save_confusion(tmp_path / "c", record)
    axes = drawn[-1].axes[0]
    assert {text.get_text(): text.get_position() for text in axes.texts} == {
        "5": (0, 0),
        "2": (0, 1),
        "40": (1, 1),
    }
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["3", "8"]
    assert [tick.get_text() for tick in axes.child_axes[0].get_yticklabels()] == ["0.0", "4.8"]
    figures.save_reliability(tmp_path / "r", record)
    above, below = drawn[-1].axes
    (dots,) = above.containers
    assert dots.lines[0].get_xydata().tolist() == [[0.5, 0.25], [0.9, 1]]
    low, high = np.swapaxes(dots.lines[2][0].get_segments(), 0, 1)
    assert low[:, 1] == pytest.approx([0.1, 0.7]) and high[:, 1] == pytest.approx([0.7, 1])
    assert [(bar.get_x(), bar.get_height()) for bar in below.patches] == [(0.4, 4), (0.8, 9)]


def test_errors_figure_shows_the_most_confident_errors(measured, tmp_path, monkeypatch):
    folder, _ = measured
    shown = []
    monkeypatch.setattr(figures, "save_mosaic", lambda path, title, *a, **_: shown.append(a))
    monkeypatch.setattr(figures, "GALLERY", 5)
    assert evaluate(folder, tmp_path / "bare.pt", "again") == 0
    images, captions = shown[0]
    with gzip.open(folder / "e_predictions.csv.gz", "rt") as file:
        rows: list[dict[str, Any]] = [
            {**row, "index": index} for index, row in enumerate(csv.DictReader(file))
        ]
    with (folder / "e_probabilities.csv").open() as file:
        for row, p in zip(rows, csv.DictReader(file), strict=True):
            row["p"] = float(p[f"p_{row['predicted']}"])
    rows = [row for row in rows if row["digit"] != row["predicted"]]
    rows.sort(key=lambda row: -row["p"])
    assert captions == [
        f"{row['digit']} → {row['predicted']}\n{100 * row['p']:.1f} %" for row in rows[:5]
    ]
    data = open_split("mnist_4_9", train=False)
    assert (images == data.images[[row["index"] for row in rows[:5]]]).all()


def test_interrupted_evaluation_is_repeated(measured, tmp_path, monkeypatch):
    """The metrics file is written last: without it the name is free."""
    folder, record = measured
    for path in folder.glob("e_*"):
        if path.name not in ("e_predictions.csv.gz", "e_confusion.png"):
            path.unlink()
    (folder / "e_predictions.csv.gz").write_text("of another evaluation")
    assert evaluate(folder, tmp_path / "bare.pt") == 0
    again = json.loads((folder / "e_metrics.json").read_text())
    assert again["predictions_sha256"] == record["predictions_sha256"]
    assert read_evaluation(folder / "e_metrics.json").labels.size == 43
    assert len(list(folder.iterdir())) == 7

    def full(*_):
        raise OSError(28, "No space left on device", "r")

    monkeypatch.setattr(figures, "save_reliability", full)
    assert evaluate(folder, tmp_path / "bare.pt", "f") == 1
    assert not (folder / "f_metrics.json").exists()
    monkeypatch.undo()


def test_concurrent_evaluations_of_a_name(measured, tmp_path):
    """One of two concurrent evaluations wins, and all files are its own."""
    folder, _ = measured
    path = folder / "g_metrics.json"
    taken = UsageError("taken")
    with exclusive_output(path, taken, "metrics"):
        with pytest.raises(UsageError, match="taken"), exclusive_output(path, taken, "metrics"):
            pass
    assert not list(folder.glob(".g*"))
    path.touch()
    with pytest.raises(UsageError, match="taken"), exclusive_output(path, taken, "metrics"):
        pass


def test_weights_too_large_to_evaluate(measured, tmp_path, capsys):
    weights = build_model("sigurd", "mnist_4_9")[0].state_dict()
    torch.save({name: tensor * 1e12 for name, tensor in weights.items()}, tmp_path / "huge.pt")
    capsys.readouterr()
    assert evaluate(tmp_path / "out", tmp_path / "huge.pt", "huge") == 2
    err = capsys.readouterr().err
    assert "gives logits that are not finite" in err and err.count("\n") == 1
    assert not list((tmp_path / "out").glob("huge*"))


def constant(column, count=30):
    """Return log probabilities that favor the same one of four classes for every image."""
    p = np.full((count, 4), 0.1)
    p[:, column] = 0.7
    return np.log(p)


def test_degenerate_predictions_are_warned_about():
    classes = np.resize([0, 1, 2], 30)  # no image of the fourth class
    assert measure(constant(1), classes, [0, 1, 2, 3])["warnings"] == [
        "the test set is of 3 runs of 10 consecutive images, too few: the intervals are too narrow",
        "every prediction is 1: the network predicts a single class",
        "none of the 10 images of a 0 is recognized (recall 0)",
        "none of the 10 images of a 2 is recognized (recall 0)",
        "the test set has no 3; its recall counts as 0",
    ]
    perfect = np.log(np.eye(4)[np.resize([0, 1, 2, 3], 300)] * 0.9 + 0.025)
    assert measure(perfect, np.resize([0, 1, 2, 3], 300), [0, 1, 2, 3])["warnings"] == []


def test_warnings_and_a_perfect_score_are_in_the_outputs(tmp_path, processed, capsys, measured):
    """A network that predicts only 4, on a test set of only 4s."""
    entry = DATASETS["mnist_4_9"]
    images = random.integers(0, 255, (20, 28, 28)).astype(np.uint8)
    (processed / entry.test_file).unlink()
    write_h5(processed / entry.test_file, images, np.full(20, 4, np.uint8))
    weights = build_model("sigurd", "mnist_4_9")[0].state_dict()
    weights["layer5.weight"].zero_()
    weights["layer5.bias"].copy_(torch.tensor([9.0, 0, 0, 0, 0, 0]))
    torch.save(weights, tmp_path / "all_4.pt")
    capsys.readouterr()
    assert evaluate(tmp_path / "out", tmp_path / "all_4.pt", "all_4") == 0
    out = capsys.readouterr().out
    assert "warning     every prediction is 4" in out
    page = (tmp_path / "out" / "all_4_report.md").read_text()
    assert "> **Warning:** every prediction is 4" in page
    assert "No errors." in page and "errors.png" not in page
    assert not (tmp_path / "out" / "all_4_errors.png").exists()


def test_undefined_numbers_are_dashes(measured):
    """R² and the standard error are undefined for a single image."""
    _, record = measured
    record |= {**measure(constant(0, 1), np.zeros(1, int), [4, 5, 6, 7]), "classes": [4, 5, 6, 7]}
    page = evaluation_page(record)
    assert "| R²             | -      | -                |" in page
    record |= without_nan(record)  # as on the disk
    assert f"\nR²{'':33}-   -\n" in evaluation_summary(record)


def test_damaged_evaluations_are_refused(measured):
    folder, record = measured
    path, predictions = folder / "e_metrics.json", folder / "e_predictions.csv.gz"
    text, packed = path.read_text(), predictions.read_bytes()
    table = gzip.decompress(packed)

    def refused(sentence):
        with pytest.raises(UsageError, match=sentence):
            read_evaluation(path)

    for damaged in (text[: len(text) // 2], "", "[]", "{}", "7", '"x"', "\x00\xff"):
        path.write_text(damaged)
        refused("is not a valid metrics file of an evaluation")
    path.write_text(json.dumps({**record, "format": "djsw-evaluation-9"}))
    refused("is of format djsw-evaluation-9")
    for name in ("training", "intervals", "dataset", "sha256"):
        path.write_text(json.dumps({key: value for key, value in record.items() if key != name}))
        refused("is not a valid metrics file of an evaluation")
    record["metrics"]["f1"] += 0.01
    path.write_text(json.dumps(record))
    refused("it was changed")
    record = json.loads(text)
    earlier = {name: value for name, value in record.items() if name != "format"}
    path.write_text(json.dumps(earlier))
    refused("is of format djsw-evaluation-1")
    path.write_text(json.dumps({**record, "correct": record["correct"] + 1}))
    refused("was changed")
    path.write_text(text)
    for change, sentence in (
        (lambda record: record.update(metrics={"a": 1}), "metrics and their intervals are not acc"),
        (lambda record: record["label_distance"].update(x=1), "label_distance and their intervals"),
        (lambda record: record["intervals"].pop("f1"), "metrics and their intervals are not acc"),
        (lambda record: record["intervals"].update(f1=[1.0]), "metrics and their intervals are"),
        (lambda record: record["confusion"].pop(), "confusion is not of the classes"),
        (lambda record: record["dataset"].update(name="\x1b[2J\n|a|b|"), "expected printable text"),
    ):
        changed(path, change)
        refused(sentence)
        path.write_text(text)
    for other in (
        *map(gzip.compress, (table.replace(b"\n4,", b"\n5,", 1), table[:-40], b"", bytes(2**26))),
        *(table, packed[:-9], packed[:9] + bytes(20), b""),
    ):
        predictions.write_bytes(other)
        refused("does not hold the predictions")
    predictions.unlink()
    refused("e_predictions.csv.gz is missing")
    predictions.write_bytes(packed)
    assert read_evaluation(path).record == record
