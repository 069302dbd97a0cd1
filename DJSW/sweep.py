"""Train many runs at once: seeds, a grid of settings, or a search: ``python DJSW/sweep.py …``.

Seeds:   ``--username sigurd --exp_name smlp --output_dir weights/SMLP --seeds 1-5``
A grid:  ``--username waly --exp_name lr --output_dir reports/sweeps --grid lr=3e-4,1e-3 …``
Search:  ``--username waly --exp_name found --output_dir reports/sweeps --search recipe --folds 5``

The trials are an Optuna study, kept in the journal ``{exp_name}_sweep.journal``. Workers, one for
each core, take one trial after the other; those of several processes and nodes share the study. The
same command again resumes what was stopped or killed, and more seeds, values or trials are added.
Settings are compared by validation loss alone: a sweep never reads the test set.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the repository instead of DJSW/, whose modules would hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from DJSW.arguments import TrainArguments, add_flag
from DJSW.pipelines import dataset_of
from DJSW.recipes import FLAGS, SEARCHES, Recipe, settings
from utils import cli
from utils.distributed.environment import cores, require_single_process
from utils.engine.signals import EXIT_STATUS, stop_request
from utils.errors import Diverged, Pruned, RunError, Stopped, UsageError
from utils.records.files import file_lock, find_folder, relative_to_root, write_text
from utils.records.provenance import code_provenance, flat, write_json
from utils.records.run import read_run
from utils.records.run_files import RunFiles
from utils.records.typed import read_bytes, shown
from utils.report.sweep_page import (
    RankedSettings,
    SweepRun,
    rank_settings,
    settings_text,
    sweep_csv,
    sweep_page,
)

if TYPE_CHECKING:
    from optuna import Study, Trial

    from utils.engine.history import Row

FIELDS = {each.name: each for each in fields(TrainArguments)}
#: Flags of a training that a sweep gives to each of its runs as they are.
SHARED = [name for name in FIELDS if name not in ("seed", "fold", "set", "resume")]
#: Flags that a grid may vary.
GRID = ("recipe", *FLAGS, "patience")
#: A search looks whether to prune a run after each tenth of its epochs, from the middle on.
TENTHS = 10
#: Seconds after which a worker without a trial looks whether one has become free.
POLL_SECONDS = 0.5


PlannedRun = tuple[str, int, str | None]


@dataclass(frozen=True)
class Sweep:
    """What a command asks for.

    :ivar shared: flags that all runs have.
    :ivar grid: name -> values, of flags and, as ``set.NAME``, of the network's arguments.
    :ivar folds: parts of the training file to validate on in turn; 0 is the usual random tenth.
    """

    exp_name: str
    folder: Path
    shared: dict[str, Any]
    seeds: list[int]
    grid: dict[str, list[Any]]
    search: str | None
    trials: int
    folds: int
    jobs: int

    def path(self, ending: str) -> Path:
        """Return the path of a file of the sweep."""
        return self.folder / f"{self.exp_name}_sweep{ending}"

    def lock(self, name: str) -> Path:
        """Return the path of a lock file."""
        return self.folder / f".{self.exp_name}_sweep_{name}.lock"

    @property
    def dataset(self) -> str:
        """The digits that are trained on."""
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
        folds: list[str | None] = [f"{k + 1}/{self.folds}" for k in range(self.folds)]
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


def parser() -> cli.Parser:
    """Return the parser."""
    flags = cli.Parser("Train many runs: seeds, a grid of settings, or a search for a recipe.")
    for name in SHARED:
        add_flag(flags, FIELDS[name])
    add = flags.add_argument
    values = "such as 1-5 or 1,3,7; default 42"
    add("--seeds", type=cli.seed_list, default=[42], help=values)
    grid = f"values of a flag ({', '.join(GRID)}), each with each of the others"
    add("--grid", nargs="+", action="extend", default=[], metavar="NAME=V1,V2", help=grid)
    network = "values of an argument of the network; one value is for all runs"
    add("--set", action="append", default=[], metavar="NAME=V1,V2", help=network)
    search = "try the values of this entry of DJSW/recipes.py; a flag that is given stays as it is"
    add("--search", choices=SEARCHES, help=search)
    add("--trials", type=cli.positive_int, help="settings that a search tries; default 50")
    folds = "validate on each of K parts of the training file in turn"
    add("--folds", type=_folds, default=0, metavar="K", help=folds)
    jobs = "runs at the same time; default: the cores that this process may use"
    add("--jobs", type=cli.positive_int, default=cores(), help=jobs)
    add("--check", action="store_true", help="only check the command")
    return flags


def _folds(text: str) -> int:
    return int(cli.fold(f"1/{text}")[2:])


def sweep_of(args: argparse.Namespace) -> Sweep:
    """Return what the flags ask for, checked.

    :raises UsageError: they do not fit together, or a value is not one that the flag takes.
    """
    if args.search and (args.grid or any("," in each for each in args.set)):
        raise UsageError("--search and a grid of values exclude each other; give one of them")
    if args.trials and not args.search:
        raise UsageError("--trials needs --search; a grid has as many as its values give")
    grid: dict[str, list[Any]] = {}
    for text in args.grid:
        name, _, values = text.partition("=")
        if name not in GRID:
            raise UsageError(f"--grid: {text!r} is not NAME=V1,V2 of {', '.join(GRID)}")
        grid[name] = [_value(name, each) for each in _values(text, values, grid, name)]
    for text in args.set:
        name, _, values = text.partition("=")
        key = f"set.{name}"
        try:
            found = [cli.assignment(f"{name}={v}") for v in _values(text, values, grid, key)]
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"--set: {error}") from None
        grid[key] = [value for _, value in found]
    shared = {name: getattr(args, name) for name in SHARED if getattr(args, name) is not None}
    for name in grid.keys() & shared.keys() - {"recipe"}:
        raise UsageError(f"--{name} is given twice, also by --grid; give it once")
    folder = find_folder(args.output_dir, "--output_dir")
    sweep = Sweep(
        exp_name=args.exp_name,
        folder=folder,
        shared={**shared, "output_dir": str(folder)},
        seeds=args.seeds,
        grid=grid,
        search=args.search,
        trials=args.trials or 50,
        folds=args.folds,
        jobs=args.jobs,
    )
    for changed in [*_grid(grid)][:1000]:
        settings(sweep.arguments(sweep.exp_name, changed, 0, None), sweep.dataset)
    return sweep


def _values(text: str, values: str, grid: Mapping[str, Any], name: str) -> list[str]:
    found = values.split(",")
    if not all(found) or len(set(found)) < len(found) or name in grid:
        raise UsageError(f"{text!r} has an empty or doubled value or name; give each once")
    return found


def _value(name: str, text: str) -> Any:
    """Return the value of a flag, of the type that its field takes."""
    try:
        return FIELDS[name].metadata.get("type", str)(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--grid {name}: {error}") from None


def _grid(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def study_of(sweep: Sweep) -> "Study":
    """Open the study, and create it where there is none.

    :raises UsageError: Optuna is missing; or the journal is damaged, or of other settings.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UsageError("a sweep needs Optuna; start it with: uv run --extra sweep …") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = sweep.path(".journal")
    if journal.exists() and not journal.is_file():
        raise UsageError(f"{journal} is no file; give another --exp_name")
    with file_lock(sweep.lock("study")):
        try:
            backend = JournalFileBackend(str(journal), _JournalLock(sweep.lock("journal")))  # type: ignore[arg-type]
            study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                pruner=optuna.pruners.MedianPruner(n_warmup_steps=TENTHS // 2),
                study_name=sweep.exp_name,
                load_if_exists=True,
            )
            for trial in study.get_trials(deepcopy=False):
                plan_of(sweep, trial)
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise UsageError(
                f"{journal} is damaged: {shown(repr(error))} (give another --exp_name)"
            ) from None
        if not study.user_attrs:
            study.set_user_attr("identity", sweep.identity)
    before, here = (
        dict(flat(json.loads(json.dumps(each))))
        for each in (study.user_attrs["identity"], sweep.identity)
    )
    for name in before | here:
        if before.get(name) != here.get(name):
            raise UsageError(
                f"{journal} is of a sweep with {shown(name)} {shown(before.get(name))}, here it is "
                f"{here.get(name)}; give the same, or another --exp_name"
            )
    return study


