"""Write the README's results and the model cards from the records: ``python DJSW/results.py``.

Of each recipe the trainings of a person's network on that person's digits count that are named
``smlp_standard`` or, where there are several seeds, ``smlp_tuned_1`` and so on, and that were
evaluated under the same name. Published is, of several, the one with the lowest validation loss.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import utils.script  # noqa: F401

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from DJSW.pipelines import DATASETS, PEOPLE
from DJSW.recipes import RECIPES
from utils.command_line import Parser, run_command
from utils.comparison import mean_and_deviation
from utils.evaluations import read_evaluation
from utils.failures import UsageError
from utils.files import ROOT, writing
from utils.tables import confused, interval, markdown, number, settings_text, title

BEGIN, END = "<!-- by DJSW/results.py -->\n", "<!-- to here -->\n"
#: Of the README's table.
METRICS = ("balanced_accuracy", "precision", "recall", "f1", "mse", "mae", "r2")
#: Who may do what with the digits.
LICENCES = {
    "mnist": "MNIST: Y. LeCun and C. Cortes, Creative Commons Attribution-Share Alike 3.0.",
    "usps": "USPS: digits of the U.S. Postal Service, handed on for research without a licence.",
}


@dataclass(frozen=True)
class Result:
    """The trainings of one person's network by one recipe.

    :ivar records: of the trainings, by name; the published one first.
    :ivar evaluations: of these on the test set.
    """

    username: str
    recipe: str
    records: dict[str, dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """Of the published training."""
        return next(iter(self.records))

    @property
    def published(self) -> dict[str, Any]:
        """Its evaluation."""
        return self.evaluations[self.name]

    @property
    def accuracy(self) -> str:
        """Mean and standard deviation over the seeds."""
        values = [each["metrics"]["accuracy"] for each in self.evaluations.values()]
        mean, deviation = mean_and_deviation(values)
        return number(mean) if deviation is None else f"{number(mean)} ± {number(deviation)}"


def results() -> dict[str, list[Result]]:
    """What is published, by person and then by recipe, in the order of the tables.

    :raises UsageError: a training was not evaluated, is not finished, or is of another recipe than
        its name says.
    """
    found = {}
    for username in PEOPLE:
        trainings = {recipe: _records(username, recipe) for recipe in RECIPES}
        found[username] = [
            Result(username, recipe, records, {name: _evaluation(name) for name in records})
            for recipe, records in trainings.items()
            if records
        ]
    return found


def _records(username: str, recipe: str) -> dict[str, dict[str, Any]]:
    """Of a person's trainings by a recipe, by name; the one with the lowest loss first."""
    person = PEOPLE[username]
    stem = f"{person.model_name.lower()}_{recipe}"
    records = {}
    for path in (ROOT / "weights" / person.model_name).glob(f"{stem}*_run.json"):
        name = path.name.removesuffix("_run.json")
        if not re.fullmatch(rf"{stem}(_[0-9]+)?", name):
            continue
        record = json.loads(path.read_bytes())
        if (record["username"], record["dataset"]["name"]) == (username, person.dataset):
            _require_published(path, record, recipe)
            records[name] = record
    loss = {name: r["results"]["best"]["validation_loss"] for name, r in records.items()}
    return {name: records[name] for name in sorted(records, key=lambda name: (loss[name], name))}


def _evaluation(name: str) -> dict[str, Any]:
    path = ROOT / "reports" / f"{name}_metrics.json"
    if not path.exists():
        raise UsageError(f"{name} is not evaluated: there is no {path}")
    return read_evaluation(path).record


def _require_published(path: Path, record: Mapping[str, Any], recipe: str) -> None:
    trained_by = record["settings"]["recipe"]
    if record["status"] != "finished" or trained_by != recipe:
        raise UsageError(
            f"{path} is of a training by the recipe {trained_by!r} that is {record['status']}; "
            f"only finished ones by {recipe!r} have such a name: give it another"
        )


