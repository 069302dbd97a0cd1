"""Write the README's results and the model cards from the records: ``python DJSW/results.py``.

For each recipe it takes the runs of a person's network on that person's digits that are named
``smlp_standard`` or, with several seeds, ``smlp_tuned_1`` and so on, and that were evaluated under
the same name. Of several runs the one with the lowest validation loss is published. A run that
differs from its recipe or from the person's entry, or whose code was not committed, is refused.

``python DJSW/results.py --list`` lists what ran, newest first or by ``--sort``.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from DJSW.arguments import TrainArguments
from DJSW.pipelines import DATASETS, PEOPLE
from DJSW.recipes import RECIPES, Recipe, flags_of, settings
from utils.cli import Parser, run_command
from utils.errors import UsageError, one_line
from utils.records.evaluation import EvaluationRecord, metric_values, read_evaluation, read_metrics
from utils.records.files import ROOT, find_folder, place_file, write_text
from utils.records.provenance import first_difference, flat
from utils.records.run import Run, read_run, require_same_run
from utils.records.typed import shown
from utils.report import tables
from utils.report.sweep_page import settings_text
from utils.report.tables import interval, number
from utils.statistics.comparison import mean_and_deviation

BEGIN, END = "<!-- by DJSW/results.py -->\n", "<!-- to here -->\n"
#: Who may do what with the images of a source, whose name comes first.
LICENSES = {
    "mnist": "MNIST: Y. LeCun and C. Cortes, Creative Commons Attribution-Share Alike 3.0.",
    "usps": "USPS: digits of the U.S. Postal Service, shared for research without a license.",
    "fashion": "Fashion-MNIST: Zalando SE, MIT license.",
    "svhn": "SVHN: Y. Netzer et al., for non-commercial use only.",
}
#: How to load a network from Python.
USE = """```python
from pathlib import Path

from DJSW.networks import build_model
from utils.records.checkpoint import load_checkpoint

checkpoint = load_checkpoint(Path("{file}"))
model, arguments = build_model("{user}", "{dataset}", checkpoint)
logits = model.eval()(images)  # (B, classes) of images (B, {channels}, {height}, {width}) in [0, 1]
```"""
#: Columns of the list of runs, and titles where these are others.
COLUMNS = (
    *("time", "user", "experiment", "status", "dataset", "best_epoch", "accuracy"),
    *("validation_loss", "seed", "settings", "device", "job", "commit"),
)
TITLES = {"time": "time (UTC)", "validation_loss": "val. loss"}


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
            Result(username, recipe, runs, _evaluations(runs, recipe))
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
    if RECIPES[recipe][dataset].teacher_weight:
        stem = f"{PEOPLE[username].model_name.lower()}_tuned"
        own = [f"{stem}_{seed}_checkpoint_best.pt" for seed in range(1, 6)]
        pairs["teachers"] = ([Path(each["file"]).name for each in run.get("teachers", [])], own)
    for k, session in enumerate(run["sessions"]):
        pairs[f"sessions.{k}.git.changed"] = session["git"] and session["git"]["changed"], False
    found, expected = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    if different := first_difference(found, expected):
        name, value, wanted = different
        raise UsageError(
            f"{path} cannot be published: {name} is {shown(value)}, expected {wanted} (train it "
            f"again by the recipe {recipe!r} without other flags, from committed code, or rename "
            "it)"
        )


def _evaluations(runs: Mapping[str, Run], recipe: str) -> dict[str, EvaluationRecord]:
    """Return the evaluations, which agree with runs and checkpoints, on one known test set.

    :raises UsageError: they do not, or it is another or of unknown source.
    """
    found: dict[str, EvaluationRecord] = {}
    for name, run in runs.items():
        path = ROOT / "reports" / recipe / f"{name}_metrics.json"
        record = found[name] = read_evaluation(path).record
        folder = ROOT / "weights" / PEOPLE[run["username"]].model_name
        require_same_run(folder / f"{name}_run.json", run, record)
        if record["session"]["git"] and record["session"]["git"]["changed"]:
            raise UsageError(
                f"{path} cannot be published: it was made by code that is not committed (evaluate "
                "the checkpoint again from committed code)"
            )
        data, first = record["dataset"], next(iter(found.values()))["dataset"]
        expected = {**first, "name": run["dataset"]["name"]}
        for key in ("name", "images_sha256", "labels_sha256", "source"):
            value = data.get(key, "not stated")  # the source, in earlier evaluations
            if value is None or (key != "source" and value != expected[key]):
                raise UsageError(
                    f"{path} cannot be published: dataset.{key} of its test set is {shown(value)}, "
                    f"expected {shown(expected.get(key) or 'known')} (evaluate all seeds again)"
                )
    return found


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
    width, height = entry.image_size[::-1]
    others = (name for name in DATASETS if name != person.dataset)
    unknown = f"{entry.source}: no license is stated in LICENSES of DJSW/results.py."
    license = LICENSES.get(entry.source, unknown)
    parts = [
        f"# {model['name']}: {username}'s network",
        f"{model['layers']}, {model['parameters']:,} parameters. It classifies "
        f"{'' if entry.names else 'the digits '}{', '.join(entry.classes.values())} of "
        f"{license.partition(':')[0]}, in {'color ' * (entry.channels > 1)}images "
        f"of {width} x {height} pixels, and takes any other image for one of these.",
        *(part for result in found for part in _recipe_section(result)),
        "## Use",
        USE.format(
            file=found[-1].published["checkpoint"]["file"],
            dataset=person.dataset,
            user=username,
            channels=entry.channels,
            height=height,
            width=width,
        ),
        "It is for comparisons and for teaching. Do not use it where an error has a cost, such as "
        "for amounts, addresses or grades: it has an answer, often a confident one, to any image, "
        "and it errs more often on images of other sources ([beyond the "
        "test set](../../reports/robustness/published_robustness.md)).",
        "## Data",
        f"{license} 90 % of the training images were trained on; the other 10 % "
        "chose the epoch and, of several seeds, the published one. "
        "[docs/recipes.md](../../docs/recipes.md) says what was known of the test images when the "
        "recipes were chosen.",
        "This page is written by `uv run DJSW/results.py`.",
    ]
    if any(path for name in others for path in folder.glob(f"*_{name}*_run.json")):
        parts[-1] += (
            " Other runs in this folder are those of `compare.py --everyone`, on "
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
        f"{true} predicted as {other} ({count})"
        for true, other, count, _ in tables.confused_pairs(evaluation)[:3]
    )
    seeds = sorted(each["settings"]["seed"] for each in result.runs.values())
    folder, clusters = PEOPLE[result.username].model_name, evaluation["clusters"]
    again = f"; `uv run DJSW/reproduce.py weights/{folder}/{result.name}_run.json` makes it again."
    if "teachers" in run:
        again = ". Git has one of its teachers; the tuned command makes all, with the same weights."
    over = f"95 % interval, over {clusters['count']} {clusters['kind']}"
    errors = f"{evaluation['images'] - evaluation['correct']} errors"
    page = f"reports/{result.recipe}/{result.name}_report.md"
    link = f" [The whole evaluation](../../{page})." if (ROOT / page).exists() else ""
    return [
        f"## Recipe {result.recipe}",
        f"`{best['checkpoint']}`: epoch {best['epoch']}, validation accuracy "
        f"{best['validation_accuracy']:.4f}. Test accuracy {result.accuracy} (mean ± standard "
        f"deviation), seed{'s' * (len(seeds) > 1)} {str(seeds)[1:-1]}.",
        f"Made by `{run['sessions'][0]['command']}`" + again,
        tables.describe_settings(run["settings"]) + ".",
        tables.markdown(("on the test set", "value", over), rows),
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


def list_runs(folders: Sequence[str], sort: str = "time", file: str | None = None) -> None:
    """Print a line for each record in the folders, newest first; name other files on stderr.

    :param sort: the column to sort by instead, numbers as numbers.
    :param file: a CSV to write, which has all settings, too.
    """
    rows, found = [], dict.fromkeys(find_folder(name, "--list") for name in folders)
    for path, record in read_records(found):
        row = list_row(record)
        if "reproduced" in path.parts:
            row["status"] = "reproduced"
        rows.append({shown(k): shown(v) if isinstance(v, str) else v for k, v in row.items()})
    if not rows:
        print("no records yet; DJSW/main.py writes one for each run")
        return
    _add_settings(rows)
    rows.sort(key=lambda row: [_sort_key(row[name]) for name in COLUMNS], reverse=True)
    if sort != "time":
        rows.sort(key=lambda row: _sort_key(row[sort]))
    if file is not None:
        write_text(place_file(file, "--csv"), tables.csv_text(rows))
    # What a laptop has in all rows would only make the lines longer.
    usual = {"device": "CPU"}
    columns = [n for n in COLUMNS if any(row[n] != usual.get(n) for row in rows)]
    lines = [[TITLES.get(name, name.replace("_", " ")) for name in columns]]
    for row in rows:
        row["time"] = row["time"][:16].replace("T", " ")
        row["settings"] = row["settings"] and one_line(row["settings"], 60)
        values = [row[name] for name in columns]
        lines.append([number(v) if v is None or isinstance(v, float) else str(v) for v in values])
    print("\n".join(tables.align(lines)))
    if any((row["commit"] or "").endswith("*") for row in rows):
        print("\n* with changes that were not committed; the record has them")


def read_records(folders: Iterable[Path]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield path and content of each record below the folders; name other files on stderr."""
    for folder in folders:
        for path in sorted([*folder.rglob("*_run.json"), *folder.rglob("*_metrics.json")]):
            read = read_run if path.name.endswith("_run.json") else read_metrics
            try:
                record = read(path)
            except UsageError as error:
                print(f"no record: {one_line(str(error))}", file=sys.stderr)
                continue
            yield path, record


