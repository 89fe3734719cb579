"""Small sweeps of `plasticity`, and what the tests of every launcher ask of them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from experiments.harness import folder as files

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--data", "digits", "--epochs", "2", "--examples", "40", "--batch-size", "10", "--hidden", "8", "7"]
# Compiled as users have it, and one device, not the tests' eight.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def tiny(out: Path, *more: str, tasks: int = 4) -> list[str]:
    """The arguments after `python -m experiments sweep`."""
    return ["plasticity", *TINY, "--tasks", str(tasks), "--out", str(out), *more]


def start(argv: list[str], **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments", "sweep", *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**ENVIRONMENT, **environment}, **pipes)


def finish(argv: list[str], **environment: str) -> str:
    """Its standard output."""
    process = start(argv, **environment)
    shown, errors = process.communicate()
    assert process.returncode == 0, errors
    return shown


def skip_without(engine: str, missing: Sequence[str], config: pytest.Config) -> None:
    """Skips the tests of a launcher whose engine is not here, and in the whole suite, since they take minutes."""
    if missing:
        pytest.skip(f"{engine} can't be started here, not installed: {', '.join(missing)}; see `make cluster`")
    if "cluster" not in config.getoption("markexpr"):
        pytest.skip(f"{engine} is here, and `make cluster` starts it")


def folders(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.rglob(files.CONFIG))


def under_way(out: Path) -> list[Path]:
    """The folders of the runs that have recorded something and are not done."""
    return [
        folder
        for folder in folders(out)
        if (folder / files.METRICS).exists()
        and (folder / files.METRICS).stat().st_size
        and not (folder / files.DONE).exists()
    ]


def wait_until(happened: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def assert_same_runs(out: Path, whole: Path) -> None:
    """All runs are done, and each has recorded what an uninterrupted one has, every task once."""
    assert [folder.name for folder in folders(out)] == [folder.name for folder in folders(whole)]
    for ours, theirs in zip(folders(out), folders(whole), strict=True):
        assert (ours / files.DONE).exists()
        assert (ours / files.METRICS).read_bytes() == (theirs / files.METRICS).read_bytes()
        tasks = [json.loads(line)["task"] for line in (ours / files.METRICS).read_text(encoding="utf-8").splitlines()]
        assert tasks == list(range(1, len(tasks) + 1))


def times_started(folder: Path) -> int:
    return (folder / files.OUTPUT).read_text(encoding="utf-8").count("$ python -m experiments")
