"""What the system says through a library ends a command in a line; a fault of ours keeps its traceback."""

import errno
import os

import pytest

from experiments import harness


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def of_system(number: int, *path: str) -> OSError:
    return OSError(number, os.strerror(number), *path)


@pytest.mark.parametrize(
    ("error", "exit_code", "word"),
    [
        (of_system(errno.ENOENT, "/there/file"), 2, "/there/file: No such file"),
        (of_system(errno.EMFILE), 1, "Too many open files"),
        (of_system(errno.EMFILE, "/there/file"), 1, "Too many open files"),
        (of_system(errno.EFBIG), 1, "File too large"),
        (of_system(errno.EIO, "/there/file"), 1, "/there/file: Input/output error"),
        (of_system(errno.ENOSPC), 1, "No space left on device"),
        (of_system(errno.EPIPE), 1, "Broken pipe"),
        (MemoryError(), 1, "out of memory"),
        (MemoryError("Unable to allocate 9.3 GiB"), 1, "9.3 GiB"),
        (RuntimeError("can't start new thread"), 1, "new thread"),
        (ValueError('RESOURCE_EXHAUSTED: Out of memory\nallocating "x"'), 1, "RESOURCE_EXHAUSTED"),
        (raised_from(ImportError("read this!"), ImportError("lib.so: failed to map segment from shared object")), 1,
         "lib.so"),
        (raised_from(ValueError("cannot read"), of_system(errno.EMFILE)), 1, "Too many open files"),
    ],
)  # fmt: skip
def test_a_limit_of_the_system_is_a_line(error, exit_code, word, capsys):
    def fail() -> None:
        raise error

    assert harness.exit_code_of(fail) == exit_code
    told = capsys.readouterr().err
    assert told.startswith("error: ") and word in told and told.count("\n") == 1


def test_a_fault_of_ours_is_not_taken_for_the_systems():
    def while_handling() -> None:
        try:
            raise of_system(errno.ENOENT, "/there/file")
        except OSError:
            raise ZeroDivisionError  # noqa: B904

    def on_closed() -> None:
        os.fstat(10_000)

    for fault, kind in ((while_handling, ZeroDivisionError), (on_closed, OSError)):
        with pytest.raises(kind):
            harness.exit_code_of(fault)
