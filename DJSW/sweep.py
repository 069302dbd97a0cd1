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
import io
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import fields
from itertools import cycle, islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from DJSW.arguments import TrainArguments, add_flag
from DJSW.pipelines import PEOPLE, open_split
from DJSW.recipes import FLAGS, SEARCHES, Recipe, settings
from DJSW.study import Sweep, add_trials, combinations, plan_of, study_of, take_trials, unfinished
from utils import cli
from utils.distributed.environment import cores, require_single_process
from utils.engine.history import read_history
from utils.engine.signals import EXIT_STATUS, stop_request
from utils.errors import RunError, Stopped, UsageError
from utils.records.files import find_folder, relative_to_root, write_text
from utils.records.provenance import code_provenance, flat, write_json
from utils.records.run import read_run
from utils.records.run_files import RunFiles
from utils.report.sweep_page import (
    RankedSettings,
    SweepRun,
    rank_settings,
    sweep_csv,
    sweep_page,
)

if TYPE_CHECKING:
    from optuna import Study


FIELDS = {each.name: each for each in fields(TrainArguments)}
#: Flags of training that a sweep gives to each of its runs as they are.
SHARED = [name for name in FIELDS if name not in ("seed", "fold", "set", "resume")]
#: Flags that a grid may vary.
GRID = ("recipe", *FLAGS)


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
    folds = "validate on each of N parts of the training file in turn, as main.py --fold"
    add("--folds", type=_folds, metavar="N[/writers]", help=folds)
    jobs = "runs at the same time; default: the cores that this process may use"
    add("--jobs", type=cli.positive_int, default=cores(), help=jobs)
    add("--check", action="store_true", help="only check the command")
    return flags


def _folds(text: str) -> str:
    try:
        return cli.fold(f"1/{text}")[2:]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not N or N/writers, such as 5; N is from 2 to 100"
        ) from None


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
    for name, values in grid.items():
        if len(set(map(repr, values))) < len(values):
            raise UsageError(f"{name.removeprefix('set.')}: a value is given twice; give each once")
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
    for changed in islice(combinations(grid), 1000):
        settings(sweep.arguments(sweep.exp_name, changed, 0, None), sweep.dataset)
    if args.folds and args.folds.endswith("/writers"):
        from utils.engine.seeds import split_rows

        data = open_split(sweep.dataset, train=True)
        split_rows(len(data), f"1/{args.folds}", data.writers)
    networks = {name: values for name, values in grid.items() if name.startswith("set.")}
    if networks:
        from DJSW.networks import build_model, try_model

        for changed in islice(combinations(networks), 100):
            arguments = {name[4:]: value for name, value in changed.items()}
            model, _ = build_model(args.username, sweep.dataset, changes=arguments)
            try_model(model, args.username, sweep.dataset, 2, train=True)
    return sweep


def _values(text: str, values: str, grid: Mapping[str, Any], name: str) -> list[str]:
    found = values.split(",")
    if not all(found) or len(set(found)) < len(found) or name in grid:
        raise UsageError(f"{text!r} lacks a value, or has one or a name twice; give NAME=V1,V2")
    return found


