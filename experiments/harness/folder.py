"""A run's folder: who may write in it, whose it is, and starting it over."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.harness.checkpoint import write_atomically
from experiments.harness.errors import UserError
from experiments.harness.identity import command_line, difference, git_commit, software

CONFIG, METRICS, TIMINGS, SUMMARY, DONE = "config.json", "metrics.jsonl", "timings.jsonl", "summary.json", "DONE"
CHECKPOINTS, EVENTS, LOCK = "checkpoints", "events.out.tfevents.*", "lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` if needed and holds it for this process; the system lets go of it when the process dies.

    Raises:
        UserError: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"the run folder {folder} cannot be made: {error.strerror}; give another --out") from None
    with open(folder / LOCK, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode().strip() or "another process"
            raise UserError(f"{folder} is being written by {holder}: this run is going on already") from None
        file.truncate(0)
        with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk must not stop the run here
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def prepare(folder: Path, identity: Mapping[str, Any], digest: str, fresh: bool) -> str | None:
    """Makes the folder this run's, new or to be continued.

    Args:
        folder: the run's folder, locked.
        identity: the experiment's name and its plain configuration.
        digest: the hash of `identity`.
        fresh: delete what an earlier run of the same configuration left here.

    Returns:
        A sentence on software that changed since the run began, or None.

    Raises:
        UserError: the folder holds a run of another configuration, which is left as it is, `fresh` or not.
    """
    path, versions = folder / CONFIG, software()
    recorded = _read_config(path, fresh)
    if recorded is not None:
        change = difference({name: recorded.get(name) for name in identity}, identity)
        if change:
            raise UserError(f"{path} is of another run: {change}; move that folder away, or give another --out")
    if fresh:
        _clear(folder)
        recorded = None
    if recorded is None:
        about = {
            **identity,
            "hash": digest,
            "versions": versions,
            "git_commit": git_commit(),
            "command": command_line(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_atomically(path, json.dumps(about, indent=2) + "\n")
        return None
    return difference(recorded.get("versions", {}), versions)


def _read_config(path: Path, fresh: bool) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        if fresh:
            return None
        raise UserError(f"{path} is damaged: it is not JSON; --fresh starts this run over") from None


def _clear(folder: Path) -> None:
    (folder / DONE).unlink(missing_ok=True)  # first: a half-cleared folder must not look finished
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for path in (*(folder / name for name in (METRICS, TIMINGS, SUMMARY, CONFIG)), *folder.glob(EVENTS)):
        path.unlink(missing_ok=True)
