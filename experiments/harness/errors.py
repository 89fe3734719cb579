"""The ways in which a command ends early, each with the one line it shows and the exit code it ends with."""

import difflib
import errno
import signal
from collections.abc import Iterable

# The system's words for a full disk; tensorstore, below orbax, raises them inside a plain ValueError.
_FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "RESOURCE_EXHAUSTED: Failed writing")


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and the nearest right value. Exit code 2."""

    exit_code = 2


class RunStopped(Exception):
    """A run ended before its end. The message is one line that says what is saved. Exit code 1."""

    exit_code = 1


class NonFinite(RunStopped):
    """A quantity that must be finite is NaN or infinite."""


class DiskFull(RunStopped):
    """The disk of the run folder is full."""


class Interrupted(RunStopped):
    """SIGINT (exit code 130) or SIGTERM (143) asked the run to stop."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def unknown(kind: str, name: str, choices: Iterable[str], *, option: str = "") -> UserError:
    """The error for a name that is none of the `choices`, naming the nearest one, or all of them when none is near.

    Args:
        kind: what the name should have been, with its article: "a preset".
        name: the name that was given.
        choices: the names that exist.
        option: where it was given: "--preset".

    Returns:
        The error, to be raised by the caller.
    """
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(choices) or 'none'}"
    where = f"{option}: " if option else ""
    return UserError(f"{where}'{name}' is not {kind}; {hint}")


def is_full_disk(error: BaseException) -> bool:
    """Whether `error` says that the disk, or the user's quota of it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL_DISK_ERRNOS
    return any(words in str(error) for words in _FULL_DISK_WORDS)
