"""What the system says, through whatever library, as the expected end of a command: one line, an exit code."""

import errno
from collections.abc import Iterator

from experiments.harness.environment import why_jax_cannot_start
from experiments.harness.errors import DiskFull, RunStopped, UserError, is_full_disk

# Where a file is named, these say nothing about it: the system, or its `ulimit`, has no more of something.
_LIMIT_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EFBIG, errno.EIO)
# What says so in other exceptions: Python's, the dynamic linker's (an ImportError), XLA's.
_LIMIT_WORDS = (
    "can't start new thread",
    "Too many open files",
    "File too large",
    "Cannot allocate memory",
    "failed to map segment from shared object",
    "error while initializing the extension",
    "RESOURCE_EXHAUSTED",
    "std::bad_alloc",
)
_GOES_ON = "what was saved is whole, and the same command goes on from it"
_LONGEST = 300  # letters of a library's message


def expected_end(error: Exception) -> UserError | RunStopped | None:
    """What a command that raised this ends with: one of ours, a word of the system, or that JAX cannot start; or None.

    None is a fault of this program, to be shown with its traceback.
    """
    if isinstance(error, (UserError, RunStopped)):
        return error
    of_system = _of_the_system(error)
    if of_system is None and (reason := why_jax_cannot_start(error)):
        return UserError(reason)
    return of_system


def _of_the_system(error: BaseException) -> UserError | RunStopped | None:
    """An exception that tells of the system rather than of this program, as an expected end; None for any other.

    A file or folder that cannot be read or written is bad input. A limit that is reached, as of memory, open files or a
    full disk, stops a run; a library may have made another exception of it.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EBADF):
        what = f"{error.filename or 'what was being read or written'}: {error.strerror}"
        if is_full_disk(error):
            return DiskFull(what)
        if error.filename is not None and error.errno not in _LIMIT_ERRNOS:
            return UserError(what)
        return RunStopped(f"{what}; {_GOES_ON}")
    for cause in _causes(error):
        said = " ".join(str(cause).split())
        of_limit = isinstance(cause, OSError) and cause.errno in _LIMIT_ERRNOS
        if of_limit or isinstance(cause, MemoryError) or any(words in said for words in _LIMIT_WORDS):
            return RunStopped(f"a limit of the system is reached: {said[:_LONGEST] or 'out of memory'}; {_GOES_ON}")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
