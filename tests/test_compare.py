"""Comparisons: rankings, test sets, groups of seeds, and the differences."""

import csv
import json
import statistics
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import Call, digit_images, exit_status, write_datasets, write_h5
from records import changed

from DJSW import compare
from DJSW import main as djsw
from DJSW.networks import build_model
from DJSW.pipelines import DATASETS, PEOPLE, open_split
from DJSW.recipes import RECIPES, Recipe
from utils.records.checkpoint import write_checkpoint
from utils.records.evaluation import metric_values, read_evaluation
from utils.records.files import sha256_of
from utils.statistics import comparison, intervals


@pytest.fixture
def call(tmp_path, processed, capsys, monkeypatch):
    """Call a command's ``main`` in this process; files go to ``out``."""
    monkeypatch.setattr(sys, "argv", ["DJSW/compare.py"])
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    (tmp_path / "out").mkdir()

    def call(main, *arguments):
        return exit_status(main, *arguments), *capsys.readouterr()

    return Call(call, tmp_path / "out")


def flags(call, name, username="sigurd"):
    return ["--username", username, "--exp_name", name, "--output_dir", call.out]


def train(call, name, *more, username="sigurd"):
    result = call(
        djsw.main, *flags(call, name, username), "--train", "--num_epochs=8", "--lr=3e-3", *more
    )
    assert result[0] == 0, result
    return call.out / f"{name}_checkpoint_best.pt"


def evaluate(call, name, weights, *more, username="sigurd"):
    result = call(djsw.main, *flags(call, name, username), "--load_checkpoint", weights, *more)
    assert result[0] == 0, result
    return call.out / f"{name}_metrics.json"


def untrained(call, name, seed):
    torch.manual_seed(seed)
    torch.save(build_model("sigurd", "mnist_4_9")[0].state_dict(), call.out / f"{name}.pt")
    return evaluate(call, name, call.out / f"{name}.pt")


def compared(call, *arguments, name="c"):
    found = call(compare.main, *arguments, "--output_dir", call.out, "--exp_name", name)
    status, out, err = found
    assert (status, err) == (0, ""), found
    page = (call.out / f"{name}_comparison.md").read_text()
    assert page in out
    with (call.out / f"{name}_comparison.csv").open() as file:
        table = list(csv.DictReader(file))
    assert (call.out / f"{name}_comparison.png").read_bytes().startswith(b"\x89PNG")
    return page, table, json.loads((call.out / f"{name}_comparison.json").read_text())


def test_two_are_ranked_and_tested(call):
    paths = [untrained(call, "a", 0), evaluate(call, "b", train(call, "trained"))]
    page, table, record = compared(call, *paths)
    assert [row["name"] for row in table] == ["b", "a"]
    found = [read_evaluation(path) for path in reversed(paths)]
    for row, evaluation in zip(table, found, strict=True):
        for name, value in metric_values(evaluation.record).items():
            low, high = evaluation.record["intervals"][name]
            assert float(row[name]) == value
            assert [float(row[f"{name}_low"]), float(row[f"{name}_high"])] == [low, high]
            assert row[f"{name}_sd"] == ""
    correct, other = (evaluation.correct for evaluation in found)
    only, only_other = int((correct & ~other).sum()), int((other & ~correct).sum())
    runs_of_10 = intervals.Clusters.of(None, 43)
    expected = intervals.paired_p(np.bincount(runs_of_10.numbers, correct * 1 - other * 1))
    (difference,) = record["test_sets"][0]["differences"]
    assert (difference["first"], difference["second"]) == ("b", "a")
    assert (difference["only_first"], difference["only_second"]) == (only, only_other)
    assert difference["p"] == pytest.approx(expected) == difference["holm_p"]
    assert difference["difference"] == pytest.approx(correct.mean() - other.mean())
    low, high = difference["interval"]
    assert low <= difference["difference"] <= high
    line = [cell.strip() for cell in page.split("| b   | a   |")[1].splitlines()[0].split("|")]
    assert line[2:6] == [str(only), str(only_other), f"{expected:.2g}", f"{expected:.2g}"]
    assert record["evaluations"][0]["file"].endswith("a_metrics.json")
    assert record["session"]["git"] is None or len(record["session"]["git"]["commit"]) == 40


