"""Signals that ask a training to stop: it finishes its step, saves its state and says so."""

import signal
from types import FrameType

#: Exit status by signal: 128 + number by convention; 75 (EX_TEMPFAIL of BSD's sysexits.h, "try
#: again later") tells a batch script to put the job back into the queue.
EXIT_STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}


class StopRequest:
    """The first signal that came, if one did."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def watch(self) -> None:
        """From now on signals are noted and do not end the process, but for a second SIGINT.

        To the end of the process: a training that is done is not undone by a late signal.
        """
        self.signal = None
        for name in EXIT_STATUS:
            if hasattr(signal, name):  # Windows lacks SIGUSR1
                signal.signal(getattr(signal, name), self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


#: Signals come to the process, so there is one.
stop_request = StopRequest()
