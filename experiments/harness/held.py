"""Holding a run's folder, so that one process writes it, and writes nowhere else.

Both the folder and a file `lock` in it are locked (flock), by descriptors that are kept. The folder's lock can't be
deleted apart from the run, but on a network's file system it may hold on one machine only; that of the file holds on
all of them, and says who has it. Before anything is written, the names are compared with what the descriptors hold.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.harness.errors import Damaged, FolderChanged, Unreadable, UserError, reason
from experiments.harness.storage import read

LOCK = "lock"

_MOMENT = 0.5  # seconds; whoever only asks whether a folder is held holds it for far less
_WAITS = 0.05
_POLL_SECONDS = 2.0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)  # EACCES: some network file systems' word for it
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


class Held:
    """A folder that this process holds; `locked` makes it.

    Attributes:
        folder: the folder, as it was named.
        at: the same folder for whatever is written: on Linux it leads there even after somebody has renamed it.
    """

    def __init__(self, folder: Path, descriptor: int, lock: int) -> None:
        self.folder, self._descriptor, self._lock = folder, descriptor, lock
        self._path = folder.absolute()  # wherever the process goes
        through = Path(f"/proc/self/fd/{descriptor}")
        self.at = through if through.exists() else self._path
        self._sign()

    def check(self) -> None:
        """Makes sure that the folder still has its name, and this process its lock. Call it before writing.

        A `lock` that somebody deleted is made anew.

        Raises:
            FolderChanged: the folder was renamed, deleted or replaced; or another process has got the lock.
            OSError: the system does not tell.
        """
        if not _is(self._descriptor, self._path):
            raise FolderChanged(f"{self.folder} was {self._whereabouts()}")
        if not _is(self._lock, self.at / LOCK):
            lock = _lock(self._path, self._descriptor, time.monotonic() + _MOMENT)
            if lock is None:
                raise FolderChanged(f"{self.folder / LOCK} was replaced, and now {_holder(self._path)} has the run")
            os.close(self._lock)
            self._lock = lock
            self._sign()

    def release(self) -> None:
        """Lets go of the folder."""
        os.close(self._lock)
        os.close(self._descriptor)

    def _sign(self) -> None:
        with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk must not stop the run here
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _whereabouts(self) -> str:
        now = "" if self.at == self._path else os.readlink(self.at)
        if not now:
            return "renamed, replaced or deleted while this run wrote it"
        if now.endswith(" (deleted)"):
            return "deleted while this run wrote it, with all that was saved"
        return f"renamed to {now} while this run wrote it; rename it back, and the same command goes on"


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[Held]:
    """Makes `folder` if needed and holds it for this process; the system lets go of it when the process dies.

    Args:
        folder: the run's folder.
        wait: where another process holds it, wait for its end.

    Raises:
        UserError: another process holds it, or it cannot be made or locked.
    """
    held = _hold(folder, time.monotonic() + _MOMENT)
    if held is None:
        if not wait:
            raise UserError(f"{folder} is being written by {_holder(folder)}: this run is going on already")
        print(f"waiting for {_holder(folder)}, which runs {folder}", file=sys.stderr, flush=True)
        while held is None:
            time.sleep(_POLL_SECONDS)
            held = _hold(folder, time.monotonic() + _MOMENT)
    try:
        yield held
    finally:
        held.release()


def held_by(folder: Path) -> str | None:
    """Which process holds a run's folder, in words; None where none does."""
    for name, flags in ((folder, _FOLDER), (folder / LOCK, os.O_RDONLY | _FILE)):
        try:
            descriptor = os.open(name, flags)
        except OSError:  # not there; or somebody else's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                return _holder(folder)
        finally:
            os.close(descriptor)
    return None


def make(folder: Path) -> None:
    """Makes a run's folder, if it is not there. Raises UserError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the run folder {folder} cannot be made: {reason(error)}; give another --out") from None


def _hold(folder: Path, until: float) -> Held | None:
    """The folder, held; None where another process holds it up to a time."""
    make(folder)
    with contextlib.ExitStack() as opened:
        try:
            descriptor = os.open(folder, _FOLDER)
        except OSError as error:
            raise UserError(f"the run folder {folder} cannot be opened: {reason(error)}; give another --out") from None
        opened.callback(os.close, descriptor)
        try:
            taken = _flock(descriptor, until)
        except OSError:  # the file system knows no locks of folders: that of the file has to do
            taken = True
        if not taken:
            return None
        lock = _lock(folder, descriptor, until)
        if lock is None:
            return None
        opened.callback(os.close, lock)
        if not _is(descriptor, folder):  # renamed or deleted meanwhile, as by whoever had it before
            return None
        opened.pop_all()
        return Held(folder, descriptor, lock)


def _lock(folder: Path, descriptor: int, until: float) -> int | None:
    """The descriptor of the folder's lock file, locked; None where another process has it up to a time."""
    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | _FILE, 0o666, dir_fd=descriptor)
    except OSError as error:
        raise UserError(f"{folder / LOCK} cannot be opened ({reason(error)}); remove it, or make it writable") from None
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, lock)
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            raise UserError(f"{folder / LOCK} is no file; remove it, and the same command goes on")
        try:
            taken = _flock(lock, until)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise UserError(f"the file system of {folder} has no locks (flock); give an --out on another") from None
        if not taken or not _is(lock, folder / LOCK):
            return None
        opened.pop_all()
        return lock


def _flock(descriptor: int, until: float) -> bool:
    """Locks what a descriptor holds, for this process alone; returns whether it could, up to a time."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            if time.monotonic() > until:
                return False
            time.sleep(_WAITS)
        else:
            return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether a path leads to what a descriptor holds."""
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _holder(folder: Path) -> str:
    try:
        return (read(folder / LOCK) or b"").decode(errors="replace").strip() or "another process"
    except (Damaged, Unreadable):
        return "another process"