def test_writers_are_resampled_and_ensembles_marked(call, processed):
    write_datasets(processed, writers=9)
    paths = [untrained(call, name, seed) for seed, name in enumerate("ab")]
    weights = [call.out / f"{name}.pt" for name in "ab"]
    page, table, record = compared(call, *paths, evaluate(call, "both", *weights))
    assert "both (ensemble of 2)" in {row["name"] for row in table}
    assert "an ensemble of a.pt, b.pt" in page
    assert "Intervals: bootstrap over 9 writers." in page
    assert record["test_sets"][0]["clusters"] == {"kind": "writers", "count": 9}
    of_test_set = intervals.Clusters.of(open_split("mnist_4_9", train=False).writers, 43)
    found = {path.name[0]: read_evaluation(path).correct for path in paths}
    (pair,) = (
        each
        for each in record["test_sets"][0]["differences"]
        if {each["first"], each["second"]} == {"a", "b"}
    )
    first, second = found[pair["first"]], found[pair["second"]]
    expected = intervals.difference_interval(first[None], second[None], of_test_set)
    assert pair["interval"] == list(expected)
    sums = np.bincount(of_test_set.numbers, first * 1 - second * 1)
    assert pair["p"] == intervals.paired_p(sums)


def test_several_tests_are_corrected_and_equals_share_a_rank(call):
    a = untrained(call, "a", 0)
    b = evaluate(call, "b", train(call, "trained"))
    c = evaluate(call, "c", call.out / "trained_checkpoint_best.pt")
    _, table, record = compared(call, a, b, c, name="three")
    assert [row["rank"] for row in table] == ["1", "1", "3"]
    rows = record["test_sets"][0]["differences"]
    assert [row["holm_p"] for row in rows] == intervals.holm([row["p"] for row in rows])
    assert rows[0]["p"] == 1 and rows[1]["holm_p"] == 3 * rows[1]["p"]


def test_seeds_are_grouped(call):
    seeds = [
        evaluate(call, f"e_{seed}", train(call, f"t_{seed}", "--seed", seed)) for seed in (0, 1, 2)
    ]
    other = evaluate(call, "slower", train(call, "slower", "--lr", "1e-4", "--seed", 0))
    page, table, record = compared(call, *seeds, other)
    found = [json.loads(path.read_text())["metrics"]["accuracy"] for path in seeds]
    row = next(row for row in table if row["name"] == "t (3 seeds)")
    assert float(row["accuracy"]) == pytest.approx(statistics.fmean(found))
    assert float(row["accuracy_sd"]) == pytest.approx(statistics.stdev(found))
    assert f"{statistics.fmean(found):.4f} ± {statistics.stdev(found):.4f}" in page
    assert row["runs"] == "3" and row["f1_low"] == ""
    (difference,) = record["test_sets"][0]["differences"]
    assert difference["p"] is None
    alone = read_evaluation(other)
    first = np.stack([read_evaluation(path).correct for path in seeds])
    second = alone.correct[None]
    if first.mean() < second.mean():
        first, second = second, first
    assert tuple(difference["interval"]) == intervals.difference_interval(
        first, second, intervals.Clusters.of(None, 43)
    )


def test_one_seed_twice_or_another_epoch_is_no_group(call):
    best = train(call, "t", "--seed", 0)
    last = call.out / "t_checkpoint_epoch_8.pt"
    paths = [evaluate(call, "e_0", best), evaluate(call, "e_1", best), evaluate(call, "e_2", last)]
    _, table, _ = compared(call, *paths)
    assert sorted(row["name"] for row in table) == ["e_0", "e_1", "e_2"]
    paths = [evaluate(call, "e_3", train(call, "u", "--seed", 1)), paths[2]]
    _, table, _ = compared(call, *paths, name="d")
    assert sorted(row["name"] for row in table) == ["e_2", "e_3"]


