"""A run's folder: who may write in it, whose it is, and starting it over."""

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.harness.checkpoint import write_atomically
from experiments.harness.errors import UserError
from experiments.harness.identity import command_line, difference, git_commit, software

if TYPE_CHECKING:
    from filelock import FileLock

CONFIG, METRICS, TIMINGS, SUMMARY, DONE = "config.json", "metrics.jsonl", "timings.jsonl", "summary.json", "DONE"
CHECKPOINTS, EVENTS, LOCK = "checkpoints", "events.out.tfevents.*", "lock"
DIVERGED = "DIVERGED"  # {"updates": N}: the run ended there, as `Run.check_finite` found
FAILED, OUTPUT = "FAILED", "output.log"  # of a sweep

_MOMENT = 0.5  # seconds; whoever only asks whether a folder is held holds it for far less
_POLL_SECONDS = 2.0


def make(folder: Path) -> None:
    """Makes a run's folder, if it is not there. Raises UserError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"the run folder {folder} cannot be made: {error.strerror}; give another --out") from None


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Makes `folder` if needed and holds it for this process; the system lets go of it when the process dies.

    Args:
        folder: the run's folder.
        wait: where another process holds it, wait for its end.

    Raises:
        UserError: another process holds it.
    """
    from filelock import Timeout  # here, so that listing the experiments does not pay for it

    make(folder)
    lock = _lock(folder)
    try:
        lock.acquire(timeout=_MOMENT)
    except Timeout:
        if not wait:
            raise UserError(f"{folder} is being written by {_holder(folder)}: this run is going on already") from None
        print(f"waiting for {_holder(folder)}, which runs {folder}", file=sys.stderr, flush=True)
        lock.acquire(timeout=-1, poll_interval=_POLL_SECONDS)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        raise UserError(f"the file system of {folder} has no locks (flock); give an --out on another") from None
    try:
        with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk must not stop the run here
            (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def held_by(folder: Path) -> str | None:
    """Which process holds a run's folder, in words; None where none does."""
    from filelock import Timeout

    if not (folder / LOCK).exists():
        return None
    try:
        with _lock(folder).acquire(timeout=0):
            return None
    except Timeout:
        return _holder(folder)
    except PermissionError:  # somebody else's
        return None


def prepare(
    folder: Path, identity: Mapping[str, Any], digest: str, fresh: bool, extent: Mapping[str, Any]
) -> str | None:
    """Makes the folder this run's, new or to be continued; it no longer says that the run has failed or diverged.

    Args:
        folder: the run's folder, locked.
        identity: the experiment's name and its plain configuration.
        digest: the hash of `identity`.
        fresh: delete what an earlier run of the same configuration left here.
        extent: how long the run is, to be written down: `total` of `unit`.

    Returns:
        A sentence on software, or this code's commit, that changed since the run began or last went on, or None. The
        change is written down.

    Raises:
        UserError: the folder holds a run of another configuration, which is left as it is, `fresh` or not.
    """
    path = folder / CONFIG
    now = {"versions": software(), "git_commit": git_commit()}
    recorded = _read_config(path, fresh)
    if recorded is not None:
        change = difference({name: recorded.get(name) for name in identity}, identity)
        if change:
            raise UserError(f"{path} is of another run: {change}; move that folder away, or give another --out")
    for ended in (FAILED, DIVERGED):
        (folder / ended).unlink(missing_ok=True)
    if fresh:
        _clear(folder)
        recorded = None
    if recorded is None:
        about = {
            **identity,
            "hash": digest,
            **extent,
            **now,
            "command": command_line(),
            "started": _time_of_day(),
        }
        write_atomically(path, json.dumps(about, indent=2) + "\n")
        return None
    resumed = recorded.get("resumed", [])
    last = resumed[-1] if resumed else recorded
    changed = difference({name: last.get(name) for name in now}, now)
    if changed and not (folder / DONE).exists():
        resumed = [*resumed, {**now, "started": _time_of_day()}]
        write_atomically(path, json.dumps({**recorded, "resumed": resumed}, indent=2) + "\n")
    return changed


def _time_of_day() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _lock(folder: Path) -> "FileLock":
    from filelock import FileLock

    # Never a soft lock, which is a file that a killed process would leave behind.
    return FileLock(folder / LOCK, fallback_to_soft=False)


def _holder(folder: Path) -> str:
    return (folder / LOCK).read_text().strip() or "another process"


def _read_config(path: Path, fresh: bool) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError
    except FileNotFoundError:
        return None
    except ValueError:
        if fresh:
            return None
        raise UserError(f"{path} is damaged: it is not a JSON object; --fresh starts this run over") from None
    return found


def _clear(folder: Path) -> None:
    (folder / DONE).unlink(missing_ok=True)  # first: a half-cleared folder must not look finished
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for path in (*(folder / name for name in (METRICS, TIMINGS, SUMMARY, CONFIG)), *folder.glob(EVENTS)):
        path.unlink(missing_ok=True)
