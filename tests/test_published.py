"""The files under weights/ and reports/ are complete, and the README agrees with them."""

import json
import re
from collections import Counter
from dataclasses import asdict
from itertools import product

import pytest
from conftest import ROOT, checkout_files, copy_checkout

from DJSW import recipes, results
from DJSW.networks import build_model
from DJSW.pipelines import PEOPLE
from DJSW.recipes import RECIPES
from utils.records.checkpoint import load_checkpoint, weights_sha256
from utils.records.evaluation import read_evaluation
from utils.records.files import sha256_of
from utils.records.run import read_run, require_same_run
from utils.report import tables
from utils.report.evaluation_page import evaluation_page
from utils.statistics.comparison import mean_and_deviation

FOUNDERS = ("sigurd", "waly", "dennis")
OWN_DATASETS = {PEOPLE[name].dataset for name in FOUNDERS}
RECIPES_PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The committed files, without a user's own runs and evaluations in these folders."""
    folder = tmp_path_factory.mktemp("published")
    return copy_checkout(folder, "README.md", "docs", "reports", "weights")


@pytest.fixture
def found(published, monkeypatch):
    """The published results of each founder."""
    monkeypatch.setattr(results, "ROOT", published)
    return results.results()


def test_everyone_has_published_on_everything(published):
    """Five seeds by the standard recipe, on each person's dataset and on Fashion-MNIST."""
    for pattern in ("weights/*/*_standard*_run.json", "reports/standard/*_metrics.json"):
        made = [json.loads(path.read_text()) for path in published.glob(pattern)]
        counts = Counter((record["username"], record["dataset"]["name"]) for record in made)
        pairs = product(FOUNDERS, (*OWN_DATASETS, "fashion"))
        assert all(counts[pair] == 5 for pair in pairs), counts


def test_checkpoints_are_those_of_the_record(published, found):
    """Check the published runs, and the runs that the documents use."""
    checkpoints = sorted(published.glob("weights/*/*.pt"))
    names = {path.name.removesuffix("_checkpoint_best.pt") for path in checkpoints}
    assert names >= {result.name for own in found.values() for result in own}
    for path in checkpoints:
        record = json.loads(
            path.with_name(path.name.replace("checkpoint_best.pt", "run.json")).read_text()
        )
        assert record["status"] == "finished", path
        assert record["sessions"][0]["git"]["changed"] is False, path
        checkpoint, best = load_checkpoint(path), record["results"]["best"]
        assert weights_sha256(checkpoint.weights) == best["weights_sha256"], path
        assert checkpoint.metadata["epoch"] == best["epoch"], path
        build_model(record["username"], record["dataset"]["name"], checkpoint)


def test_evaluations_are_complete(published):
    for path in published.glob("reports/standard/*_metrics.json"):
        record = read_evaluation(path).record
        checkpoint = published / record["checkpoint"]["file"]
        if checkpoint.exists():
            assert sha256_of(checkpoint) == record["checkpoint"]["sha256"], path
        git = record["session"]["git"]
        assert git is not None and git["changed"] is False, path
        name = record["exp_name"]
        page = path.with_name(f"{name}_report.md")
        if not page.exists():  # of the best seed only
            continue
        assert page.read_text(encoding="utf-8") == evaluation_page(record), path
        for picture in ("confusion", "errors", "reliability"):
            content = path.with_name(f"{name}_{picture}.png").read_bytes()
            assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82"), path


def test_checkout_is_small(published):
    """Predictions are below 60 kB, and files other than weights below 500 kB."""
    for name in checkout_files():
        size = (ROOT / name).stat().st_size
        assert size <= 500_000 or name.endswith("_checkpoint_best.pt"), name
        assert size <= 60_000 or not name.endswith("_predictions.csv.gz"), name
    assert sum((ROOT / name).stat().st_size for name in checkout_files()) < 12_000_000


def test_recipes_are_published(published, found):
    """Five seeds of each network are evaluated; the best by validation loss is published."""
    for name in FOUNDERS:
        own = [recipe for recipe in RECIPES if PEOPLE[name].dataset in RECIPES[recipe]]
        # DMLP's distilled networks are no better than its tuned ones: only their results are kept.
        assert [each.recipe for each in found[name]] == own[: 2 if name == "dennis" else None]
    for result in (result for name in FOUNDERS for result in found[name]):
        assert len(result.runs) == 5 == len(result.evaluations)
        assert len({record["settings"]["seed"] for record in result.runs.values()}) == 5
        person = PEOPLE[result.username]
        expected = asdict(RECIPES[result.recipe][person.dataset])
        losses = []
        for name, record in result.runs.items():
            assert record["status"] == "finished"
            assert not any(session["git"]["changed"] for session in record["sessions"])
            assert {key: record["settings"].get(key) for key in expected} == expected
            best = record["results"]["best"]
            losses.append(best["validation_loss"])
            evaluation = result.evaluations[name]
            assert evaluation["session"]["git"]["changed"] is False
            assert evaluation["checkpoint"]["file"].endswith(f"{name}_checkpoint_best.pt")
            assert evaluation["checkpoint"]["epoch"] == best["epoch"]
        assert losses[0] == min(losses)
        path = published / result.published["checkpoint"]["file"]
        assert sha256_of(path) == result.published["checkpoint"]["sha256"]
        best = result.runs[result.name]["results"]["best"]
        assert weights_sha256(load_checkpoint(path).weights) == best["weights_sha256"]
        page = published / "reports" / result.recipe / f"{result.name}_report.md"
        assert page.read_text(encoding="utf-8") == evaluation_page(result.published)