def test_a_group_counts_weights_once(call):
    first, second = (train(call, f"t_{seed}", "--seed", seed) for seed in (0, 1))
    paths = [evaluate(call, "a", first), evaluate(call, "b", second), evaluate(call, "c", first)]
    _, table, _ = compared(call, *paths)
    assert sorted((row["name"], row["runs"]) for row in table) == [
        ("c (seed 0 again)", "1"),
        ("t (2 seeds)", "2"),
    ]
    # One run's name and seed with different weights (from different code, say): no group.
    weights = torch.load(first, weights_only=True)
    weights["weights"]["layer5.bias"] += 1
    metadata = {k: v for k, v in weights.items() if k not in ("weights", "sha256", "format")}
    other = call.out / "u_checkpoint_best.pt"
    write_checkpoint(other, weights["weights"], metadata)
    _, table, _ = compared(call, *paths, evaluate(call, "d", other), name="e")
    assert sorted(row["name"] for row in table) == ["a", "b", "c", "d"]


def test_checkpoints_leave_metrics_and_predictions_only(call):
    compared(call, train(call, "t"))
    found = {path.name for path in call.out.glob("t_best_*")}
    assert len(found) == 2
    assert {name.split("_on_mnist_4_9_")[1] for name in found} == {
        "metrics.json",
        "predictions.csv.gz",
    }


def test_a_missing_test_set_ends_nothing_else(call, processed, monkeypatch):
    from datasetprep import create_usps_dataset

    here = train(call, "t")
    there = train(call, "w", username="waly")
    (processed / DATASETS["usps_0_6"].test_file).unlink()
    monkeypatch.setattr(create_usps_dataset, "RAW_FOLDER", call.out / "raw")
    monkeypatch.setenv("DJSW_RAW_USPS", str(call.out))
    flags = ("--output_dir", call.out, "--exp_name=c")
    status, out, err = call(compare.main, there, here, *flags, "--check")
    assert (
        status == 1
        and "checked" in out
        and err.startswith("error: left out: what needs usps_0_6: ")
    )
    status, out, err = call(compare.main, there, here, *flags)
    assert status == 1 and err.count("\n") == 1 and "put zip.test.gz" in err
    record = json.loads((call.out / "c_comparison.json").read_text())
    assert [each["dataset"]["name"] for each in record["test_sets"]] == ["mnist_4_9"]
    status, out, err = call(compare.main, there, "--output_dir", call.out, "--exp_name=d")
    assert status == 1 and "put zip.test.gz" in err
    assert not (call.out / "d_comparison.json").exists()


def test_other_test_sets_are_not_ranked_together(call, processed):
    a = untrained(call, "a", 0)
    entry = DATASETS["mnist_4_9"]
    (processed / entry.test_file).unlink()
    write_h5(processed / entry.test_file, *digit_images(entry.labels, (28, 28), 43, seed=9))
    b = untrained(call, "b", 0)
    page, table, record = compared(call, a, b)
    assert [(row["name"], row["rank"]) for row in table] == [("a", "1"), ("b", "1")]
    assert [test_set["differences"] for test_set in record["test_sets"]] == [[], []]
    sets = sections(page)
    assert len(set(sets)) == 2 and all(name.startswith("mnist_4_9 (43 images, ") for name in sets)
    assert f"The 2 test sets differ, so nothing is ranked across them: {', '.join(sets)}." in page


