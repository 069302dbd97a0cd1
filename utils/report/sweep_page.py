"""The page and the table of a sweep: settings ranked by validation loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from utils.errors import escaped
from utils.report.tables import csv_text, markdown, number, with_deviation


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep; the results are those of the epoch with the lowest validation loss.

    :ivar status: finished, pruned, failed, or running where the study is not complete.
    """

    trial: int
    name: str
    settings: dict[str, Any]
    seed: int
    fold: str | None
    status: str
    reason: str
    epoch: int | None
    loss: float | None
    accuracy: float | None
    seconds: float | None


@dataclass(frozen=True)
class RankedSettings:
    """Settings with their finished runs.

    :ivar mean: validation loss, over seeds and folds; ``error`` is its standard error, None for a
        single run.
    """

    settings: dict[str, Any]
    runs: list[SweepRun]
    mean: float
    error: float | None

    def record(self) -> dict[str, Any]:
        """Return what the sweep's JSON holds."""
        runs = [run.name for run in self.runs]
        return {"settings": self.settings, "mean": self.mean, "error": self.error, "runs": runs}


def rank_settings(runs: Sequence[SweepRun]) -> list[RankedSettings]:
    """Return the settings that have finished runs, the lowest mean validation loss first."""
    groups: dict[str, list[SweepRun]] = {}
    for run in runs:
        group = groups.setdefault(str(sorted(run.settings.items(), key=str)), [])
        known = {(other.seed, other.fold) for other in group}  # a search may draw settings twice
        if run.status == "finished" and (run.seed, run.fold) not in known:
            group.append(run)
    ranked = []
    for group in filter(None, groups.values()):
        losses = [run.loss for run in group if run.loss is not None]
        error = stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else None
        ranked.append(RankedSettings(group[0].settings, group, fmean(losses), error))
    return sorted(ranked, key=lambda each: each.mean)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings in one line: ``lr 0.001, batch_size 64``."""
    short = {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in settings.items()}
    return ", ".join(f"{name.removeprefix('set.')} {value}" for name, value in short.items())


def sweep_csv(runs: Sequence[SweepRun]) -> str:
    """Return a row for each run, the settings last."""
    own = [{k: v for k, v in vars(run).items() if k != "settings"} for run in runs]
    return csv_text([{**row, **run.settings} for row, run in zip(own, runs, strict=True)])


def sweep_page(
    exp_name: str,
    identity: Mapping[str, Any],
    runs: Sequence[SweepRun],
    ranked: Sequence[RankedSettings],
    importance: Mapping[str, float],
) -> str:
    """Return the page (Markdown)."""
    given = {k: v for k, v in identity.items() if v is not None and k not in ("folds", "seeds")}
    folds = "the usual validation images"
    if identity["folds"]:
        folds = identity["folds"].replace("/writers", "") + " folds"
        folds += " that share no writer" * identity["folds"].endswith("/writers")
    count = {s: sum(run.status == s for run in runs) for s in ("finished", "pruned", "fail")}
    rows = []
    for each in ranked[:30]:
        accuracies = [run.accuracy for run in each.runs if run.accuracy is not None]
        epochs = [run.epoch for run in each.runs if run.epoch is not None]
        seconds = [run.seconds for run in each.runs if run.seconds is not None]
        loss = with_deviation(each.mean, each.error)
        cells = (f"{fmean(epochs):.0f}", f"{fmean(seconds):.1f}" if seconds else "-")
        runs_of = str(len(each.runs))
        rows.append(
            (settings_text(each.settings), runs_of, loss, number(fmean(accuracies)), *cells)
        )
    header = ("settings", "runs", "validation loss", "accuracy", "epoch", "seconds")
    parts = [
        f"# Sweep {exp_name}",
        f"{settings_text(given)}; {folds}. Runs: {count['finished']} finished, {count['pruned']} "
        f"pruned, {count['fail']} failed. Ranked by the validation loss of the best epoch, mean ± "
        "standard error over seeds and folds. The test set was not read.",
        markdown(header, rows),
    ]
    if len(ranked) > len(rows):
        parts.append(f"{len(ranked) - len(rows)} more settings are in `{exp_name}_sweep.csv`.")
    if len(ranked) > 1:
        parts.append(_difference(*ranked[:2]))
    if importance:
        shares = (f"{name} {100 * share:.0f} %" for name, share in importance.items())
        parts.append(f"Share of the variance of the loss (fANOVA): {', '.join(shares)}.")
    failed = [f"- {run.name}: {escaped(run.reason)}" for run in runs if run.status == "fail"]
    if failed:
        parts.append("Failed:\n\n" + "\n".join(failed))
    parts.append(f"![{exp_name}]({exp_name}_sweep.png)")
    return "\n\n".join(parts) + "\n"


def _difference(first: RankedSettings, second: RankedSettings) -> str:
    """Return whether the best differs from the next beyond the standard error of the difference.

    Runs are paired by seed and fold: most of their variance is that between folds.
    """
    losses = [
        {(run.seed, run.fold): run.loss or 0.0 for run in each.runs} for each in (first, second)
    ]
    both = [losses[1][part] - losses[0][part] for part in losses[0] if part in losses[1]]
    if len(both) < 2:
        return "The best and the next have no two seeds or folds in common: repeat them with more."
    difference, error = fmean(both), stdev(both) / math.sqrt(len(both))
    verdict = "beyond" if difference > 2 * error else "within"
    return (
        f"The best is lower than the next by {difference:.4f} ± {error:.4f}, {verdict} two "
        "standard errors of the difference on the same seeds and folds."
    )