class _JournalLock:
    """The lock of Optuna's journal: the system frees that of a process that is killed."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.held.enter_context(file_lock(self.path))
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
        for changed, (seed, fold) in product(_grid(sweep.grid), sweep.parts()):
            number = numbers.setdefault(json.dumps(changed, sort_keys=True), len(numbers) + 1)
            name = sweep.exp_name + f"_{number}" * any(map(len, sweep.grid.values()))
            plan = {"changed": changed, "seed": seed, "fold": fold}
            plan["name"] = f"{name}_{seed}{_suffix(fold)}"
            if _key(plan) not in known:
                RunFiles(sweep.run_folder, plan["name"]).require_new()
                new.append(create_trial(state=TrialState.RUNNING, user_attrs={"plan": plan}))
        study.add_trials(new)


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
        study.sampler = optuna.samplers.TPESampler(seed=len(trials), multivariate=True)
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
        trial.report(row["validation_loss"], TENTHS * len(losses) + tenth)
        if trial.should_prune():
            raise Pruned(f"pruned after epoch {row['epoch']}: the median of the others is better")

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

        while stop_request.signal is None:
            with ExitStack() as held:
                trial = take(sweep, study, held)
                if trial is None:
                    if _unfinished(sweep, study) == 0:
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
        number = stop_request.signal
        raise Stopped(f"stopped by {number}", EXIT_STATUS[number])


def _unfinished(sweep: Sweep, study: "Study") -> int:
    trials = study.get_trials(deepcopy=False)
    finished = sum(trial.state.is_finished() for trial in trials)
    return max(len(trials), sweep.trials if sweep.search else 0) - finished


def remove_files(sweep: Sweep, study: "Study") -> None:
    """Remove what of a search is not kept: all but records, histories and the best checkpoints."""
    if not sweep.search:
        return
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    values = [trial.value for trial in finished if trial.value is not None]
    for trial in finished:
        is_best = bool(values) and trial.value == min(values)
        for name, *_ in plan_of(sweep, trial)[1]:
            files = RunFiles(sweep.run_folder, name)
            kept = {files.record, files.history, *[files.best_checkpoint] * is_best}
            for path in set(files.existing()) - kept:
                path.unlink(missing_ok=True)
            shutil.rmtree(files.path("tensorboard"), ignore_errors=True)


def _progress(sweep: Sweep, study: "Study", number: int) -> str:
    """Return the line of a finished trial, with the best so far and the time left."""
    trials = study.get_trials(deepcopy=False)
    trial, left = trials[number], _unfinished(sweep, study)
    total = max(len(trials), sweep.trials if sweep.search else 0)
    changed, runs = plan_of(sweep, trial)
    outcomes = [t.user_attrs["outcome"]["seconds"] for t in trials if t.state.is_finished()]
    seconds = left * sum(outcomes) / len(outcomes) / min(sweep.jobs, max(left, 1))
    result = trial.user_attrs["outcome"]["reason"]
    if trial.value is not None:
        result = f"validation loss {trial.value:.4f}"
    best = min((t.value for t in trials if t.value is not None), default=math.nan)
    what = "; ".join(filter(None, [runs[0][0], settings_text(changed), result]))
    left_text = f"left {timedelta(seconds=round(seconds))}" if left else "complete"
    return f"{total - left:>{len(str(total))}}/{total}  {what}  (best {best:.4f}, {left_text})"


def work(sweep: Sweep, errors: Any) -> None:
    """Be a worker process; ``errors`` takes the exit status and the sentence, if it fails."""
    os.environ["TQDM_DISABLE"] = "1"
    stderr = io.StringIO()
    with redirect_stderr(stderr):
        status = cli.run_command(take_trials, argparse.Namespace(sweep=sweep))
    if status:
        errors.put((status, stderr.getvalue().strip().removeprefix("error: ")))
    sys.exit(status)


def run_workers(sweep: Sweep, count: int) -> None:
    """Run worker processes until all trials are finished.

    :raises Stopped: a signal came; it was passed on to the workers.
    :raises UsageError, RunError: a worker failed.
    """
    context = multiprocessing.get_context("spawn")  # torch is not fork-safe once it has threads
    errors = context.SimpleQueue()
    workers = [context.Process(target=work, args=(sweep, errors)) for _ in range(count)]
    for worker in workers:
        worker.start()
    passed_on = False
    while any(worker.is_alive() for worker in workers):
        for worker in workers:
            worker.join(0.05)
        if stop_request.signal and not passed_on:
            # A terminal sends SIGINT to the workers, too, and a second one would end them at once.
            name = "SIGTERM" if stop_request.signal == "SIGINT" else stop_request.signal
            for worker in filter(multiprocessing.Process.is_alive, workers):
                os.kill(worker.pid or 0, getattr(signal, name))
            passed_on = True
    if stop_request.signal:
        raise Stopped(
            f"stopped by {stop_request.signal}; states are saved: the same command continues",
            EXIT_STATUS[stop_request.signal],
        )
    if not errors.empty():
        status, sentence = errors.get()
        raise (UsageError if status == UsageError.exit_status else RunError)(sentence)


def sweep_runs(sweep: Sweep, study: "Study") -> list[SweepRun]:
    """Return what is known of each run, from the journal and the runs' records."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        changed, runs = plan_of(sweep, trial)
        finished = trial.state.name == "COMPLETE"
        for name, seed, fold in runs:
            path = RunFiles(sweep.run_folder, name).record
            record = read_run(path) if path.exists() else None
            if finished and (record is None or record["status"] != "finished"):
                raise UsageError(f"{path} is not of a finished run, which the journal says it is")
            best = record.get("results", {}).get("best") if record else None
            found.append(
                SweepRun(
                    trial=trial.number,
                    name=name,
                    settings=dict(flat(changed)),
                    seed=seed,
                    fold=fold,
                    status="finished" if finished else trial.state.name.lower(),
                    reason=trial.user_attrs.get("outcome", {}).get("reason", ""),
                    epoch=best["epoch"] if best else None,
                    loss=best["validation_loss"] if best else None,
                    accuracy=best["validation_accuracy"] if best else None,
                    seconds=trial.user_attrs.get("outcome", {}).get("seconds"),
                )
            )
    return found