def test_same_images_with_other_labels_are_another_test_set(call, processed, monkeypatch):
    a = untrained(call, "a", 0)
    with h5py.File(processed / DATASETS["mnist_4_9"].test_file) as file:
        images, labels = file["images"][()], file["labels"][()]
    labels[:2] = labels[:2][::-1]
    write_h5(processed / DATASETS["mnist_4_9"].test_file, images, labels)
    b = untrained(call, "b", 1)
    drawn = []
    monkeypatch.setattr("utils.report.figures._save", lambda figure, path, *_: drawn.append(figure))
    call(compare.main, a, b, "--output_dir", call.out, "--exp_name", "c")
    record = json.loads((call.out / "c_comparison.json").read_text())
    assert [len(test_set["ranking"]) for test_set in record["test_sets"]] == [1, 1]
    assert [len(axes.get_yticks()) for axes in drawn[0].axes] == [1, 1]
    page = (call.out / "c_comparison.md").read_text()
    assert len(set(sections(page))) == 2
    matrix = [line for line in page.split("![")[0].splitlines() if line.startswith("|")]
    assert len(matrix) == 3 and matrix[2].count("**") == 4  # one network, the best on both


def test_equal_names_are_distinguished(call, tmp_path, monkeypatch):
    best = train(call, "t")
    (tmp_path / "more").mkdir()
    a = evaluate(call, "e", best)
    torch.save(build_model("sigurd", "mnist_4_9")[0].state_dict(), tmp_path / "bare.pt")
    argv = ["--username=sigurd", "--exp_name=e", "--output_dir", tmp_path / "more"]
    assert call(djsw.main, *argv, "--load_checkpoint", tmp_path / "bare.pt")[0] == 0
    drawn = []
    monkeypatch.setattr("utils.report.figures._save", lambda figure, path, *_: drawn.append(figure))
    arguments = (a, tmp_path / "more" / "e_metrics.json", "--output_dir", call.out)
    assert call(compare.main, *arguments, "--exp_name", "c")[0] == 0
    (axes,) = drawn[0].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label.split("/")[-2:] for label in labels] == [["out", "e"], ["more", "e"]]
    assert len(axes.containers) == 2  # a dot with its interval for each


def test_many_are_compared_with_the_best(call, monkeypatch):
    monkeypatch.setattr(comparison, "ALL_PAIRS", 2)
    paths = [untrained(call, name, seed) for seed, name in enumerate("abc")]
    page, _, record = compared(call, *paths)
    (test_set,) = record["test_sets"]
    best, *others = [row["name"] for row in test_set["ranking"]]
    pairs = [(row["first"], row["second"]) for row in test_set["differences"]]
    assert pairs == [(best, other) for other in others]
    assert "With this many entries, each is compared with the best one only." in page


