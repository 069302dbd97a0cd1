"""A training on the disk: the files that it owns, its state, and how it is resumed."""

import csv
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from utils import ranks
from utils.adam import Adam
from utils.checkpoint import (
    cpu_weights,
    load_checkpoint,
    read_plain,
    save_checkpoint,
    weights_sha256,
    write_plain,
)
from utils.events import EventFolder
from utils.failures import RunError, Stopped, UsageError
from utils.files import naming, recorded, writing
from utils.lock import locked
from utils.progress import COLUMNS, Progress, Row
from utils.record import RECORD_ONLY, flat, now, ran_on, spent, write_json
from utils.signals import EXIT_STATUS

STATE_FORMAT = "djsw-state-5"
#: A checkpoint is kept of every so many epochs, besides the best and the last.
CHECKPOINT_EVERY = 10
#: While epochs are finished the record is written anew after so many seconds.
RECORD_SECONDS = 10
#: The endings of the files that a training owns, after ``{exp_name}_``.
OWNED = r"(resume\.pt|run\.json|history\.csv|curves\.png|checkpoint_(best|epoch_\d+)\.pt)"
#: What may differ between a training and its resumption: where things are, and that it goes on.
MAY_CHANGE = {
    "username",
    "settings.num_epochs",
    "dataset.file",
    "starting_weights.file",
}


