"""Files that a run trusts: written whole or not at all, sealed by a checksum, and read with one of three answers.

A file is *absent*; or *damaged*: it is there, and is not what was written; or *unreadable*: the system refuses it, for
a moment or until somebody mends that (a disk that is not mounted, too few file descriptors). Only damage may be
answered with an older copy: what cannot be read says nothing about what is in it.
"""

import contextlib
import errno
import io
import json
import os
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.harness.errors import Damaged, Unreadable, reason

_READ_BYTES = 1 << 20
# Opening a pipe would wait for its other end.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a small file so that a reader finds the old content or the new, never a part, even after a power cut."""
    draft = path.with_name(path.name + ".draft")
    with open(os.open(draft, _WRITE, 0o666), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read(path: Path) -> bytes | None:
    """A file's bytes; None where there is no file.

    Raises:
        Damaged: what stands there is no file.
        Unreadable: the system refuses it.
    """
    try:
        with opened(path) as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file. Raises as `read` does; Damaged where it is none."""
    data = read(path)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Damaged(f"{path.name} is damaged: it is no JSON object")
    return found


def sealed(content: Mapping[str, Any]) -> str:
    """JSON of plain values with their checksum, for `read_sealed`."""
    return json.dumps({"crc32": _crc32(content), "content": content}, allow_nan=False)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What was sealed in a file; None where there is no file. Raises as `read` does; Damaged where it has changed."""
    found = read_json(path)
    if found is None:
        return None
    content = found.get("content")
    if not isinstance(content, dict) or found.get("crc32") != _crc32(content):
        raise Damaged(f"{path.name} is damaged")
    return content


def extent(path: Path, length: int | None = None) -> list[int]:
    """[size in bytes, CRC-32] of a file, or of its first `length` bytes, of which there may be fewer.

    Raises:
        FileNotFoundError: there is none.
        Damaged, Unreadable: as for `read`.
    """
    with opened(path) as file:
        return extent_of(file, length)


def extent_of(file: io.BufferedReader | io.FileIO, length: int | None = None) -> list[int]:
    """`extent` of an open file, from its beginning."""
    file.seek(0)
    size = checksum = 0
    while block := file.read(_READ_BYTES if length is None else min(_READ_BYTES, length - size)):
        size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file to be read, by whoever must not mistake one of the three answers for another.

    Raises:
        FileNotFoundError: there is none.
        Damaged: what stands there is no file: a folder, or a pipe, for whose other end one would wait for ever.
        Unreadable: the system refuses it, now or while it is read. Also where a link leads to nothing.
    """
    try:
        descriptor = os.open(path, _READ)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Damaged(f"{path.name} is no file")
        with open(descriptor, "rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise Unreadable(
                f"{path} is a link to {os.readlink(path)}, which is not there; nothing was changed"
            ) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except (OSError, MemoryError) as error:
        if getattr(error, "errno", None) == errno.ENXIO:  # a socket
            raise Damaged(f"{path.name} is no file") from None
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> Unreadable:
    """The error for what the system refuses to read."""
    return Unreadable(f"{path} cannot be read ({reason(error)}); nothing was changed; once it can be, the run goes on")


def remove(path: Path) -> None:
    """Deletes a file, or a folder with all that is in it; of a link, the link. Nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def names_in(folder: Path) -> list[str]:
    """What lies in a folder; nothing where there is none. Raises Unreadable where one cannot look."""
    try:
        return os.listdir(folder)
    except FileNotFoundError as error:
        if not folder.is_symlink():
            return []
        raise Unreadable(
            f"{folder} is a link to {os.readlink(folder)}, which is not there: is its disk mounted? Nothing was changed"
        ) from error
    except OSError as error:
        raise unreadable(folder, error) from error


def _crc32(content: Mapping[str, Any]) -> int:
    try:
        return zlib.crc32(json.dumps(content, sort_keys=True).encode())
    except RecursionError:
        return -1  # no content of ours