def test_everyone_on_everything(call, monkeypatch):
    datasets = [*dict.fromkeys(person.dataset for person in PEOPLE.values())]
    for dataset in datasets:
        monkeypatch.setitem(RECIPES["standard"], dataset, Recipe(num_epochs=1))
    check = call(
        compare.main,
        "--everyone",
        "--jobs=1",
        "--exp_name=std",
        "--output_dir",
        call.out,
        "--check",
    )
    assert check[0] == 0 and check[1].endswith("checked     this command would run\n")
    assert not list(call.out.iterdir())
    page, table, record = compared(call, "--everyone", "--jobs=1", name="std")
    assert len(table) == len(PEOPLE) * len(datasets) == len(record["evaluations"])
    lines = page.splitlines()
    matrix = [line for line in lines[: lines.index("## " + sections(page)[0])] if line[:1] == "|"]
    sets = [cell.split()[0] for cell in matrix[0].split("|")[2:-1]]
    assert sets == datasets and len(matrix) == 2 + len(PEOPLE)
    people = sorted(PEOPLE.items(), key=lambda item: item[1].model_name)
    for row, (username, person) in zip(matrix[2:], people, strict=True):
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[0] == f"{person.model_name} ({username})"
        for cell, dataset in zip(cells[1:], datasets, strict=True):
            name = f"{person.model_name.lower()}_std"
            name += "" if dataset == person.dataset else f"_{dataset}"
            found = json.loads((call.out / f"{name}_metrics.json").read_text())
            assert found["username"] == username and found["dataset"]["name"] == dataset
            assert found["training"]["dataset"]["name"] == dataset
            assert f"{found['metrics']['accuracy']:.4f}" in cell
    assert all(sum("**" in line.split("|")[k] for line in matrix[2:]) >= 1 for k in (2, 3, 4))
    assert (
        "num_epochs 1; batch_size 64; lr 0.001; schedule constant; recipe standard; seed 42" in page
    )
    record_file = call.out.parent / "weights" / "WMLP" / "wmlp_std_run.json"
    text = record_file.read_text()
    again = (
        "--everyone",
        "--jobs=1",
        "--exp_name=std",
        "--output_dir",
        call.out.parent / "weights",
    )
    changed(record_file, lambda record: record["settings"].update(lr=0.01))
    for damaged, sentence in (
        (record_file.read_text(), "with lr 0.01, here it is 0.001"),
        (text.replace('"lr": 0.001', '"lr": 0.01'), "it was changed"),
        (text[:99], "is not a valid record of a run"),
        ("[]", "is not a valid record of a run"),
    ):
        record_file.write_text(damaged)
        status, _, err = call(compare.main, *again, "--check")
        assert status == 2 and sentence in err, err
    record_file.write_text(text)
    best = record_file.with_name("wmlp_std_checkpoint_best.pt")
    own = best.read_bytes()
    best.write_bytes(best.with_name("wmlp_std_mnist_0_3_checkpoint_best.pt").read_bytes())
    status, _, err = call(compare.main, *again, "--check")
    assert status == 2 and "wmlp_std_checkpoint_best.pt is not of the run of" in err
    best.write_bytes(own)
    weights = call.out.parent / "weights" / "SMLP" / "smlp_std_checkpoint_best.pt"
    before = weights.stat().st_mtime_ns
    status, out, _ = call(
        compare.main, "--everyone", "--jobs=1", "--exp_name=std", "--output_dir", call.out
    )
    assert status == 2  # the comparison exists already
    (call.out / "std_comparison.json").unlink()
    status, out, _ = call(
        compare.main, "--everyone", "--jobs=1", "--exp_name=std", "--output_dir", call.out
    )
    assert status == 0 and "trains" not in out and weights.stat().st_mtime_ns == before
    assert page in out


def test_everyone_with_seeds_on_all_cores(checkout, run_script):
    write_datasets(checkout / "data" / "processed")
    flags = (
        "--everyone",
        "--exp_name=x",
        "--seeds=1,2",
        "--datasets",
        "fashion",
        "--jobs=2",
        "--output_dir=reports/scratch",
    )
    ran = run_script(checkout / "DJSW" / "compare.py", *flags, cwd=checkout, fresh=True)
    assert ran.returncode == 0, ran.stderr
    record = json.loads((checkout / "reports" / "scratch" / "x_comparison.json").read_text())
    assert len(record["evaluations"]) == 2 * len(PEOPLE)
    assert ran.stdout.count(" trains ") == 2 * len(PEOPLE)
    for seed in (1, 2):
        path = checkout / "weights" / "WMLP" / f"wmlp_x_fashion_{seed}_run.json"
        run = json.loads(path.read_text())
        assert run["settings"]["seed"] == seed and run["status"] == "finished"
    assert "(2 seeds)" in ran.stdout


