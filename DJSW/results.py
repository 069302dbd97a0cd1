"""Write the README's results and the model cards from the records: ``python DJSW/results.py``.

For each recipe it takes the runs of a person's network on that person's digits that are named
``smlp_standard`` or, with several seeds, ``smlp_tuned_1`` and so on, and that were evaluated under
the same name. Of several runs the one with the lowest validation loss is published. A run that
differs from its recipe or from the person's entry, or whose code was not committed, is refused.

``python DJSW/results.py --list`` lists what ran, newest first.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from DJSW.arguments import TrainArguments
from DJSW.pipelines import DATASETS, PEOPLE
from DJSW.recipes import RECIPES, settings
from utils.cli import Parser, run_command
from utils.errors import UsageError, one_line
from utils.records.evaluation import EvaluationRecord, metric_values, read_evaluation, read_metrics
from utils.records.files import ROOT, find_folder, write_text
from utils.records.provenance import flat
from utils.records.run import Run, read_run, require_same_run
from utils.records.typed import shown
from utils.report import tables
from utils.report.tables import interval, number
from utils.statistics.comparison import mean_and_deviation

BEGIN, END = "<!-- by DJSW/results.py -->\n", "<!-- to here -->\n"
#: Who may do what with the digits.
LICENSES = {
    "mnist": "MNIST: Y. LeCun and C. Cortes, Creative Commons Attribution-Share Alike 3.0.",
    "usps": "USPS: digits of the U.S. Postal Service, shared for research without a license.",
}
#: Columns of the list of runs, after the time.
COLUMNS = ("user", "experiment", "status", "dataset", "best epoch", "accuracy", "device", "job")


@dataclass(frozen=True)
class Result:
    """The runs of one person's network by one recipe.

    :ivar runs: their records by name, the published one first.
    :ivar evaluations: their evaluations on the test set, by name.
    """

    username: str
    recipe: str
    runs: dict[str, Run]
    evaluations: dict[str, EvaluationRecord]

    @property
    def name(self) -> str:
        """The name of the published run."""
        return next(iter(self.runs))

    @property
    def published(self) -> EvaluationRecord:
        """The evaluation of the published run."""
        return self.evaluations[self.name]

    @property
    def accuracy(self) -> str:
        """Mean and standard deviation over the seeds."""
        values = [each["metrics"]["accuracy"] for each in self.evaluations.values()]
        return tables.with_deviation(*mean_and_deviation(values))


def results() -> dict[str, list[Result]]:
    """Return what is published, by person and then by recipe, in the order of the tables.

    :raises UsageError: a run is not evaluated, not finished, not by the recipe of its name, or not
        from committed code.
    """
    return {
        username: [
            Result(username, recipe, runs, {k: _evaluation(k, runs[k], recipe) for k in runs})
            for recipe in RECIPES
            if (runs := _runs(username, recipe))
        ]
        for username in PEOPLE
    }


def _runs(username: str, recipe: str) -> dict[str, Run]:
    """Return a person's runs by a recipe, by name, the lowest validation loss first."""
    person = PEOPLE[username]
    stem = f"{person.model_name.lower()}_{recipe}"
    runs = []
    for path in (ROOT / "weights" / person.model_name).glob(f"{stem}*_run.json"):
        if not re.fullmatch(rf"{stem}(_[0-9]+)?_run.json", path.name):
            continue
        run = read_run(path)
        if (run["username"], run["dataset"]["name"]) != (username, person.dataset):
            continue
        _require_recipe(path, run, recipe)
        runs.append(run)
    runs.sort(key=lambda run: (run["results"]["best"]["validation_loss"], run["exp_name"]))
    return {run["exp_name"]: run for run in runs}


