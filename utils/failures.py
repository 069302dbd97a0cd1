"""The errors that a user can mend, each one sentence with the value and the remedy."""


class UsageError(Exception):
    """Wrong use: a flag, or a file that a flag names."""

    exit_status = 2


class RunError(Exception):
    """A run that failed: data that are damaged or out of reach, a loss that is not finite."""

    exit_status = 1


class Stopped(Exception):
    """A training that was asked to stop, its state saved."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Elsewhere(Exception):
    """The end of a rank whose run ended in rank 0, which says why."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(f"rank 0 ended with status {exit_status}")
        self.exit_status = exit_status
