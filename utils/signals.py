"""Signals that ask a training to stop: it finishes its step, saves its state and says so."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit status by signal: 128 + number by convention; 75 (EX_TEMPFAIL of BSD's sysexits.h, "try
#: again later") tells a batch script to put the job back into the queue.
EXIT_STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}


class StopRequest:
    """The signal that came, if one did."""

    def __init__(self) -> None:
        self.signal: str | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """In the block, signals are noted and do not end the process, but for a second SIGINT."""
        self.signal = None
        numbers = [getattr(signal, name) for name in EXIT_STATUS if hasattr(signal, name)]
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)


#: Signals come to the process, so there is one.
stop_request = StopRequest()
