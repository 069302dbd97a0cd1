"""Signals that stop a run: it finishes its step, saves its state and says so."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit status by signal: 128 + number by convention; 75 (EX_TEMPFAIL of BSD's sysexits.h, "try
#: again later") tells a batch script to put the job back into the queue.
EXIT_STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}


class StopRequest:
    """The first signal that arrived while it was watched for.

    :ivar signal: its name; None if there was none, and outside of :meth:`watch`.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._watching = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note signals during the block; only a second SIGINT still ends the process.

        Within another such block nothing changes, so that a command can begin to watch before it
        imports torch; nor in a thread, where Python does not let handlers be set.
        """
        if self._watching or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            name: signal.signal(getattr(signal, name), self._note)
            for name in EXIT_STATUS
            if hasattr(signal, name)  # Windows lacks SIGUSR1
        }
        self.signal, self._watching = None, True
        try:
            yield
        finally:
            self.signal, self._watching = None, False
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


#: Signals come to the process, so there is one.
stop_request = StopRequest()