@dataclass(kw_only=True)
class TrainingRun(Progress):
    """The training called ``exp_name`` in ``folder``.

    The state is written last of all that an epoch writes, and all else can be made from it: a
    process that dies at any line is resumed as if it had not.

    :ivar about: plain values that say what is trained; they go into the record and each checkpoint.
    :ivar facts: of this process (command, versions, device, …).
    :ivar sessions: the facts of each process that worked on it, and how it ended.
    :ivar best_weights: of the best epoch, on the CPU.
    """

    folder: Path
    exp_name: str
    about: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    best_weights: Mapping[str, Tensor] = field(default_factory=dict)
    _begun: bool = False
    _recorded: float = 0.0

    def file(self, ending: str) -> Path:
        """The absolute path of the file with this ending."""
        return self.folder / f"{self.exp_name}_{ending}"

    @property
    def state_file(self) -> Path:
        """What ``--resume`` goes on from."""
        return self.file("resume.pt")

    @property
    def record_file(self) -> Path:
        """What ran, and with what result."""
        return self.file("run.json")

    @property
    def history_file(self) -> Path:
        """A line per epoch."""
        return self.file("history.csv")

    @property
    def best_file(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.file("checkpoint_best.pt")

    def require_new(self) -> None:
        """Refuse a name that was trained before; with a state, offer to resume it.

        :raises UsageError: files of that name are there.
        """
        existing = self._existing()
        if self.state_file in existing:
            raise self._taken(self.state_file, ", or --resume to go on with it")
        if existing:
            raise self._taken(existing[0])

    def _existing(self) -> list[Path]:
        owned = re.compile(re.escape(f"{self.exp_name}_") + OWNED)
        return sorted(path for path in self.folder.iterdir() if owned.fullmatch(path.name))

    def _taken(self, path: Path, remedy: str = "") -> UsageError:
        return UsageError(
            f"{self.exp_name!r} was trained before: {path} exists; give another --exp_name{remedy}"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training under the same name for the time of a block.

        Of an error that ends the block (a rank is lost, the disk is full) the record keeps a note.
        """
        refusal = (
            f"{self.exp_name!r} is being trained by another process now; wait for it, or give "
            "another --exp_name"
        )
        with locked(self.file("resume.lock"), refusal):
            try:
                yield
            except Exception as error:
                if self._begun and "ended_by" not in self.sessions[-1]:
                    reason = str(error).replace(str(self.folder), recorded(self.folder))
                    self._end_session(reason)
                    with suppress(OSError):
                        self._save_record("failed", reason=reason)
                raise

    def begin(
        self,
        model: nn.Module,
        optimizer: Adam,
        num_epochs: int,
        patience: int | None,
        *,
        resume: bool,
    ) -> None:
        """Claim the name (of several processes one gets it), or take up the state that is there.

        :raises UsageError: the name is taken, or was trained otherwise or for longer.
        """
        self._started = time.perf_counter()
        if resume and self.state_file.exists():
            self._take_up(model, optimizer)
        else:
            self.require_new()
            try:
                self._save_state(model, optimizer, exclusive=True)
            except FileExistsError:
                raise self._taken(self.state_file) from None
        begun = len(self.history) + (len(self.losses) > 0)
        if begun > num_epochs:
            raise UsageError(
                f"{self.exp_name!r} has {begun} epochs already, done or begun; give --num_epochs "
                f"{begun} or more to --resume it, or another --exp_name"
            )
        if self.is_over(num_epochs, patience) and self._is_finished():
            self.finished = True
            return
        for session in self.sessions[-1:]:
            session.setdefault("ended_by", "unknown: killed, or its machine was lost")
        known: dict[str, Any] = {}
        for session in self.sessions:
            known |= {name: session[name] for name in RECORD_ONLY if name in session}
        change = self._change(known.get("source", {}))
        if change:
            print(f"note        {change}")
        begin = {"first_epoch": len(self.history) + 1, "first_step": len(self.losses) + 1}
        new = {  # the long ones once, until they change
            name: value
            for name, value in self.facts.items()
            if name not in known or known[name] != value
        }
        self.sessions.append({**new, **begin, "change": change})
        self._begun = True
        self._restore_files()

    def _change(self, then: Mapping[str, str]) -> str | None:
        """What differs between this session and the one before, if that may decide the bits."""
        if not self.sessions:
            return None
        before, changes = self.sessions[-1], []
        if ran_on(before) != ran_on(self.facts):
            changes.append(f"on {ran_on(self.facts)}, after {ran_on(before)}")
        now = self.facts["source"]
        if then and then != now:
            names = sorted(name for name in {**then, **now} if then.get(name) != now.get(name))
            changes.append(f"with changed code in {', '.join(names)}")
        if not changes:
            return None
        return f"{' and '.join(changes)}: perhaps no longer the bits of a run in one go"

    def _is_finished(self) -> bool:
        if not self.record_file.exists():
            return False
        record = json.loads(self.record_file.read_text(encoding="utf-8"))
        return bool(record["status"] == "finished")

    def _restore_files(self) -> None:
        """Have the files say what the state says: a process that died may have been ahead of it."""
        name = re.escape(f".{self.exp_name}_") + OWNED + r"\.[0-9a-f]{8}\.tmp"
        for path in self.folder.iterdir():
            if re.fullmatch(name, path.name):
                path.unlink(missing_ok=True)
        self._save_record("running")
        with (
            writing(self.history_file) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            lines = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            lines.writeheader()
            lines.writerows(self.history)
        self.events = EventFolder(self.file("tensorboard"))
        for row in self.history:
            self.events.add(row)
        if self.history and (
            not self.best_file.exists()
            or load_checkpoint(self.best_file).about["epoch"] != self.best["epoch"]
        ):
            self._save_checkpoint(self.best_file, self.best_weights, self.best)

    def save_epoch(self, row: Row, model: nn.Module, optimizer: Adam) -> None:
        """Keep a finished epoch: its checkpoints, its line of the history, the state."""
        super().save_epoch(row, model, optimizer)
        with optimizer.averaged():
            weights = cpu_weights(model)
        if self.best is row:
            self.best_weights = weights
            self._save_checkpoint(self.best_file, weights, row)
        if row["epoch"] % CHECKPOINT_EVERY == 0:
            self._save_checkpoint(self._epoch_file(row["epoch"]), weights, row)
        with (
            naming(self.history_file),
            self.history_file.open("a", newline="", encoding="utf-8") as file,
        ):
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        self._save_state(model, optimizer)
        self.events.add(row)
        if time.perf_counter() - self._recorded > RECORD_SECONDS:
            self._save_record("running")

    def save_step(
        self,
        losses: Tensor,
        seconds: float,
        model: nn.Module,
        optimizer: Adam,
        signal: str | None = None,
    ) -> None:
        """Keep the epoch under way as it stands after ``len(losses)`` steps.

        :raises Stopped: a ``signal`` was the reason.
        """
        self.losses, self.seconds = losses.cpu(), seconds
        if signal is None:
            self._save_state(model, optimizer)
            return
        self._end_session(signal)
        self._save_state(model, optimizer)
        self._save_record("stopped", reason=signal)
        ranks.wait()
        raise Stopped(
            f"stopped by {signal} in epoch {len(self.history) + 1} after {len(self.losses)} steps; "
            f"{self.state_file} is saved: --resume goes on",
            EXIT_STATUS[signal],
        )

    def failed(self, reason: str) -> RunError:
        """The error to raise; a name under which no epoch was finished is free again."""
        error = self._fail(reason)
        ranks.wait()
        return error

    def _fail(self, reason: str) -> RunError:
        if self.history:
            self._end_session(reason)
            self._save_record("failed", reason=reason)
            return RunError(f"{reason}; the checkpoints of earlier epochs are kept")
        self._begun = False
        for path in sorted(self._existing(), key=lambda path: path == self.state_file):
            path.unlink()  # the state last: with it a name can still be resumed
        self.events.remove()
        return RunError(reason)

    def finish(self, model: nn.Module, optimizer: Adam) -> None:
        """Keep the last epoch, write the record with the results, and draw the curves."""
        if self.finished:
            return
        from utils.figures import save_curves  # matplotlib: half a second

        last = self.history[-1]
        if not self._epoch_file(last["epoch"]).exists():
            with optimizer.averaged():
                weights = cpu_weights(model)
            self._save_checkpoint(self._epoch_file(last["epoch"]), weights, last)
        self._end_session("finished")
        self._save_record(
            "finished",
            results={
                "best": self._result(self.best, self.best_file),
                "last": self._result(last, self._epoch_file(last["epoch"])),
                "training_seconds": sum(row["seconds"] for row in self.history),
                "gpu_hours": sum(session["gpu_hours"] for session in self.sessions),
            },
        )
        title = f"{self.exp_name}: {self.about['model']['name']} on {self.about['dataset']['name']}"
        save_curves(self.file("curves.png"), title, self.history)

    def _epoch_file(self, epoch: int) -> Path:
        return self.file(f"checkpoint_epoch_{epoch}.pt")

    def _save_checkpoint(self, path: Path, weights: Mapping[str, Tensor], row: Row) -> None:
        session = _short(self.sessions[-1])
        save_checkpoint(
            path, weights, {**self.about, "epoch": row["epoch"], "metrics": row, **session}
        )

    @staticmethod
    def _result(row: Row, path: Path) -> dict[str, Any]:
        weights = load_checkpoint(path).weights
        return {**row, "checkpoint": path.name, "weights_sha256": weights_sha256(weights)}

    def _end_session(self, reason: str) -> None:
        self.sessions[-1] |= {"ended_by": reason, "ended": now()}

    def _measure_session(self) -> None:
        for session in self.sessions[-1:]:
            session |= spent(time.perf_counter() - self._started, self.facts)

    def _save_record(self, status: str, **more: Any) -> None:
        self._measure_session()
        self._recorded = time.perf_counter()
        if self.history and "results" not in more:
            more["results"] = {"best": self.best, "last": self.history[-1]}
        write_json(
            self.record_file,
            {**self.about, "status": status, **more, "sessions": self.sessions},
        )

    def _save_state(self, model: nn.Module, optimizer: Adam, *, exclusive: bool = False) -> None:
        self._measure_session()
        state = {
            "format": STATE_FORMAT,
            "about": dict(self.about),
            "weights": cpu_weights(model),
            "optimizer": optimizer.state_dict(),
            "best_weights": self.best_weights,
            "history": self.history,
            "losses": self.losses.clone(),
            "seconds": self.seconds,
            "sessions": [_short(session) for session in self.sessions],
        }
        write_plain(self.state_file, state, exclusive=exclusive)

    def _take_up(self, model: nn.Module, optimizer: Adam) -> None:
        state = read_plain(self.state_file)
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
            raise UsageError(
                f"{self.state_file} is no state that this version can resume ({STATE_FORMAT}); "
                "give another --exp_name"
            )
        before, here = dict(flat(state["about"])), dict(flat(self.about))
        may_change = MAY_CHANGE
        if here.get("settings.schedule") != "constant":
            may_change = MAY_CHANGE - {"settings.num_epochs"}  # which decides every learning rate
        for name in before | here:
            if name not in may_change and before.get(name) != here.get(name):
                raise UsageError(
                    f"{self.exp_name!r} was trained with {name} {before.get(name)}, not "
                    f"{here.get(name)}; give the same to --resume it, or another --exp_name"
                )
        model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        for name in ("best_weights", "history", "losses", "seconds", "sessions"):
            setattr(self, name, state[name])
        if self.record_file.exists():
            # It has every session from its begin, and how it ended where the state was not saved.
            record = json.loads(self.record_file.read_text(encoding="utf-8"))["sessions"]
            known = [each | mine for each, mine in zip(record, self.sessions, strict=False)]
            self.sessions = known + record[len(known) :]


def _short(session: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint and the state keep of a session: the record has all of it."""
    return {name: value for name, value in session.items() if name not in RECORD_ONLY}