def _value(name: str, text: str) -> Any:
    """Return the value of a flag, of the type that its field takes."""
    try:
        return FIELDS[name].metadata.get("type", str)(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--grid {name}: {error}") from None


def work(sweep: Sweep, errors: Connection, core: int | None) -> None:
    """Be a worker process; ``errors`` takes the exit status and the sentence, if it fails."""
    os.environ["TQDM_DISABLE"] = "1"
    if core is not None:
        os.sched_setaffinity(0, {core})
    stderr = io.StringIO()
    with redirect_stderr(stderr):
        status = cli.run_command(take_trials, argparse.Namespace(sweep=sweep))
    if status:
        with suppress(OSError):  # the parent was interrupted twice
            errors.send((status, stderr.getvalue().strip().removeprefix("error: ")))
    sys.exit(status)


def run_workers(sweep: Sweep, count: int) -> None:
    """Run worker processes until all trials are finished.

    :raises Stopped: a signal came; it was passed on to the workers.
    :raises UsageError, RunError: a worker failed.
    """
    context = multiprocessing.get_context("spawn")  # torch is not fork-safe once it has threads
    if hasattr(signal, "pthread_sigmask"):
        # Slurm sends SIGUSR1 to every process of a step. Python's tracker of semaphores, which
        # inherits what is blocked here, would end by it with a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    failed, errors = context.Pipe(duplex=False)
    own: list[int | None] = [None] * count
    if hasattr(os, "sched_getaffinity") and count >= cores():
        # A core each: without it two tuned runs of WMLP on two cores took 1.2 to 1.6 times as long,
        # since each has a thread that augments.
        own = [*islice(cycle(sorted(os.sched_getaffinity(0))), count)]
    workers = [context.Process(target=work, args=(sweep, errors, core)) for core in own]
    for worker in workers:
        worker.start()
    passed_on = False
    while any(worker.is_alive() for worker in workers):
        for worker in workers:
            worker.join(0.05)
        if stop_request.signal and not passed_on:
            # A terminal sends SIGINT to the workers, too, and a second one would end them at once.
            name = "SIGTERM" if stop_request.signal == "SIGINT" else stop_request.signal
            print("stopping    each run after its step, with its state saved", flush=True)
            for worker in filter(multiprocessing.Process.is_alive, workers):
                os.kill(worker.pid or 0, getattr(signal, name))
            passed_on = True
    if stop_request.signal:
        raise Stopped(
            f"stopped by {stop_request.signal}; states are saved: the same command continues",
            EXIT_STATUS[stop_request.signal],
        )
    if failed.poll():
        status, sentence = failed.recv()
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
            if record is None and trial.state.name == "PRUNED":
                continue  # in an earlier fold or seed
            results: dict[str, Any] = dict(record.get("results", {})) if record else {}
            best = results.get("best")
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
                    seconds=results.get("training_seconds"),
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
    curves = [[_losses(sweep, run.name) for run in each.runs] for each in ranked[:5]]
    session = code_provenance()
    page = sweep_page(sweep.exp_name, sweep.identity, runs, ranked, importance)
    if ranked[0].settings:
        page += f"\n## Use the best\n\n{_how_to_use(sweep, ranked[0])}\n"
    page += f"\nMade by `{session['command']}`\n"
    network = PEOPLE[sweep.shared["username"]].model_name
    title = f"{network} on {sweep.dataset}"
    save_sweep(sweep.path(".png"), title, runs, ranked, importance, curves)
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
            "session": session,
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


def _losses(sweep: Sweep, name: str) -> list[float]:
    """Return the validation loss of each epoch of a run."""
    rows = read_history(RunFiles(sweep.run_folder, name).history)
    return [row["validation_loss"] for row in rows]


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
    shared |= {"teachers": " ".join(map(str, shared["teachers"]))} if "teachers" in shared else {}
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
        from DJSW.train import prepare_training

        changed, (seed, fold) = next(combinations(sweep.grid)), sweep.parts()[0]
        prepare_training(sweep.arguments(sweep.exp_name, changed, seed, fold))
        print("checked     this command would run")
        return
    with stop_request.watch():
        study = study_of(sweep)
        if sweep.search:
            sweep.run_folder.mkdir(exist_ok=True)
        else:
            add_trials(sweep, study)
        left = unfinished(sweep, study)
        if not left and sweep.path(".json").exists():
            print(f"finished    before: {sweep.path('.md')}")
            return
        print(f"sweep       {sweep.path('.journal')}, trials to do: {left}", flush=True)
        if left:
            run_workers(sweep, min(sweep.jobs, left))
        left = unfinished(sweep, study)
        if left:
            raise RunError(f"{left} trials are not finished: their workers died; run it again")
        save(sweep, study)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return cli.run_command(command, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
