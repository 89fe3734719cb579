"""How every experiment ends: with what came out, where it lies, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path

from experiments.harness.folder import CONFIG
from experiments.harness.processes import writes


def tell_end(*folders: Path, result: str = "") -> None:
    """Prints the last line of runs that are finished, or were finished before: result, folder, next command.

    Args:
        folders: of the runs of one experiment, at least one.
        result: what came out, in words; if not given, what the records of a single run are judged by.
    """
    if not writes():
        return
    parent = folders[0].parent
    there = {path.parent.name for path in parent.glob(f"*/{CONFIG}")}
    drawn = [parent] if there <= {folder.name for folder in folders} or len(folders) == 1 else folders
    report = shlex.join(["python", "-m", "experiments", "report", *map(str, drawn)])
    where = folders[0] if len(folders) == 1 else parent
    print(f"done: {result or _result(folders)} · {where} · {report}", flush=True)


def _result(folders: tuple[Path, ...]) -> str:
    if len(folders) > 1:
        return f"{len(folders)} runs"
    # polars, which nothing of the run needed
    from experiments.harness.finals import in_words
    from experiments.harness.read import load_runs

    return in_words(load_runs(folders))
