"""What a run keeps while it trains: its state, checkpoints, history and record; and how it resumes.

The state is written last of all that an epoch writes, and everything else can be made from it: a
process that is killed at any line resumes as if it had not been.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import Tensor, nn

from utils.distributed import collectives
from utils.engine.history import History, Row
from utils.engine.optimizer import Adam
from utils.engine.run_record import RunRecord
from utils.engine.signals import EXIT_STATUS, stop_request
from utils.engine.state import State, read_state, write_state
from utils.engine.trackers import log
from utils.errors import Diverged, PeerAborted, Pruned, Stopped, UsageError, escaped
from utils.records.checkpoint import cpu_weights, load_checkpoint, weights_sha256, write_checkpoint
from utils.records.files import relative_to_root
from utils.records.provenance import Provenance
from utils.records.run_files import RunFiles
from utils.records.typed import require_plain, shown

#: Seconds between saved states within an epoch: what a dying machine may cost.
SAVE_SECONDS: float = 120
#: Epochs between kept checkpoints, besides the best and the last.
CHECKPOINT_EVERY = 10
#: Steps between two checks of the losses on a CPU; on a GPU reading them would make it wait.
CHECK_LOSSES_EVERY = 100
#: Steps after which ranks exchange control codes; on GPUs it makes all of them wait.
EXCHANGE_EVERY = 32
#: The control code that asks for a saved state; others are 0 (nothing) and the number of a signal.
SAVE = 1


class Checkpointer:
    """Saves and resumes one run. Every rank has one; only rank 0's reads and writes files.

    :ivar history: the finished epochs.
    :ivar losses: of the epoch in progress up to the saved state: each step's, summed over images.
    :ivar seconds: that the epoch in progress took up to the saved state.
    """

    def __init__(
        self,
        files: RunFiles,
        metadata: Mapping[str, Any],
        provenance: Provenance,
        trackers: Sequence[Any] = (),
    ) -> None:
        self.files, self.metadata = files, metadata
        self.trackers: list[Any] = []  # that have started
        self._wanted_trackers = trackers
        self.history = History(files.history)
        self.record = RunRecord(files.record, metadata, provenance, self.history)
        self.losses, self.seconds = torch.zeros(0), 0.0
        self.was_finished = False
        self.best_weights: dict[str, Tensor] = {}
        self.writes = collectives.rank() == 0

    def start(self, model: nn.Module, optimizer: Adam, num_epochs: int, *, resume: bool) -> None:
        """Claim the name, or load the state that is there; every rank gets the state of rank 0.

        :raises UsageError: the name is taken, or the state is of another run or of more epochs.
        """
        self.model, self.optimizer = model, optimizer
        with collectives.rank_zero_first():
            if self.writes:
                _load_state(self) if resume and self.files.state.exists() else self._claim()
                self._start_session(num_epochs)
        _broadcast_state(self)

    def _claim(self) -> None:
        self.files.require_new()
        try:
            self.save_state(exclusive=True)
        except FileExistsError:
            raise self.files.taken(self.files.state) from None

    def _start_session(self, num_epochs: int) -> None:
        started = len(self.history) + (len(self.losses) > 0)
        if started > num_epochs:
            raise UsageError(
                f"{self.files.exp_name!r} has started {started} epochs already; give --num_epochs "
                f"{started} or more to --resume it, or another --exp_name"
            )
        rows = self.history.rows
        self.was_finished = len(rows) == num_epochs and self.record.status == "finished"
        self.files.remove_temporary()
        if self.was_finished:
            self.history.write_csv()
            _restore_checkpoint(self, self.files.epoch_checkpoint(len(rows)), rows[-1])
        else:
            self.record.start_session(len(rows) + 1, len(self.losses) + 1)
            self.record.save("running")
            self.history.write_csv()
            self.trackers += self._wanted_trackers
            log(self.trackers, "start", rows)
        if rows:
            _restore_checkpoint(self, self.files.best_checkpoint, self.history.best)

    def start_epoch(self, steps: int) -> Tensor:
        """Return the losses (steps,) of the epoch, zero from the first step that is not done.

        They are filled in by the loop, on the device of the model.
        """
        self._step_losses = self.optimizer.values.new_zeros(steps)
        if len(self.losses) > steps:
            raise UsageError(f"{self.files.state} is damaged: an epoch has {steps} steps")
        self._step_losses[: len(self.losses)] = self.losses
        self._saved = time.perf_counter()
        self._epoch_started = self._saved - self.seconds
        return self._step_losses

    def after_step(self, step: int) -> None:
        """Check the losses, save the state, stop: whatever is due after step ``step`` (from 0).

        :raises Diverged, Stopped: a loss is not finite; a signal came, and the state is saved.
        """
        losses = self._step_losses
        if step % CHECK_LOSSES_EVERY == CHECK_LOSSES_EVERY - 1 and losses.is_cpu:
            require_finite(losses[: step + 1], len(self.history) + 1)
        if step % EXCHANGE_EVERY and collectives.world_size() > 1:
            return
        now = time.perf_counter()
        code = collectives.all_reduce_max(_control_code(now - self._saved), losses.device)
        if not code:
            return
        self.losses = losses[: step + 1].cpu()
        require_finite(self.losses, len(self.history) + 1)
        self.seconds, self._saved = now - self._epoch_started, now
        if code != SAVE:
            raise _stopped(self, Signals(code).name)
        if self.writes:
            self.save_state()

    def after_epoch(self, row: Row) -> None:
        """Keep an epoch: checkpoints, history, state, and now and then the record."""
        self.history.rows.append(row)
        self.losses, self.seconds = torch.zeros(0), 0.0
        if not self.writes:
            return
        weights = cpu_weights(self.model)
        if self.history.best is row:
            self.best_weights = weights
            self.save_checkpoint(self.files.best_checkpoint, weights, row)
        if row["epoch"] % CHECKPOINT_EVERY == 0:
            self.save_checkpoint(self.files.epoch_checkpoint(row["epoch"]), weights, row)
        self.history.append_to_csv(row)
        self.save_state()
        log(self.trackers, "epoch", row)
        if self.record.is_due:
            self.record.save("running")

    def finish(self) -> None:
        """Keep the last epoch, and write the record with the results."""
        if self.was_finished or not self.writes:
            return
        best, last = self.history.best, self.history.rows[-1]
        path, weights = self.files.epoch_checkpoint(last["epoch"]), cpu_weights(self.model)
        self.save_checkpoint(path, weights, last)
        self.record.finish(
            _result(best, self.files.best_checkpoint, self.best_weights),
            _result(last, path, weights),
        )

    def save_checkpoint(self, path: Path, weights: Mapping[str, Tensor], row: Row) -> None:
        """Write a checkpoint of an epoch."""
        session = self.record.short_sessions()[-1]
        epoch = {"epoch": row["epoch"], "metrics": row}
        write_checkpoint(path, weights, {**self.metadata, **epoch, **session})

    def save_state(self, *, exclusive: bool = False) -> None:
        """Write the state.

        :raises FileExistsError: with ``exclusive``, where there is one.
        """
        self.record.measure_session()
        state = State(
            metadata=dict(self.metadata),
            weights=cpu_weights(self.model),
            optimizer=self.optimizer.state_dict(),
            best_weights=self.best_weights,
            history=self.history.rows,
            losses=self.losses.clone(),
            seconds=self.seconds,
            sessions=self.record.short_sessions(),
        )
        write_state(self.files.state, state, exclusive=exclusive)


def _load_state(checkpointer: Checkpointer) -> None:
    """Load the state on the disk."""
    files = checkpointer.files
    state = read_state(files.state, checkpointer.metadata, files.exp_name)
    model, rows, losses = checkpointer.model, state["history"], state["losses"]
    try:
        model.load_state_dict(state["best_weights"] if rows else state["weights"])
        best_weights = cpu_weights(model) if rows else {}
        model.load_state_dict(state["weights"])
        checkpointer.optimizer.load_state_dict(state["optimizer"])
        require_plain([rows, state["seconds"]], finite=True)
        epochs, seconds = [row["epoch"] for row in rows], [row["seconds"] for row in rows]
        if epochs != [*range(1, len(rows) + 1)] or min([*seconds, state["seconds"]]) < 0:
            raise ValueError("epochs are not 1, 2, 3 …, or seconds are below 0")
        tensors = [losses, *best_weights.values(), *state["weights"].values()]
        finite = all(bool(each.isfinite().all()) for each in tensors)
        if losses.dim() != 1 or not losses.is_floating_point() or not finite:
            raise ValueError("losses (steps,) or weights are not finite numbers")
    except (RuntimeError, KeyError, ValueError) as error:
        raise UsageError(
            f"{files.state} is damaged: {shown(error)}; give another --exp_name"
        ) from None
    checkpointer.history.rows, checkpointer.best_weights = rows, best_weights
    checkpointer.losses, checkpointer.seconds = losses, state["seconds"]
    checkpointer.record.load_sessions(state["sessions"])


def _broadcast_state(checkpointer: Checkpointer) -> None:
    """Give every rank the state of rank 0."""
    history, optimizer = checkpointer.history, checkpointer.optimizer
    tensors = [*checkpointer.model.buffers(), optimizer.values, *optimizer.state_dict().values()]
    values = (history.rows, checkpointer.losses, checkpointer.seconds, checkpointer.was_finished)
    values = collectives.broadcast(tensors, values)
    history.rows, checkpointer.losses, checkpointer.seconds, checkpointer.was_finished = values


def _restore_checkpoint(checkpointer: Checkpointer, path: Path, row: Row) -> None:
    """Write the best or last checkpoint again where there is another, a damaged one, or none."""
    is_best = path == checkpointer.files.best_checkpoint
    weights = checkpointer.best_weights if is_best else cpu_weights(checkpointer.model)
    with suppress(UsageError, OSError):
        found = load_checkpoint(path)
        same = weights_sha256(found.weights) == weights_sha256(weights)
        if same and found.metadata.get("epoch") == row["epoch"]:
            return
    checkpointer.save_checkpoint(path, weights, row)


def _stopped(checkpointer: Checkpointer, signal: str) -> Stopped | PeerAborted:
    """Save the state and return the exception of this rank."""
    if checkpointer.writes:
        checkpointer.record.end_session(signal)
        checkpointer.save_state()
        checkpointer.record.save("stopped", reason=signal)
        log(checkpointer.trackers, "finish")
    collectives.barrier()  # a rank that ended before the state is saved would end them all
    if not checkpointer.writes:
        return PeerAborted(EXIT_STATUS[signal])
    return Stopped(
        f"stopped by {signal} in epoch {len(checkpointer.history) + 1} after "
        f"{len(checkpointer.losses)} steps; {checkpointer.files.state} is saved: "
        "continue with --resume",
        EXIT_STATUS[signal],
    )


@contextmanager
def noting_errors(checkpointer: Checkpointer) -> Iterator[None]:
    """Note an error that ends the block in the record: a loss, a lost rank, a full disk.

    A run that diverged in its first epoch is removed, and its name is free again.
    """
    files, history, record = checkpointer.files, checkpointer.history, checkpointer.record
    try:
        yield
    except Diverged as error:  # on every rank, in the same step
        reason = str(error)
        if checkpointer.writes:
            record.fail(reason)
            log(checkpointer.trackers, "finish")
            if history.rows:
                reason += "; the checkpoints of earlier epochs are kept"
            else:
                files.remove()
        collectives.barrier()  # a rank that ended before that would end them all
        aborted = PeerAborted(Diverged.exit_status)
        raise (Diverged(reason) if checkpointer.writes else aborted) from None
    except Exception as error:
        if record.in_session:
            status = "pruned" if isinstance(error, Pruned) else "failed"
            reason = escaped(str(error)).replace(str(files.folder), relative_to_root(files.folder))
            with suppress(OSError):
                record.fail(reason, status)
            log(checkpointer.trackers, "finish")
        raise


def _control_code(seconds_since_save: float) -> int:
    """Return what this rank asks for: a signal's number, :data:`SAVE` or 0."""
    if stop_request.signal:
        return Signals[stop_request.signal]
    return SAVE if seconds_since_save > SAVE_SECONDS else 0


def require_finite(losses: Tensor, epoch: int) -> None:
    """Check the losses (steps,) of an epoch.

    :raises Diverged: one of them is not finite.
    """
    if not losses.isfinite().all():
        step = int(losses.isfinite().logical_not().nonzero()[0])
        raise Diverged(
            f"the loss is {losses[step].item()} in epoch {epoch}, step {step + 1}; "
            "give a smaller --lr"
        )


def _result(row: Row, path: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {**row, "checkpoint": path.name, "weights_sha256": weights_sha256(weights)}
