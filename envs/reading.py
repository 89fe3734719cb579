"""Reading files that others wrote: whatever is wrong with one is a `BadFile`, whose one line begins with its path.

    with reading(path, "damaged, or no image"):
        image = decode(content(path))  # may raise anything
        if image.ndim != 3:
            raise ValueError("it is flat")  # BadFile: "a/b.png: damaged, or no image (it is flat)"

Only parsing belongs into `reading`: beyond it, an exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from envs.memory import host_bytes

_BLOCK = 1 << 20
_UNASKED = 1 << 26
"""Bytes that are read without asking how much memory is free."""
_LONGEST_WHY = 300


class BadFile(ValueError):
    """A file, or a part of a stream, that can't be read. Its message is one line and begins with the path."""


@contextlib.contextmanager
def reading(where: Path | str, wrong: str) -> Iterator[None]:
    """Turns whatever goes wrong while something is parsed into one line.

    That includes memory and recursion that run out, and the panics of libraries in Rust, which are no `Exception`.

    Args:
        where: the file's path, with the place in it where that is known: "a.jsonl: line 3".
        wrong: what is wrong with what can't be parsed: "damaged, or no image".

    Raises:
        BadFile: "where: wrong (why)"; or "where: can't be read (why)", where the system refuses to give it, or memory
            is short. One that was raised inside is passed on as it is.
    """
    try:
        yield
    except BadFile:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt and its like
        if isinstance(error, OSError) and error.errno is not None:
            raise BadFile(f"{where}: can't be read ({error.strerror})") from error
        if isinstance(error, MemoryError):
            raise BadFile(f"{where}: can't be read (it needs more memory than there is)") from error
        raise BadFile(f"{where}: {wrong} ({_why(error, str(where))})") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file, open for reading bytes. What is no file of its own, such as a pipe, is refused: it could block for ever.

    Raises:
        BadFile: it can't be opened.
    """
    with reading(path, "can't be read"):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        file = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
        if file is None:
            os.close(handle)
            raise ValueError("a folder, a pipe or a device, must be a file")
    with file:
        yield file


def content(path: Path) -> bytes:
    """The whole of a file; unpacked, where its name ends in .gz.

    Raises:
        BadFile: it can't be read or unpacked, or is more than fits into the memory that is free.
    """
    found = io.BytesIO()
    with _unpacked(path) as file:
        checked = _UNASKED
        while block := file.read(_BLOCK):
            found.write(block)
            if found.tell() > checked:
                require_memory(path, found.tell())  # as much again, for what is made of it
                checked = found.tell() + _UNASKED
    return found.getvalue()


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, each with its number from 1, one at a time; unpacked, where its name ends in .gz.

    Raises:
        BadFile: it can't be read or unpacked, or memory runs short.
    """
    with _unpacked(path) as file:
        asked = 0
        for number, line in enumerate(iter(lambda: _line(path, file), b""), 1):
            asked += len(line)
            if asked > _UNASKED:
                require_memory(path, 2 * _UNASKED)
                asked = 0
            yield number, line


def require_memory(where: Path | str, size: int) -> None:
    """Raises BadFile where less memory than `size` bytes is free."""
    free = host_bytes()
    if free is not None and size > free:
        raise BadFile(
            f"{where}: it needs {size / 1e9:.2f} GB of memory more than it has so far, and {free / 1e9:.2f} GB are free"
        )


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[io.BufferedIOBase]:
    with opened(path) as file, reading(path, "damaged, so that it can't be read"):
        if path.suffix.lower() != ".gz":
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked


def _line(path: Path, file: io.BufferedIOBase) -> bytes:
    """The next line, in pieces that are each asked memory for: a packed one of 10 GB takes 10 MB of a disk."""
    line = file.readline(_UNASKED)
    if len(line) < _UNASKED:
        return line
    pieces = [line]
    while len(pieces[-1]) == _UNASKED and not pieces[-1].endswith(b"\n"):
        require_memory(path, len(pieces) * _UNASKED)
        pieces.append(file.readline(_UNASKED))
    return b"".join(pieces)


def _why(error: BaseException, where: str) -> str:
    """What an error says, in a line that is not too long, and without the path, which is said before it."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = " ".join(str(error).replace(where, Path(where).name).split())
    if isinstance(error, KeyError):
        text = f"it has no {text}"
    if len(text) > _LONGEST_WHY:
        text = f"{text[:_LONGEST_WHY]}..."
    return text or type(error).__name__
