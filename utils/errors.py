"""Errors that a user can correct: one sentence each, with the value and the remedy."""


def escaped(text: str) -> str:
    """Return ``text`` with what cannot be printed escaped, such as line breaks and surrogates."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def one_line(text: str, most: int = 400) -> str:
    """Return ``text`` escaped and cut in the middle to ``most`` characters.

    A sentence keeps its beginning, with the file, and its end, with the remedy.
    """
    # Cut twice: to escape a megabyte would take a second.
    text = escaped(text if len(text) <= 2 * most else text[:most] + text[-most:])
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


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


class Pruned(RunError):
    """A run that a search ended, since others did better by then."""


class Stopped(Exception):
    """A run that a signal stopped, its state saved."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class PeerAborted(Exception):
    """Raised on the other ranks when rank 0 stopped or failed; rank 0 prints the reason."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(f"rank 0 ended with status {exit_status}")
        self.exit_status = exit_status
