"""What `make fuzz` throws at the experiments: tiny runs of each of them, hostile values, damaged files."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from run_folders import typed

from experiments import harness
from experiments.harness.catalogue import catalogue, dispatch

SECONDS = 20
"""Longer than this, without anything being trained, is a hang."""

GAMES = {
    "game": "catch", "frames": 1280, "iteration_frames": 640, "min_replay_frames": 256, "replay_capacity": 300,
    "num_envs": 2, "evaluation_episodes": 2, "batch_size": 8, "update_period": 4, "target_period": 16, "log_every": 10,
    "hidden": 8, "lr": 1e-3,
}  # fmt: skip
STREAM = {"data": "digits", "tasks": 2, "epochs": 2, "examples": 40, "batch_size": 10, "hidden": (8, 7)}

COMMANDS = {
    "atari": GAMES,
    "implicit-schedule": {name: value for name, value in GAMES.items() if name != "hidden"},
    "sequential-atari": {
        **{name: value for name, value in GAMES.items() if name != "game"},
        "tasks": "moving-goals-0,switching-dim", "passes": 1, "frames": 320, "iteration_frames": 160,
        "min_replay_frames": 64,
    },
    "pqn": {
        "game": "catch", "num_envs": 4, "steps": 4, "epochs": 2, "minibatches": 2, "hidden": 8, "stack": 1,
        "frames": 384, "iteration_frames": 192, "evaluation_episodes": 3, "log_every": 2, "lr": 0.01,
    },
    "plasticity": STREAM,
    "schedule-matching": {**STREAM, "epochs": 10, "lr": 0.5, "record_every": 20, "examples": 200, "batch_size": 20},
    "schedule-budgets": {"data": "digits", "hidden": 8, "updates": 30, "budgets": (0.1, 1.0)},
    "schedule-refinement": {"data": "digits", "hidden": 8, "updates": 20, "lr": 0.5, "peaks": (0.2, 1)},
    "river-valley": {"data": "digits", "hidden": 8, "bigram_tokens": 4, "budgets": (20, 40)},
    "images": {"updates": 8, "batch_size": 4, "evaluations": 2, "log_every": 3, "lr": 0.05, "network": "resnet-8"},
    "language": {
        "layers": 2, "width": 8, "heads": 2, "sequence": 8, "batch_size": 4, "updates": 6, "evaluations": 2,
        "log_every": 2, "lr": 0.01,
    },
}  # fmt: skip
"""A tiny run of each experiment, of about a second."""


class Ended(NamedTuple):
    """How a command ended."""

    exit_code: int
    out: str
    errors: str


def experiments() -> list[str]:
    """The commands that make runs."""
    return [name for name, entry in catalogue().items() if entry.plans]


def tools() -> list[str]:
    """The commands that do not."""
    return [name for name, entry in catalogue().items() if not entry.plans]


def command(experiment: str, data: Path, out: Path) -> list[str]:
    """The arguments of an experiment's tiny run, its name first."""
    files = {"images": ["--data", str(data / "stripes.npz")], "language": ["--text", str(data / "text.jsonl")]}
    return [experiment, *typed(COMMANDS[experiment]), *files.get(experiment, []), "--out", str(out)]


def make_data(folder: Path) -> None:
    """The files that the tiny runs of images and language read."""
    rng = np.random.default_rng(0)
    labels, test_labels = np.arange(20) % 3, np.arange(6) % 3
    np.savez(
        folder / "stripes.npz",
        train_images=rng.integers(0, 256, (20, 8, 8, 1), np.uint8), train_labels=labels,
        test_images=rng.integers(0, 256, (6, 8, 8, 1), np.uint8), test_labels=test_labels,
    )  # fmt: skip
    documents = ["the cat sat on the mat. " * 4, "a dog ran over the hill. " * 4, "the dog sat on the hill."]
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8"
    )


def options_of(name: str) -> list[str]:
    """The options of a command, as its help lists them."""
    ended = run([name, "--help"])
    return sorted(set(re.findall(r"^\W*(--[a-z][a-z0-9-]*)", ended.out, flags=re.MULTILINE)) - {"--help"})


def run(argv: list[str]) -> Ended:
    """`python -m experiments ARGV...`, in this process; an exception that gets out of it is the test's failure."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), limited():
        exit_code = dispatch(argv)
    return Ended(exit_code, out.getvalue(), errors.getvalue())


@contextlib.contextmanager
def limited(seconds: int = SECONDS) -> Iterator[None]:
    """Raises TimeoutError where its block takes longer."""

    def end(*_) -> None:
        raise TimeoutError(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_told_in_a_line(ended: Ended) -> bool:
    """Whether a command that did not succeed says why: in one line that begins with "error:", and not at length."""
    lines = [line for line in ended.errors.splitlines() if line.startswith("error:")]
    return len(lines) == 1 and 10 < len(lines[0]) < 1000 and "Traceback" not in ended.errors


@contextlib.contextmanager
def stopped_at_the_first_save() -> Iterator[None]:
    """Runs save whenever they may, and stop behind the first save."""

    def interrupt(run: harness.Run) -> None:
        if not run.done and run._saved:
            raise harness.Interrupted("stopped by the test")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(harness.Run, "save_due", lambda *_: True)
        patched.setattr(harness.Run, "check_interrupted", interrupt)
        yield


def truncate(path: Path, rng: np.random.Generator) -> None:
    """Leaves the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, rng: np.random.Generator) -> None:
    """Leaves nothing."""
    path.write_bytes(b"")


def flip(path: Path, rng: np.random.Generator) -> None:
    """Changes one bit of one byte."""
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(7))
    path.write_bytes(content)


def digit(path: Path, rng: np.random.Generator) -> None:
    """Changes one digit into another: what stays valid JSON."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    if places:
        place = places[rng.integers(len(places))]
        content[place] = ord("0") + (content[place] - ord("0") + 1 + int(rng.integers(8))) % 10
    path.write_bytes(content)


def duplicate(path: Path, rng: np.random.Generator) -> None:
    """Has the content twice."""
    path.write_bytes(path.read_bytes() * 2)


def delete(path: Path, rng: np.random.Generator) -> None:
    """Takes it away."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def directory(path: Path, rng: np.random.Generator) -> None:
    """Puts a folder in its place."""
    delete(path, rng)
    path.mkdir()


def fifo(path: Path, rng: np.random.Generator) -> None:
    """Puts a pipe in its place, which nobody writes to."""
    delete(path, rng)
    os.mkfifo(path)


def wrong_type(path: Path, rng: np.random.Generator) -> None:
    """Puts JSON of another type in its place."""
    path.write_text(str(rng.choice(["[1, 2]", "5", '"text"', "null", '{"a": {}}', "[" * 5000])), encoding="utf-8")


DAMAGES: tuple[Callable[[Path, np.random.Generator], None], ...] = (
    truncate, empty, flip, digit, duplicate, delete, directory, fifo, wrong_type,
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes | None]:
    """The bytes of every file under a folder, by its path there; None for what is no file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
