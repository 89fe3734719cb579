"""Runs of a few records each, which tests make, stop and damage in their own process."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import counter

from experiments import harness


def run_until(
    out: Path, iterations: int = 3, do: Callable[[Path], object] = lambda folder: None, finish: bool = True, **options
) -> Path:
    """A run that saves after each iteration, of two records; `do(folder)` is done before the last one."""
    fresh = options.pop("fresh", False)
    with harness.open_run("counter", counter.Config(), harness.RunOptions(out=out, fresh=fresh), **options) as run:
        if run.done:
            return run.folder
        begun, _ = run.restore({"count": 0})
        for iteration in range(begun, iterations):
            if iteration == iterations - 1:
                do(run.folder)
            for row in range(2):
                run.record({"iteration": iteration, "updates": 2 * iteration + row, "loss": 0.5})
            run.record_timing({"iteration": iteration})
            run.save(iteration + 1, {"count": iteration + 1})
        if finish:
            run.finish({"count": iterations})
        return run.folder


def exit_code(out: Path, **options) -> int:
    """The exit code of the command that makes the run, or goes on with it; its error is on stderr."""

    def command() -> None:
        run_until(out, **options)

    return harness.exit_code_of(command)


def folder_in(out: Path) -> Path:
    """The folder of the only run."""
    (folder,) = (out / "counter").iterdir()
    return folder


def records(folder: Path) -> list[int]:
    """The updates of all records."""
    return [json.loads(line)["updates"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes | None]:
    """What the run wrote, but for its lock: each file's bytes, by its path; None for what is no file."""
    paths = sorted(path for path in folder.rglob("*") if path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def copy_of(folder: Path, out: Path) -> Path:
    """The folder of a run, to be gone on with or harmed under `out`."""
    return shutil.copytree(folder, out / "counter" / folder.name)


def assert_equal(folder: Path, whole: Path) -> None:
    """The run has ended as the uninterrupted one has."""
    for name in ("metrics.jsonl", "summary.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert (folder / "DONE").exists()


def flip(path: Path, place: float = 0.5) -> None:
    """Changes a bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def be_replaced(path: Path, make: Callable[[Path], object]) -> None:
    """Puts something else in the place of a file."""
    path.unlink()
    make(path)


HARMS = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flip": flip,
    "twice": lambda path: path.write_bytes(2 * path.read_bytes()),
    "list": lambda path: path.write_bytes(b"[]"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00\xd8x"),
    "missing": Path.unlink,
    "folder": lambda path: be_replaced(path, Path.mkdir),
    "pipe": lambda path: be_replaced(path, os.mkfifo),
    "dangling": lambda path: be_replaced(path, lambda path: path.symlink_to("/nowhere/at/all")),
}
"""What may become of a file, by name."""