def test_readme_and_model_cards_are_up_to_date(published, found):
    for path, text in results.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: uv run DJSW/results.py"
    expected = " ".join(recipes.__doc__.split())
    for name in FOUNDERS:
        by_recipe = {result.recipe: result for result in found[name]}
        for result in found[name]:
            assert result.accuracy.replace("±", "+-") in expected, result.name
        standard, tuned, model = by_recipe["standard"], by_recipe["tuned"], PEOPLE[name].model_name
        cells = row_of(RECIPES_PAGE.partition("## What came of it")[2], model)
        assert [standard.accuracy, tuned.accuracy] == cells[2:4], model
        assert f"{tuned.published['metrics']['accuracy']:.4f}" == cells[5], model
        runs, accuracies = [], []
        for path in published.glob(f"*/*/{model.lower()}_distilled_?_run.json"):
            runs.append(read_run(path))
            metrics = f"reports/distilled/{runs[-1]['exp_name']}_metrics.json"
            record = read_evaluation(published / metrics).record
            require_same_run(path, runs[-1], record)
            accuracies.append(record["metrics"]["accuracy"])
        losses = [run["results"]["best"]["validation_loss"] for run in runs]
        best = losses.index(min(losses))
        accuracy = tables.with_deviation(*mean_and_deviation(accuracies))
        cells = row_of(RECIPES_PAGE.partition("## Distilled")[2], model)
        assert len(runs) == 5 and [tuned.accuracy, accuracy] == cells[2:4], model
        assert f"{accuracies[best]:.4f}" == cells[5], model


def row_of(text, model):
    """Return the cells of the first row of results of a network."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {model} | 0.9"))
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("comparisons/tuned", 45),
        ("comparisons/tuned_published", 12),
        ("standard/standard", 5 * 3 * 4),
    ],
)
def test_comparison_is_of_these_evaluations(published, name, count):
    record = json.loads((published / "reports" / f"{name}_comparison.json").read_text())
    assert len(record["evaluations"]) == count
    for each in record["evaluations"]:
        assert each["sha256"] == sha256_of(published / each["file"])


def test_readme_has_the_matrix_of_the_comparison(published):
    page = published / "reports" / "standard" / "standard_comparison.md"
    before = page.read_text(encoding="utf-8").split("![")[0]
    matrix = [line for line in before.splitlines() if line.startswith("|")]
    assert len(matrix) >= 2 + 3
    assert "\n".join(matrix) in (published / "README.md").read_text(encoding="utf-8")


def test_performance_page_has_the_benchmarks_tables(published):
    measured = (published / "reports" / "benchmarks" / "epoch.md").read_text(encoding="utf-8")
    tables = measured.split("\n\n")[1:3]
    assert all(table.startswith("|") for table in tables)
    page = (published / "docs" / "performance.md").read_text(encoding="utf-8")
    assert all(table in page for table in tables)
    curves = json.loads((published / "reports" / "benchmarks" / "accuracy.json").read_text())[
        "curves"
    ]
    for recipe, curve in curves.items():
        assert len(curve) == RECIPES[recipe]["mnist_4_9"].num_epochs
    measured = (published / "reports" / "benchmarks" / "accuracy.md").read_text(encoding="utf-8")
    assert measured.split("\n\n")[1].startswith("| recipe") and measured.split("\n\n")[1] in page
    measured = (published / "reports" / "benchmarks" / "evaluation.md").read_text(encoding="utf-8")
    assert all(table in page for table in measured.split("\n\n")[1:3])


def test_logs_of_jobs_have_no_paths_and_agree_with_the_results(published):
    logs = {path.stem: path.read_text() for path in (published / "reports/slurm").glob("*.log")}
    for name, log in logs.items():
        assert not re.search(r"(?<![\w.…:/])/\w", log), f"{name}: an absolute path"
        assert re.search(r"^commit      [0-9a-f]{40}$", log, re.MULTILINE), f"{name}: of a commit"
    for name, count in (("smlp_training", 10), ("smlp_requeued", 15)):
        epochs = re.findall(rf"^epoch +([0-9]+)/{count} ", logs[name], re.MULTILINE)
        assert epochs == [str(epoch + 1) for epoch in range(count)] and "checkpoint  " in logs[name]
    stops = [logs["smlp_requeued"].count(f"\n{start}") for start in ("stopped by SIG", "resumed  ")]
    assert stops[0] == stops[1] >= 1 and "requeued for restart 1 of 20\n" in logs["smlp_requeued"]
    record = read_evaluation(published / "reports/standard/wmlp_standard_3_metrics.json").record
    assert f"weights     {record['checkpoint']['file']}\n" in logs["wmlp_evaluation"]
    counts = f"{record['correct']} of {record['images']} images correct"
    assert f"\n{counts}\n" in logs["wmlp_evaluation"]