def _sort_key(value: object) -> tuple[bool, list[str | float]]:
    """Return a key by which numbers in texts are compared as numbers, and None is the last."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)", str(value))
    return value is None, [float(part) if k % 2 else part for k, part in enumerate(parts)]


def list_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record by :data:`COLUMNS`, and all of a run's settings."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    sessions = record["sessions"] if "settings" in record else [record["session"]]
    session = sessions[-1]
    device, slurm, git = session["device"], session["slurm"], session["git"]
    changed = any((each["git"] or {}).get("changed") for each in sessions)
    status = record.get("status", "evaluated")
    row["status"] = {"finished": "trained", "running": "unfinished"}.get(status, status)
    row |= {"user": record["username"], "experiment": record["exp_name"]}
    row |= {"time": session["started"], "dataset": record["dataset"]["name"]}
    if "settings" in record:
        row |= {"seed": record["settings"].get("seed"), "settings": _own_settings(record)}
        row |= flat({"settings": record["settings"], "arguments": record["model"]["arguments"]})
    else:
        row["best_epoch"] = record["checkpoint"]["epoch"] or None
        row["accuracy"] = f"{number(record['metrics'].get('accuracy'))} test"
    if "results" in record:
        best, last = record["results"]["best"], record["results"]["last"]
        row["best_epoch"] = f"{best['epoch']} of {last['epoch']}"
        row["accuracy"] = f"{best['validation_accuracy']:.4f} validation"
        row["validation_loss"] = best["validation_loss"]
    ranks = len(device["ranks"])
    name = device["name"] if device["type"] == "cuda" else "CPU"
    row["device"] = f"{ranks} x {name}" if ranks > 1 else name
    row["job"] = slurm.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in slurm:
        row["job"] = f"{slurm['SLURM_ARRAY_JOB_ID']}_{slurm.get('SLURM_ARRAY_TASK_ID')}"
    row["commit"] = f"{git['commit'][:7]}{'*' * changed}" if git else None
    return row


def _add_settings(rows: Sequence[dict[str, Any]]) -> None:
    """Add arguments of networks that most of a person's runs do not have; make a text of all."""
    for username in {row["user"] for row in rows}:
        own = [row for row in rows if row["user"] == username and row["settings"] is not None]
        person = PEOPLE.get(username)
        by_data = (person.input_argument, person.output_argument) if person else ()
        for name in {name for row in own for name in row if name.startswith("arguments.")}:
            short = name.removeprefix("arguments.")
            usual = Counter(str(row[name]) for row in own if name in row).most_common(1)[0][0]
            for row in own:
                if short not in by_data and str(row.get(name, usual)) != usual:
                    row["settings"][short] = row[name]
        for row in own:
            row["settings"] = shown(settings_text(row["settings"])) or None