def _require_recipe(path: Path, run: Run, recipe: str) -> None:
    """Check that a run is finished, by the recipe and the entry alone, and from committed code.

    :raises UsageError: it is not; the sentence names the first difference.
    """
    from DJSW.networks import model_arguments  # imports torch, which --list does not need

    username, dataset = run["username"], run["dataset"]["name"]
    flags = TrainArguments(username=username, exp_name=recipe, output_dir="", recipe=recipe)
    seed = run["settings"].get("seed", "any number")
    pairs: dict[str, tuple[object, object]] = {
        "status": (run["status"], "finished"),
        "settings": (run["settings"], {**asdict(settings(flags, dataset)), "seed": seed}),
        "starting_weights": (run["starting_weights"], None),
        "arguments": (run["model"]["arguments"], model_arguments(username, dataset)),
    }
    for k, session in enumerate(run["sessions"]):
        pairs[f"sessions.{k}.git.changed"] = session["git"] and session["git"]["changed"], False
    values = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    # Through JSON, as the record: lists for tuples.
    found, expected = (dict(flat(json.loads(json.dumps(each)))) for each in values)
    for name in found | expected:
        if found.get(name) != expected.get(name):
            raise UsageError(
                f"{path} cannot be published: {name} is {shown(found.get(name))}, expected "
                f"{expected.get(name)} (train it again by the recipe {recipe!r} without other "
                "flags, from committed code, or rename it)"
            )


def _evaluation(name: str, run: Run, recipe: str) -> EvaluationRecord:
    """Return the evaluation of a run, which agrees with it and with its checkpoint."""
    record = read_evaluation(ROOT / "reports" / recipe / f"{name}_metrics.json").record
    folder = ROOT / "weights" / PEOPLE[run["username"]].model_name
    require_same_run(folder / f"{name}_run.json", run, record)
    return record


def readme_table(found: Sequence[Result]) -> str:
    """Return the README's table."""
    header = ("network, test set", "recipe", "seeds", "accuracy", "best seed: accuracy", "errors")
    rows = []
    for result in found:
        best, metrics = result.published, result.published["metrics"]
        network = f"{best['model']['name']}, `{best['dataset']['name']}`"
        accuracy = f"{number(metrics['accuracy'])} ({interval(best['intervals']['accuracy'])})"
        errors = f"{best['images'] - best['correct']} of {best['images']}"
        seeds = (result.recipe, str(len(result.runs)), result.accuracy)
        rows.append((network, *seeds, accuracy, errors, number(metrics["balanced_accuracy"])))
    return tables.markdown((*header, "balanced accuracy"), rows)


def model_card(found: Sequence[Result]) -> str:
    """Return the model card of one network, from its results by each recipe."""
    username, model = found[0].username, found[0].published["model"]
    person = PEOPLE[username]
    entry, folder = DATASETS[person.dataset], ROOT / "weights" / person.model_name
    others = (name for name in DATASETS if name != person.dataset)
    parts = [
        f"# {model['name']}: {username}'s network",
        f"{model['layers']}, {model['parameters']:,} parameters. It classifies the digits "
        f"{', '.join(map(str, entry.digits))} of {entry.source.upper()}, in images of "
        f"{entry.image_size[1]} x {entry.image_size[0]} pixels, and takes any other image for one "
        "of these.",
        *(part for result in found for part in _recipe_section(result)),
        "## Data",
        f"{LICENSES[entry.source]} 90 % of the training images were trained on; the other 10 % "
        "chose the epoch and, of several seeds, the published one. "
        "[docs/recipes.md](../../docs/recipes.md) says what was known of the test images when the "
        "recipes were chosen.",
        "This page is written by `uv run DJSW/results.py`.",
    ]
    if any(path for name in others for path in folder.glob(f"*_{name}_run.json")):
        parts[-1] += (
            " Other checkpoints in this folder are those of `compare.py --everyone`: seed 42, on "
            f"{person.dataset} and other datasets."
        )
    return "\n\n".join(parts) + "\n"


def _recipe_section(result: Result) -> list[str]:
    evaluation, run = result.published, result.runs[result.name]
    best = run["results"]["best"]
    rows = [
        (tables.title(name), number(value), interval(evaluation["intervals"][name]))
        for name, value in metric_values(evaluation).items()
    ]
    pairs = ", ".join(
        f"{digit} predicted as {other} ({count})"
        for digit, other, count in tables.confused_pairs(evaluation)[:3]
    )
    seeds = sorted(each["settings"]["seed"] for each in result.runs.values())
    errors = f"{evaluation['images'] - evaluation['correct']} errors"
    page = f"reports/{result.recipe}/{result.name}_report.md"
    link = f" [The whole evaluation](../../{page})." if (ROOT / page).exists() else ""
    return [
        f"## Recipe {result.recipe}",
        f"`{best['checkpoint']}`: epoch {best['epoch']}, validation accuracy "
        f"{best['validation_accuracy']:.4f}. Test accuracy {result.accuracy}, "
        f"seed{'s' * (len(seeds) > 1)} {str(seeds)[1:-1]}.",
        f"```bash\n{run['sessions'][0]['command'].replace('python ', 'uv run ', 1)}\n```",
        tables.describe_settings(run["settings"]) + ".",
        tables.markdown(("on the test set", "value", "95 % interval"), rows),
        f"{errors}, most often: {pairs}.{link}" if pairs else f"No errors.{link}",
    ]


