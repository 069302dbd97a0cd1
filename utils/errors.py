"""Errors that a user can mend: one sentence each, with the value and the remedy."""


class UsageError(Exception):
    """Wrong use: a flag, or a file that a flag names."""

    exit_status = 2


class RunError(Exception):
    """A run that failed: data that are damaged or out of reach, a loss that is not finite."""

    exit_status = 1


class MissingData(RunError):
    """Raw files that are neither there nor can be downloaded."""


class Diverged(RunError):
    """A loss that is not finite."""


class Stopped(Exception):
    """A training that a signal stopped, its state saved."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class PeerAborted(Exception):
    """Raised on the other ranks when rank 0 stopped or failed; rank 0 prints the reason."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(f"rank 0 ended with status {exit_status}")
        self.exit_status = exit_status
