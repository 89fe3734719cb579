"""Commands as tests type them, how tests stop their runs, and what these leave in the folders."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from experiments import harness


def typed(options: Mapping[str, Any]) -> list[str]:
    """Options and their values as arguments; a tuple has several values, and "_" in a name stands for "-"."""
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in options.items()}
    return [word for name, of in values.items() for word in (f"--{name.replace('_', '-')}", *map(str, of))]


def completed(arguments: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """The arguments, behind those options that they do not set themselves."""
    left = {name: value for name, value in options.items() if f"--{name.replace('_', '-')}" not in arguments}
    return [*typed(left), *arguments]


def folders_in(out: Path) -> list[Path]:
    """The folders of all runs."""
    return sorted(path.parent for path in out.rglob("config.json"))


def folder_in(out: Path) -> Path:
    """The folder of the only run."""
    (folder,) = folders_in(out)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """What was run."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]


def rows(folder: Path, phase: str | None = None) -> list[dict[str, Any]]:
    """All records of a run, or those of a phase."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in found if phase in (None, row["phase"])]


def unseal(folder: Path) -> None:
    """Makes a run's folder one of an earlier version, whose files had no checksums: a test may change them."""
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in about.items() if name not in ("hash", "saved")}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if (folder / "DONE").exists():
        (folder / "DONE").write_bytes(b"")


def written(folder: Path) -> list[bytes]:
    """What an interrupted run and the uninterrupted one have in common to the last bit."""
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "summary.json")]


@contextlib.contextmanager
def stopped(patch: pytest.MonkeyPatch, loop: ModuleType, when: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Runs whose loop is in a module save whenever they may, and stop behind the first save at which `when()` holds."""

    def interrupt(run: harness.Run) -> None:
        if not run.done and when():
            raise harness.Interrupted("stopped by the test")

    with patch.context() as patched:
        patched.setattr(loop, "SAVE_SECONDS", 0.0)
        patched.setattr(harness.Run, "check_interrupted", interrupt)
        yield