def _own_settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the recipe."""
    used = run["settings"]
    recipe = RECIPES.get(str(used.get("recipe")), {}).get(run["dataset"]["name"], Recipe())
    usual = {**asdict(recipe), "recipe": "standard", "seed": used.get("seed")}
    own = {name: value for name, value in used.items() if value != usual.get(name)}
    if "augmentation" in own:
        own["augmentation"] = flags_of(used)["augmentation"] or "another"
    return own


def parser() -> Parser:
    """Return the parser."""
    flags = Parser("Write the README's results and the model cards from the records.")
    add = flags.add_argument
    only = "only list the records below these folders, newest first; default: weights reports"
    add("--list", nargs="*", metavar="FOLDER", help=only)
    by = f"sort the list by {', '.join(COLUMNS)}"
    add("--sort", choices=COLUMNS, metavar="COLUMN", help=by)
    add("--csv", metavar="FILE", help="also write the list as CSV, with all settings")
    return flags


def command(args: argparse.Namespace) -> None:
    """Write what is out of date, or list the records."""
    if args.list is not None:
        list_runs(args.list or ["weights", "reports"], args.sort or "time", args.csv)
    elif args.sort or args.csv:
        raise UsageError("--sort and --csv are for the list of runs; give --list, too")
    else:
        write(pages())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
