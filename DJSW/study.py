"""The study of a sweep: trials in Optuna's journal, which workers take, run and tell."""

import argparse
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from DJSW.arguments import TrainArguments
from DJSW.pipelines import dataset_of
from DJSW.recipes import SEARCHES, settings
from utils.engine.signals import EXIT_STATUS, stop_request
from utils.errors import Diverged, Pruned, Stopped, UsageError
from utils.records.files import file_lock
from utils.records.provenance import first_difference
from utils.records.run_files import RunFiles
from utils.records.typed import shown
from utils.report.sweep_page import settings_text

if TYPE_CHECKING:
    from optuna import Study, Trial

    from utils.engine.history import Row

#: A search looks whether to prune a run after each tenth of its epochs, from the middle on.
TENTHS = 10
#: Seconds after which a worker without a trial looks whether one has become free.
POLL_SECONDS = 0.5
#: Trials that have come as far, before one is pruned.
OTHERS = 5
PlannedRun = tuple[str, int, str | None]


@dataclass(frozen=True)
class Sweep:
    """What a command asks for.

    :ivar shared: flags that all runs have.
    :ivar grid: name -> values, of flags and, as ``set.NAME``, of the network's arguments.
    :ivar folds: parts of the training file to validate on in turn, ``"5"`` or ``"5/writers"``;
        ``None`` is the usual random tenth.
    """

    exp_name: str
    folder: Path
    shared: dict[str, Any]
    seeds: list[int]
    grid: dict[str, list[Any]]
    search: str | None
    trials: int
    folds: str | None
    jobs: int

    def path(self, ending: str) -> Path:
        """Return the path of a file of the sweep."""
        return self.folder / f"{self.exp_name}_sweep{ending}"

    def lock(self, name: str) -> Path:
        """Return the path of a lock file."""
        return self.folder / f".{self.exp_name}_sweep_{name}.lock"

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.shared.get("dataset") or dataset_of(self.shared["username"])

    @property
    def run_folder(self) -> Path:
        """Where the runs are; those of a search, which are many, have a folder of their own."""
        return self.folder / f"{self.exp_name}_trials" if self.search else self.folder

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same when a study is continued."""
        shared = {name: value for name, value in self.shared.items() if value is not None}
        for name in ("exp_name", "output_dir", "device"):
            shared.pop(name, None)
        searched = {"seeds": self.seeds} if self.search else {}
        return {**shared, "search": self.search, "folds": self.folds, **searched}

    def parts(self) -> list[tuple[int, str | None]]:
        """Return each seed with each fold."""
        count = int(self.folds.split("/")[0]) if self.folds else 0
        folds: list[str | None] = [f"{k + 1}/{self.folds}" for k in range(count)]
        return [*product(self.seeds, folds or [None])]

    def arguments(
        self, name: str, changed: Mapping[str, Any], seed: int, fold: str | None
    ) -> TrainArguments:
        """Return the arguments of a run with some settings."""
        shared = {**self.shared, "exp_name": name, "output_dir": self.run_folder}
        flags = {key: value for key, value in changed.items() if not key.startswith("set.")}
        network = {key[4:]: value for key, value in changed.items() if key.startswith("set.")}
        same = {"seed": seed, "fold": fold, "set": network, "resume": True}
        return TrainArguments(**{**shared, **flags, **same})


def study_of(sweep: Sweep) -> "Study":
    """Open the study, and create it where there is none.

    :raises UsageError: Optuna is missing; or the journal is damaged, or of other settings.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UsageError(
            "a sweep needs Optuna: pip install optuna (on LUMI: docs/lumi.md)"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = sweep.path(".journal")
    if journal.exists() and not journal.is_file():
        raise UsageError(f"{journal} is no file; give another --exp_name")
    with file_lock(sweep.lock("study")):
        try:
            lock = _JournalLock(sweep.lock("journal"), journal)
            backend = JournalFileBackend(str(journal), lock)  # type: ignore[arg-type]
            storage = optuna.storages.JournalStorage(backend)
            if not optuna.get_all_study_names(storage):
                study = optuna.create_study(storage=storage, study_name=sweep.exp_name)
                study.set_user_attr("identity", sweep.identity)
            study = optuna.load_study(study_name=sweep.exp_name, storage=storage)
            _require_same(journal, study.user_attrs["identity"], sweep.identity)
            for trial in study.get_trials(deepcopy=False):
                plan_of(sweep, trial)
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise UsageError(
                f"{journal} is damaged: {shown(repr(error))} (give another --exp_name)"
            ) from None
    return study


def _require_same(journal: Path, recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Check that a study is of the same settings.

    :raises UsageError: it is not; the sentence names the first difference.
    """
    if different := first_difference(recorded, identity):
        name, before, here = different
        raise UsageError(
            f"{journal} is of a sweep with {shown(name)} {shown(before)}, here it is {here}; give "
            "the same, or another --exp_name"
        )


class _JournalLock:
    """The lock of Optuna's journal: the system frees that of a process that is killed."""

    def __init__(self, path: Path, journal: Path) -> None:
        self.path, self.journal, self.held = path, journal, ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock; then remove half a line that a writer left who died."""
        self.held.enter_context(file_lock(self.path))
        if self.journal.exists():
            content = self.journal.read_bytes()
            if content and not content.endswith(b"\n"):
                os.truncate(self.journal, content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Free it."""
        self.held.close()


class _Busy(UsageError):
    """Another worker has the trial."""


def plan_of(sweep: Sweep, trial: Any) -> tuple[dict[str, Any], list[PlannedRun]]:
    """Return what a trial changes, and its runs: (name, seed, fold).

    A trial of a grid is one run; one of a search has a run for each seed and fold.
    """
    if not sweep.search:
        plan = trial.user_attrs["plan"]
        return plan["changed"], [(plan["name"], plan["seed"], plan["fold"])]
    runs = []
    for seed, fold in sweep.parts():
        name = f"{sweep.exp_name}_{trial.number}" + f"_{seed}" * (len(sweep.seeds) > 1)
        runs.append((name + _suffix(fold), seed, fold))
    drawn = trial.params.items()
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in drawn}, runs


def _suffix(fold: str | None) -> str:
    return "" if fold is None else f"_fold{fold.partition('/')[0]}"


def add_trials(sweep: Sweep, study: "Study") -> None:
    """Add the trials of seeds and grid that the study does not have yet.

    :raises UsageError: there is a run of that name that is not of this study.
    """
    from optuna.trial import TrialState, create_trial

    with file_lock(sweep.lock("study")):
        plans = [trial.user_attrs["plan"] for trial in study.get_trials(deepcopy=False)]
        known = {_key(plan) for plan in plans}
        numbers: dict[str, int] = {}
        for plan in plans:
            numbers.setdefault(json.dumps(plan["changed"], sort_keys=True), len(numbers) + 1)
        new = []
        for changed, (seed, fold) in product(combinations(sweep.grid), sweep.parts()):
            number = numbers.setdefault(json.dumps(changed, sort_keys=True), len(numbers) + 1)
            name = sweep.exp_name + f"_{number}" * any(map(len, sweep.grid.values()))
            plan = {"changed": changed, "seed": seed, "fold": fold}
            plan["name"] = f"{name}_{seed}{_suffix(fold)}"
            if _key(plan) not in known:
                taken = RunFiles(sweep.run_folder, plan["name"]).existing()
                if taken:
                    raise UsageError(f"{taken[0]} exists already; give another --exp_name")
                new.append(create_trial(state=TrialState.RUNNING, user_attrs={"plan": plan}))
        study.add_trials(new)


def combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield each combination of the values."""
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _key(plan: Mapping[str, Any]) -> str:
    return json.dumps([plan["changed"], plan["seed"], plan["fold"]], sort_keys=True)


def take(sweep: Sweep, study: "Study", held: ExitStack) -> "Trial | None":
    """Return a trial that no worker has, with its lock in ``held``; a search adds one if need be.

    Trials are taken and told under the study's lock. One that is not finished and whose lock is
    free belongs to a worker that was stopped or killed, or to none yet.
    """
    import optuna

    with file_lock(sweep.lock("study")):
        trials = study.get_trials(deepcopy=False)
        for frozen in trials:
            if not frozen.state.is_finished() and _lock(sweep, frozen.number, held):
                return _draw(sweep, optuna.Trial(study, frozen._trial_id))
        if sweep.search is None or len(trials) >= sweep.trials:
            return None
        # By the number of trials: workers with one seed would all draw the same.
        study.sampler = optuna.samplers.TPESampler(
            seed=len(trials), multivariate=True, constant_liar=True
        )
        trial = study.ask()
        _lock(sweep, trial.number, held)
        return _draw(sweep, trial)


def _lock(sweep: Sweep, number: int, held: ExitStack) -> bool:
    try:
        held.enter_context(file_lock(sweep.lock(str(number)), _Busy()))
    except _Busy:
        return False
    return True


def _draw(sweep: Sweep, trial: "Trial") -> "Trial":
    """Draw what the trial does not have yet; flags that are given stay as they are."""
    for name, values in SEARCHES[sweep.search].items() if sweep.search else ():
        if name not in sweep.shared and isinstance(values, list):
            trial.suggest_categorical(name, values)
        elif name not in sweep.shared:
            trial.suggest_float(name, *values, log=True)
    return trial


def run_trial(sweep: Sweep, study: "Study", trial: "Trial") -> tuple[float | None, str]:
    """Train the runs of a trial; return the mean validation loss, or None and the reason.

    :raises Stopped: a signal came; the state is saved.
    """
    from DJSW.train import train_model

    changed, runs = plan_of(sweep, trial)
    losses: list[float] = []

    def prune(epochs: int, row: "Row") -> None:
        tenth = TENTHS * row["epoch"] // epochs
        if tenth == TENTHS * (row["epoch"] - 1) // epochs:
            return
        step, loss = TENTHS * len(losses) + tenth, fmean([*losses, row["validation_loss"]])
        trial.report(loss, step)
        # Optuna's own pruner compares the lowest loss so far, which is that of the easiest fold.
        others = [
            other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if other.state.is_finished() and step in other.intermediate_values
        ]
        enough = tenth >= TENTHS // 2 and len(others) >= OTHERS
        if enough and loss > median(others):
            where = f"in epoch {row['epoch']} of {runs[len(losses)][0]}"
            raise Pruned(f"pruned {where}: the median of the others is lower")

    try:
        for name, seed, fold in runs:
            args = sweep.arguments(name, changed, seed, fold)
            epochs = settings(args, sweep.dataset).num_epochs
            with redirect_stdout(io.StringIO()):
                result = train_model(args, partial(prune, epochs) if sweep.search else None)
            losses.append(result.history.best["validation_loss"])
    except (Pruned, Diverged) as error:
        return None, str(error)
    return sum(losses) / len(losses), ""


def take_trials(args: argparse.Namespace) -> None:
    """Take trials until all are finished.

    :raises Stopped: a signal came.
    """
    sweep: Sweep = args.sweep
    with stop_request.watch():
        study = study_of(sweep)
        from optuna.trial import TrialState

        import DJSW.train  # noqa: F401  # not part of the first trial's time

        while stop_request.signal is None:
            with ExitStack() as held:
                trial = take(sweep, study, held)
                if trial is None:
                    if unfinished(sweep, study) == 0:
                        return
                    time.sleep(POLL_SECONDS)  # the worker that has it may die
                    continue
                started = time.perf_counter()
                value, reason = run_trial(sweep, study, trial)
                seconds = time.perf_counter() - started
                with file_lock(sweep.lock("study")):
                    trial.set_user_attr("outcome", {"seconds": seconds, "reason": reason})
                    pruned = reason.startswith("pruned")
                    state = TrialState.PRUNED if pruned else TrialState.FAIL
                    study.tell(trial, value, TrialState.COMPLETE if value is not None else state)
                    held.close()
                    remove_files(sweep, study)
            print(_progress(sweep, study, trial.number), flush=True)
        name = stop_request.signal
        raise Stopped(f"stopped by {name}", EXIT_STATUS[name])


def unfinished(sweep: Sweep, study: "Study") -> int:
    """Return the number of trials that are to be done."""
    trials = study.get_trials(deepcopy=False)
    finished = sum(trial.state.is_finished() for trial in trials)
    return max(len(trials), sweep.trials if sweep.search else 0) - finished


def result_of(trial: Any) -> float:
    """Return the mean validation loss; infinity if not all runs finished.

    Optuna gives a pruned trial the value of the last epoch that it reported.
    """
    return float(trial.value) if trial.state.name == "COMPLETE" else math.inf


def remove_files(sweep: Sweep, study: "Study") -> None:
    """Remove what of a search is not kept: all but records, histories and the best checkpoints."""
    if not sweep.search:
        return
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    best = min(map(result_of, finished), default=math.inf)
    for trial in finished:
        is_best = result_of(trial) == best < math.inf
        for name, *_ in plan_of(sweep, trial)[1]:
            files = RunFiles(sweep.run_folder, name)
            kept = {files.record, files.history, *[files.best_checkpoint] * is_best}
            for path in set(files.existing()) - kept:
                path.unlink(missing_ok=True)
            shutil.rmtree(files.path("tensorboard"), ignore_errors=True)


def _progress(sweep: Sweep, study: "Study", number: int) -> str:
    """Return the line of a finished trial, with the best so far and the time left."""
    trials = study.get_trials(deepcopy=False)
    trial, left = trials[number], unfinished(sweep, study)
    total = max(len(trials), sweep.trials if sweep.search else 0)
    changed, runs = plan_of(sweep, trial)
    outcomes = [t.user_attrs["outcome"]["seconds"] for t in trials if t.state.is_finished()]
    seconds = left * sum(outcomes) / len(outcomes) / min(sweep.jobs, max(left, 1))
    value, best = result_of(trial), min(map(result_of, trials))
    result = trial.user_attrs["outcome"]["reason"] or f"validation loss {value:.4f}"
    what = "; ".join(filter(None, [runs[0][0], settings_text(changed), result]))
    left_text = f"left {timedelta(seconds=round(seconds))}" if left else "complete"
    return f"{total - left:>{len(str(total))}}/{total}  {what}  (best {best:.4f}, {left_text})"