def pages() -> dict[Path, str]:
    """Return the README and the model cards as they should be, by file.

    :raises UsageError: the README lacks the marks, or as :func:`results`.
    """
    found = {username: own for username, own in results().items() if own}
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(f"{readme} lacks the lines {BEGIN.strip()} and {END.strip()}")
    table = readme_table([each for own in found.values() for each in own])
    cards = {ROOT / "weights" / PEOPLE[name].model_name / "README.md": name for name in found}
    written = {card: model_card(found[name]) for card, name in cards.items()}
    return {readme: f"{before}{begin}\n{table}\n\n{end}{after}", **written}


def write(pages: Mapping[Path, str]) -> None:
    """Write the pages that differ, and print their names."""
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(f"written     {path}")


def list_runs(folders: Sequence[str]) -> None:
    """Print a line for each record in the folders, newest first; name other files on stderr."""
    rows = []
    for folder in dict.fromkeys(find_folder(name, "--list") for name in folders):
        for path in sorted([*folder.rglob("*_run.json"), *folder.rglob("*_metrics.json")]):
            try:
                read = read_run if path.name.endswith("_run.json") else read_metrics
                cells = list_row(read(path))
            except UsageError as error:
                print(f"no record: {one_line(str(error))}", file=sys.stderr)
                continue
            if "reproduced" in path.parts:
                cells[3] = "reproduced"
            rows.append([shown(cell) for cell in cells])
    if not rows:
        print("no records yet; DJSW/main.py writes one for each run")
        return
    rows = [[row[0][:16].replace("T", " "), *row[1:]] for row in sorted(rows, reverse=True)]
    print("\n".join(tables.align([("time (UTC)", *COLUMNS, "commit"), *rows])))
    if any(row[-1].endswith("*") for row in rows):
        print("\n* with changes that were not committed; the record has them")


def list_row(record: Mapping[str, Any]) -> list[str]:
    """Return the cells of a record: the time it started, :data:`COLUMNS`, the commit."""
    trained = "settings" in record
    sessions = record["sessions"] if trained else [record["session"]]
    session = sessions[-1]
    device, slurm, git = session["device"], session["slurm"], session["git"]
    changed = any((each["git"] or {}).get("changed") for each in sessions)
    status = record.get("status", "evaluated")
    status = {"finished": "trained", "running": "unfinished"}.get(status, status)
    epochs = accuracy = "-"
    if not trained:
        epochs = str(record["checkpoint"]["epoch"] or "-")
        accuracy = f"{number(record['metrics'].get('accuracy'))} test"
    elif "results" in record:
        best, last = record["results"]["best"], record["results"]["last"]
        epochs = f"{best['epoch']} of {last['epoch']}"
        accuracy = f"{best['validation_accuracy']:.4f} validation"
    ranks = len(device.get("ranks", [None]))
    name = device["name"] if device["type"] == "cuda" else "CPU"
    devices = f"{ranks} x {name}" if ranks > 1 else name
    job = slurm.get("SLURM_JOB_ID", "-")
    if "SLURM_ARRAY_JOB_ID" in slurm:
        job = f"{slurm['SLURM_ARRAY_JOB_ID']}_{slurm.get('SLURM_ARRAY_TASK_ID')}"
    commit = f"{git['commit'][:7]}{'*' * changed}" if git else "-"
    run = [session["started"], record["username"], record["exp_name"], status]
    return [*run, record["dataset"]["name"], epochs, accuracy, devices, job, commit]


def parser() -> Parser:
    """Return the parser."""
    flags = Parser("Write the README's results and the model cards from the records.")
    only = "only list the records below these folders, newest first; default: weights reports"
    flags.add_argument("--list", nargs="*", metavar="FOLDER", help=only)
    return flags


def command(args: argparse.Namespace) -> None:
    """Write what is out of date, or list the records."""
    if args.list is None:
        write(pages())
    else:
        list_runs(args.list or ["weights", "reports"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
