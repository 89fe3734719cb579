"""What a process finds around it as it starts, made the same everywhere: standard streams, encoding, terminal.

A daemon closes the standard streams, a container has a locale of its own, and a terminal can go away. No other part of
the program needs to know: after `surroundings()` the streams are there, take every letter and never fail.
"""

import errno
import io
import os
import select
import shutil
import sys
from typing import Any

from experiments.harness.command_line import print_error
from experiments.harness.errors import RunStopped

_NARROWEST = 20
"""Columns. Help is laid out for ever where there are fewer than some 8 of them."""


class _Output(io.FileIO):
    """Standard output or error that does not fail: what cannot be written is dropped, as is all that follows.

    Attributes:
        lost: why something was dropped; None as long as nothing was.
        is_terminal: whether it was a terminal at first; one that has gone says EIO.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.lost: OSError | None = None
        self.is_terminal = self.isatty()

    def write(self, data: Any) -> int:
        """Returns how many bytes were taken: of those that are dropped, all."""
        while self.lost is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.lost = error
                break
            if written is not None:
                return written
            select.select([], [self.fileno()], [])  # somebody who shares it has it not wait (O_NONBLOCK)
        return memoryview(data).nbytes


_outputs: dict[str, _Output] = {}


def surroundings() -> None:
    """Readies the standard streams, the encoding and the width of text; call it before anything else.

    Where the locale is not UTF-8, Python starts anew in its UTF-8 mode: file names and the files' texts are UTF-8 to
    all libraries then, and not to some of them only.
    """
    _open_descriptors()
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1" and sys.executable:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        _replace(name, descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # as long as the process lives
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)


def delivered(exit_code: int) -> int:
    """The exit code of a command whose output is out: 1, with a line, where there was no space for some of it.

    A reader that has seen enough, as `head`, and a terminal that has gone are no errors.
    """
    sys.stdout.flush()
    output = _outputs.get("stdout")
    if output is None or output.lost is None or output.lost.errno == errno.EPIPE or output.is_terminal:
        return exit_code
    print_error(RunStopped(f"standard output: {output.lost.strerror}; what was to follow is lost"))
    return exit_code or RunStopped.exit_code


def _open_descriptors() -> None:
    """Opens the null device as each of the descriptors 0 to 2 that is closed, lest a run's file becomes one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _replace(name: str, descriptor: int) -> None:
    """Puts a stream that does not fail in the place of Python's own; one that somebody else put there stays."""
    old = getattr(sys, name)
    if old is not None and type(old) is not io.TextIOWrapper:
        return
    raw = _outputs[name] = _Output(descriptor)
    unbuffered = old is not None and old.write_through
    stream = io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding="utf-8" if old is None else old.encoding,
        errors="backslashreplace",
        line_buffering=name == "stderr" or (old is not None and old.line_buffering),
        write_through=unbuffered,
    )
    setattr(sys, name, stream)
