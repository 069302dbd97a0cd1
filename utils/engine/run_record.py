"""The record of a training run, ``{exp_name}_run.json``: what ran, in which sessions, the results.

A session is one process (or one group of ranks) that worked on the run; a resumed run has several.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from utils.engine.history import History
from utils.errors import UsageError
from utils.records.evaluation import with_digest
from utils.records.provenance import (
    RECORD_ONLY,
    Provenance,
    changed_files,
    describe_platform,
    resource_usage,
    utc_now,
    write_json,
)
from utils.records.run import read_run

#: While epochs end the record is written at most once in this many seconds.
RECORD_SECONDS = 10
UNKNOWN_END = "unknown: killed, or its machine was lost"

Session = dict[str, Any]


class RunRecord:
    """Metadata, sessions and results of one run, kept as JSON."""

    def __init__(
        self, path: Path, metadata: Mapping[str, Any], provenance: Provenance, history: History
    ) -> None:
        self.path, self.metadata, self.provenance = path, metadata, provenance
        self.history = history
        self.sessions: list[Session] = []
        self.status = ""  # of the record on the disk
        self._started = self._written = time.perf_counter()
        self.in_session = False

    def load_sessions(self, of_state: Sequence[Session]) -> None:
        """Take the sessions of the state, completed by those of the record, which has all of each.

        The record has every session from its start, and how it ended where no state was saved. One
        that is damaged is written again from the state.
        """
        self.sessions = list(of_state)
        if not self.path.exists():
            return
        try:
            record = read_run(self.path)
        except UsageError as error:
            print(f"note        {error}: resumed from the state alone")
            return
        self.status, on_disk = record["status"], cast(list[Session], record["sessions"])
        known = [each | mine for each, mine in zip(on_disk, of_state, strict=False)]
        self.sessions = known + on_disk[len(known) :]

    def start_session(self, first_epoch: int, first_step: int) -> None:
        """Add this process as a session, and print what differs from the one before."""
        for session in self.sessions[-1:]:
            session.setdefault("ended_by", UNKNOWN_END)
        known: Session = {}
        for session in self.sessions:
            known |= {name: session[name] for name in RECORD_ONLY if name in session}
        change = self._change(known.get("source"))
        if change:
            print(f"note        {change}")
        new = {  # long values once, until they change
            name: value
            for name, value in self.provenance.items()
            if name not in known or known[name] != value
        }
        first = {"first_epoch": first_epoch, "first_step": first_step}
        self.sessions.append({**new, **first, "change": change})
        self.in_session = True

    def _change(self, source_before: Mapping[str, str] | None) -> str | None:
        """Describe what differs from the session before and may change the bits of the result."""
        if not self.sessions:
            return None
        before, changes = self.sessions[-1], []
        platform = describe_platform(self.provenance)
        if describe_platform(before) != platform:
            changes.append(f"on {platform}, after {describe_platform(before)}")
        if before.get("source_sha256") != self.provenance["source_sha256"]:
            where = changed_files(source_before, self.provenance.get("source"))
            changes.append(f"with changed code{where}")
        if not changes:
            return None
        return f"{' and '.join(changes)}: the bits may differ from those of an uninterrupted run"

    def end_session(self, reason: str) -> None:
        """Note why this session ended."""
        self.sessions[-1] |= {"ended_by": reason, "ended": utc_now()}
        self.in_session = False

    def measure_session(self) -> None:
        """Note what this session has used so far."""
        for session in self.sessions[-1:]:
            session |= resource_usage(time.perf_counter() - self._started, self.provenance)

    def short_sessions(self) -> list[Session]:
        """Return the sessions without the long values, for the state and checkpoints."""
        return [
            {name: value for name, value in session.items() if name not in RECORD_ONLY}
            for session in self.sessions
        ]

    @property
    def is_due(self) -> bool:
        """Whether the record on the disk is older than :data:`RECORD_SECONDS`."""
        return time.perf_counter() - self._written > RECORD_SECONDS

    def fail(self, reason: str, status: str = "failed") -> None:
        """End the session and the run with a reason."""
        self.end_session(reason)
        self.save(status, reason=reason)

    def finish(self, best: Mapping[str, Any], last: Mapping[str, Any]) -> None:
        """Write the record of a finished run.

        :param best: the row, checkpoint and weights' hash of the best epoch; ``last``: of the last.
        """
        self.end_session("finished")
        self.measure_session()
        results = {
            "best": best,
            "last": last,
            "training_seconds": sum(row["seconds"] for row in self.history.rows),
            "gpu_hours": sum(session["gpu_hours"] for session in self.sessions),
        }
        self.save("finished", results=results)

    def save(self, status: str, **more: Any) -> None:
        """Write the record, with the results so far."""
        self.measure_session()
        self._written = time.perf_counter()
        if self.history.rows and "results" not in more:
            more["results"] = {"best": self.history.best, "last": self.history.rows[-1]}
        content = {**self.metadata, "status": status, **more, "sessions": self.sessions}
        write_json(self.path, with_digest(content))