def table(found: Sequence[Result]) -> str:
    """The README's table."""
    rows = []
    for result in found:
        evaluation = result.published
        numbers = evaluation["metrics"] | evaluation["label_distance"]
        wrong = evaluation["images"] - evaluation["correct"]
        rows.append(
            (
                f"{evaluation['model']['name']}, `{evaluation['dataset']['name']}`",
                result.recipe,
                str(len(result.records)),
                result.accuracy,
                f"`{result.name}`",
                f"{number(numbers['accuracy'])} ({interval(evaluation['intervals']['accuracy'])})",
                f"{wrong} of {evaluation['images']}",
                *(number(numbers[name]) for name in METRICS),
            )
        )
    header = ("network, test set", "recipe", "seeds", "accuracy", "published", "of this: accuracy")
    return markdown((*header, "wrong", *map(title, METRICS)), rows)


def card(found: Sequence[Result]) -> str:
    """The model card of one network, from its results by each recipe."""
    first = found[0]
    person = PEOPLE[first.username]
    entry = DATASETS[person.dataset]
    model = first.published["model"]
    parts = [
        f"# {model['name']}: {first.username}'s network",
        f"{model['layers']}, {model['parameters']:,} parameters. It tells the digits "
        f"{', '.join(map(str, entry.digits))} of {entry.source.upper()} apart, in images of "
        f"{entry.image_size[1]} x {entry.image_size[0]} pixels, and takes any other image for one "
        "of these.",
    ]
    for result in found:
        parts += _recipe(result)
    parts += [
        "## Data",
        f"{LICENCES[entry.source]} 90 % of the training images were trained on, 10 % chose the "
        "epoch, and of several seeds the published one. [docs/recipes.md](../../docs/recipes.md) "
        "says what was known of the test images when the recipes were chosen.",
        "This page is made by `uv run DJSW/results.py`. Other checkpoints in this folder are those "
        f"of `compare.py --everyone`: seed 42, on {person.dataset} and, by their names, on others.",
    ]
    return "\n\n".join(parts) + "\n"


def _recipe(result: Result) -> list[str]:
    evaluation, record = result.published, result.records[result.name]
    best = record["results"]["best"]
    numbers: Mapping[str, float] = evaluation["metrics"] | evaluation["probabilities"]
    rows = [
        (title(name), number(value), interval(evaluation["intervals"][name]))
        for name, value in numbers.items()
    ]
    pairs = ", ".join(
        f"{digit} taken for {other} ({count})" for digit, other, count in confused(evaluation)[:3]
    )
    seeds = sorted(each["settings"]["seed"] for each in result.records.values())
    about = f"Test accuracy {result.accuracy}, seed{'s' * (len(seeds) > 1)} {str(seeds)[1:-1]}."
    return [
        f"## Recipe {result.recipe}",
        f"`{best['checkpoint']}`: epoch {best['epoch']}, validation accuracy "
        f"{best['validation_accuracy']:.4f}. {about}",
        f"```bash\n{record['sessions'][0]['command'].replace('python ', 'uv run ', 1)}\n```",
        settings_text(record["settings"]) + ".",
        markdown(("on the test set", "value", "95 % interval"), rows),
        f"Known errors, of {evaluation['images'] - evaluation['correct']}: {pairs}. "
        f"[All of the evaluation](../../reports/{result.name}_report.md).",
    ]


def pages() -> dict[Path, str]:
    """What the README and the model cards should hold, by file.

    :raises UsageError: the README lacks the marks, or as :func:`results`.
    """
    found = results()
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(f"{readme} lacks the lines {BEGIN.strip()} and {END.strip()}")
    rows = table([each for own in found.values() for each in own])
    written = {readme: f"{before}{begin}\n{rows}\n\n{end}{after}"}
    for username, own in found.items():
        if own:
            written[ROOT / "weights" / PEOPLE[username].model_name / "README.md"] = card(own)
    return written


def parser() -> Parser:
    """The flags."""
    return Parser("Write the README's results and the model cards anew from the records.")


def command(args: argparse.Namespace) -> None:
    """Write what is out of date."""
    write(pages())


def write(pages: Mapping[Path, str]) -> None:
    """Write what differs, and say so."""
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            with writing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(f"written     {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    return run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