def save(sweep: Sweep, study: "Study") -> None:
    """Write page, tables and pictures of a complete study, and print the page."""
    from utils.report.figures import save_sweep

    runs = sweep_runs(sweep, study)
    ranked = rank_settings(runs)
    if not ranked:
        raise RunError(f"no trial of {sweep.exp_name!r} finished: {runs[0].reason}")
    importance = _importance(sweep, study)
    curves = [[_history(sweep, run.name) for run in each.runs] for each in ranked[:5]]
    page = sweep_page(sweep.exp_name, sweep.identity, runs, ranked, importance)
    page += f"\n## Use the best\n\n{_how_to_use(sweep, ranked[0])}\n"
    save_sweep(sweep.path(".png"), sweep.exp_name, runs, ranked, importance, curves)
    write_text(sweep.path(".csv"), sweep_csv(runs))
    write_text(sweep.path(".md"), page)
    write_json(
        sweep.path(".json"),
        {
            "exp_name": sweep.exp_name,
            "identity": sweep.identity,
            "settings": [each.record() for each in ranked],
            "importance": importance,
            "runs": [vars(run) for run in runs],
            "session": code_provenance(),
        },
    )
    print(f"{page}\npage        {sweep.path('.md')}")


def _importance(sweep: Sweep, study: "Study") -> dict[str, float]:
    """Return how much of the variance of the results each setting of a search explains."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not sweep.search or len(complete) < 10 or len({trial.value for trial in complete}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _history(sweep: Sweep, name: str) -> list[float]:
    """Return the validation loss of each epoch of a run."""
    path = RunFiles(sweep.run_folder, name).history
    try:
        rows = csv.DictReader(read_bytes(path).decode().splitlines())
        return [float(row["validation_loss"]) for row in rows]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UsageError(f"{path} is not a valid history: {shown(error)}") from None


def _how_to_use(sweep: Sweep, best: RankedSettings) -> str:
    """Return the best settings as an entry for the table of recipes, and as a command."""
    changed = {name: value for name, value in best.settings.items() if value is not None}
    args = sweep.arguments(sweep.exp_name, changed, 42, None)
    used, usual = settings(args, sweep.dataset), Recipe()
    fields = [
        f"{name}={getattr(used, name)!r}"
        for name in vars(usual)
        if getattr(used, name) != getattr(usual, name)
    ]
    shared = {**sweep.shared, **{k: v for k, v in changed.items() if not k.startswith("set.")}}
    shared |= {"output_dir": relative_to_root(sweep.folder)}
    flags = " ".join(
        f"--{name} {value}" for name, value in shared.items() if value != FIELDS[name].default
    )
    network = "".join(f" --set {k[4:]}={v}" for k, v in changed.items() if k.startswith("set."))
    return (
        f'```python\n"{sweep.exp_name}": {{"{sweep.dataset}": Recipe({", ".join(fields)})}},\n```\n'
        f"\n```bash\nuv run DJSW/main.py --train {flags}{network}\n```"
    )


def command(args: argparse.Namespace) -> None:
    """Run the trials that are not finished, then write the page.

    :raises UsageError: a flag is wrong, or the study is of other settings.
    :raises Stopped: a signal came.
    """
    require_single_process()
    sweep = sweep_of(args)
    if args.check:
        print("checked     this command would run")
        return
    with stop_request.watch():
        study = study_of(sweep)
        if sweep.search:
            sweep.run_folder.mkdir(exist_ok=True)
        else:
            add_trials(sweep, study)
        left = _unfinished(sweep, study)
        print(f"sweep       {sweep.path('.journal')}: {left} trials to do", flush=True)
        if left:
            run_workers(sweep, min(sweep.jobs, left))
        left = _unfinished(sweep, study)
        if left:
            raise RunError(f"{left} trials are not finished: their workers died; run it again")
        save(sweep, study)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return cli.run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