def test_runs_are_ranked_by_validation_without_the_test_set(call, processed):
    for entry in DATASETS.values():
        (processed / entry.test_file).unlink()
    for seed in (1, 2):
        train(call, f"s_{seed}", "--seed", seed)
    best = train(call, "slow", "--lr=1e-5")
    for fold in ("1/5", "2/5"):
        train(call, f"f_{fold[0]}", "--fold", fold)
    train(call, "other", username="dennis")
    runs = {path.name[:-9]: json.loads(path.read_text()) for path in call.out.glob("*_run.json")}
    pruned = call.out / "pruned_run.json"
    pruned.write_text((call.out / "slow_run.json").read_text())
    changed(pruned, lambda record: record.update(status="pruned", exp_name="pruned"))
    arguments = ("--validation", call.out, best, "--output_dir", call.out, "--exp_name=v")
    assert call(compare.main, *arguments, "--check")[0] == 0
    assert not list(call.out.glob("v_*"))
    status, out, err = call(compare.main, *arguments)
    assert (status, err) == (0, "")
    page = (call.out / "v_comparison.md").read_text()
    assert page in out and "The test set was not read" in " ".join(page.split())
    assert "Left out, since they are not finished: pruned (pruned)." in page
    titles = [title.rpartition(", ")[0] for title in sections(page)]
    assert sorted(titles) == [
        "mnist_0_3 (12 validation images",
        "mnist_4_9 (12 validation images",
        "mnist_4_9 (24 validation images, fold 1/5",
        "mnist_4_9 (24 validation images, fold 2/5",
    ]
    with (call.out / "v_comparison.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == ["f_1", "f_2", "other", "s (2 seeds)", "slow"]
    assert page.index("| s (2 seeds)") < page.index("| slow ")
    for name, seeds in (("s (2 seeds)", ["s_1", "s_2"]), ("slow", ["slow"])):
        for metric in ("validation_loss", "validation_accuracy"):
            values = [runs[seed]["results"]["best"][metric] for seed in seeds]
            assert float(rows[name][metric]) == pytest.approx(statistics.fmean(values))
            error = statistics.stdev(values) / 2**0.5 if len(values) > 1 else None
            assert float(rows[name][f"{metric}_se"] or "nan") == pytest.approx(
                error if error is not None else float("nan"), nan_ok=True
            )
    accuracy = runs["slow"]["results"]["best"]["validation_accuracy"]
    ends = intervals.wilson(round(12 * accuracy), 12)
    found = [float(rows["slow"][f"validation_accuracy_{end}"]) for end in ("low", "high")]
    assert found == list(ends) and 12 * accuracy == pytest.approx(round(12 * accuracy))
    record = json.loads((call.out / "v_comparison.json").read_text())
    assert len(record["runs"]) == 6 and len(record["ranking"]) == 5
    status, _, err = call(compare.main, *arguments)
    assert status == 2 and "'v' was compared before" in err
    for entry in DATASETS.values():  # other images: of how many is not known
        write_h5(processed / entry.train_file, *digit_images(entry.labels, entry.image_size, 90, 7))
    status, out, _ = call(compare.main, *arguments[:-1], "--exp_name=w")
    assert status == 0 and "mnist_0_3 (unknown validation images" in out
    for given, sentence in (
        ((pruned,), "none of the runs is finished: pruned (pruned)"),
        ((call.out / "s_1_history.csv",), "give its …_run.json"),
        ((call.out / "s_1_checkpoint_epoch_8.pt",), "give its …_run.json"),
        ((processed,), "holds no run; give a folder with some …_run.json"),
        ((best, "--dataset=mnist_4_9"), "without --everyone and --dataset"),
        ((), "nothing to compare"),
    ):
        status, out, err = call(compare.main, "--validation", *given, "--output_dir", call.out)
        assert status == 2 and sentence in err and err.count("\n") == 1, err
    best.write_bytes((call.out / "s_1_checkpoint_best.pt").read_bytes())
    status, _, err = call(compare.main, *arguments[:-1], "--exp_name=x")
    assert status == 2 and "slow_checkpoint_best.pt is not of the run of" in err


def sections(page):
    return [line[3:] for line in page.splitlines() if line.startswith("## ")]


def test_checkpoints_are_evaluated_first(call):
    best = train(call, "t", "--dataset", "usps_0_6")
    bare = call.out / "bare.pt"
    torch.save(build_model("dennis", "usps_0_6")[0].state_dict(), bare)
    page, table, _ = compared(call, best, bare, "--dataset", "usps_0_6")
    digest = sha256_of(bare)[:8], sha256_of(best)[:8]
    assert sorted(row["name"] for row in table) == [
        f"bare_{digest[0]}_on_usps_0_6",
        f"t_best_{digest[1]}_on_usps_0_6",
    ]
    assert {row["network"] for row in table} == {
        "SMLP 256-77-77-77-77-7",
        "DMLP 256-300-300-300-7",
    }
    again, _, _ = compared(call, best, bare, name="d")  # a checkpoint names its dataset
    assert sections(again) == sections(page)
    status, _, err = call(compare.main, best, "--dataset=mnist_4_9", "--output_dir", call.out)
    assert status == 2 and "distinguishes the digits [0, 1, 2, 3, 4, 5, 6], mnist_4_9 holds" in err
    torch.save({"fc9.weight": torch.zeros(3, 3)}, bare)
    status, _, err = call(compare.main, bare, "--output_dir", call.out)
    assert status == 2 and "fits no network" in err
    odd = call.out / "my model (1).pt"
    torch.save(build_model("dennis", "usps_0_6")[0].state_dict(), odd)
    before = set(call.out.iterdir())
    status, _, err = call(compare.main, odd, bare, "--output_dir", call.out)
    assert status == 2 and set(call.out.iterdir()) == before  # all are checked first
    _, table, _ = compared(call, odd, name="e")
    assert table[0]["name"] == f"my_model_1__{sha256_of(odd)[:8]}_on_usps_0_6"


def test_usage_errors_are_one_sentence(call, tmp_path, monkeypatch):
    a = untrained(call, "a", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("hello")
    run = train(call, "t").with_name("t_run.json")
    for arguments, sentence in (
        ((), "nothing to compare"),
        (("--everyone",), "--everyone needs --exp_name"),
        (("--seeds=1-2", "x"), "--seeds is for --everyone"),
        (("x", "--datasets", "fashion"), "--datasets is for --everyone"),
        ((tmp_path / "empty",), "empty holds no evaluation; give a folder with some"),
        ((tmp_path / "none.json",), "is no existing file or folder"),
        ((tmp_path / "text.json",), "is not a valid metrics file of an evaluation"),
        ((run,), "is not a valid metrics file of an evaluation"),
        ((call.out / "t_history.csv",), "give its …_metrics.json"),
        ((a, "--dataset", "mnist_4_9"), "--dataset is for checkpoints, and none is given"),
        ((a, "--output_dir", tmp_path / "none"), "--output_dir"),
        ((a, "--exp_name", "../x"), "is not a name"),
    ):
        status, out, err = call(compare.main, *arguments)
        assert status == 2 and sentence in err, (arguments, err)
        assert err.startswith("error: ") and err.count("\n") == 1 and out == ""
    compared(call, a)
    with monkeypatch.context() as ranks:
        ranks.setenv("WORLD_SIZE", "2")
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            ranks.setenv(name, "0")
        status, _, err = call(compare.main, a, "--output_dir", call.out)
    assert status == 2 and err.startswith(
        "error: 2 ranks were started, but this command is a single process; "
    )
    status, _, err = call(compare.main, a, "--output_dir", call.out, "--exp_name", "c")
    assert status == 2 and "'c' was compared before" in err
    assert not list(tmp_path.glob("comparison_*"))


def test_folder_and_default_name(call):
    untrained(call, "a", 0)
    untrained(call, "b", 1)
    twice = (call.out, call.out / "a_metrics.json")
    status, out, _ = call(compare.main, *twice, "--output_dir", call.out)
    assert status == 0
    (page,) = call.out.glob("comparison_2*_comparison.md")
    assert out.count(f"{page}\n") == 1
    assert page.read_text().count("| a ") == 2  # once ranked, once in the difference
