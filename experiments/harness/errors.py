"""The ways in which a command ends early, each with the one line it shows and the exit code it ends with."""

import contextlib
import difflib
import errno
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# The system's words for a full disk; tensorstore, below orbax, raises them inside a plain ValueError.
_FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "RESOURCE_EXHAUSTED: Failed writing")
_ERRNO_WORDS = re.compile(r"os_error_code='(\d+)'")


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and the nearest right value. Exit code 2."""

    exit_code = 2


class Unreadable(UserError):
    """The system refuses to read a file or folder, which says nothing about what is in it."""


class Damaged(ValueError):
    """A file is there, and is not what was written. The message says what is wrong with it, without its folder."""


class RunStopped(Exception):
    """A run ended before its end. The message is one line that says what is saved. Exit code 1."""

    exit_code = 1


class NonFinite(RunStopped):
    """A quantity that must be finite is NaN or infinite."""


class DiskFull(RunStopped):
    """The disk of the run folder is full."""


class Unwritable(RunStopped):
    """The run folder cannot be written any more."""


class FolderChanged(RunStopped):
    """Something else has moved, deleted or written what the run has open."""


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
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL_DISK_ERRNOS
    return any(words in str(error) for words in _FULL_DISK_WORDS)


def reason(error: BaseException) -> str:
    """Why the system refused something, in its own words, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "out of memory"
    if found := _ERRNO_WORDS.search(str(error)):  # tensorstore's
        return os.strerror(int(found[1]))
    words = " ".join(str(error).split())[:200]
    return words if isinstance(error, OSError) else f"{type(error).__name__}: {words}"


@contextlib.contextmanager
def writing(folder: Path, saved: Callable[[], str]) -> Iterator[None]:
    """Files of a run are written within: whatever the system refuses ends the run with one line.

    Args:
        folder: the run's folder.
        saved: what is saved of the run, in words.

    Raises:
        DiskFull: there is no space.
        Unwritable: anything else that the system said.
    """
    try:
        yield
    except (OSError, MemoryError) as error:
        if is_full_disk(error):
            raise DiskFull(
                f"the disk of {folder} is full; {saved()}; after making space, the same command goes on"
            ) from error
        raise Unwritable(
            f"{folder} cannot be written ({reason(error)}); {saved()}; once it can be, the same command goes on"
        ) from error
