"""What is committed under weights/ and reports/ is whole, and the README says what it says."""

import json

import pytest

from DJSW.pipelines import PEOPLE, build_model
from utils.checkpoint import load_checkpoint, weights_sha256
from utils.files import ROOT, sha256_of

# Whoever trains and evaluates in these folders has other files there too.
RECORDS = sorted((ROOT / "weights").glob("*/*_standard_run.json"))
EVALUATIONS = sorted((ROOT / "reports").glob("*_standard_metrics.json"))


def test_everyone_has_published():
    published = {json.loads(path.read_text())["username"] for path in RECORDS}
    evaluated = {json.loads(path.read_text())["username"] for path in EVALUATIONS}
    assert {"sigurd", "waly", "dennis"} <= published == evaluated <= PEOPLE.keys()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_checkpoints_are_those_of_the_record(path):
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    assert record["sessions"][0]["git"]["changed"] is False
    for result in (record["results"]["best"], record["results"]["last"]):
        checkpoint = load_checkpoint(path.with_name(result["checkpoint"]))
        assert weights_sha256(checkpoint.weights) == result["weights_sha256"]
        assert checkpoint.about["epoch"] == result["epoch"]
        build_model(record["username"], record["dataset"]["name"], checkpoint)


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.name)
def test_readme_has_the_numbers_of_the_evaluation(path):
    found = json.loads(path.read_text())
    assert sha256_of(ROOT / found["checkpoint"]["file"]) == found["checkpoint"]["sha256"]
    metrics, distance = found["metrics"], found["label_distance"]
    numbers = [metrics[name] for name in ("accuracy", "balanced_accuracy", "precision", "recall")]
    numbers += [metrics["f1"], distance["mse"], distance["mae"], distance["r2"]]
    row = " | ".join(f"{number:.4f}" for number in numbers)
    start = f"| {found['model']['name']}, `{found['dataset']['name']}` | "
    assert start + row in (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_has_the_benchmark_s_tables():
    measured = (ROOT / "reports" / "benchmarks" / "epoch.md").read_text(encoding="utf-8")
    tables = measured.split("\n\n")[1:3]
    assert all(table.startswith("|") for table in tables)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(table in readme for table in tables)
