"""Final scores of finished and running runs in a table: means over seeds with their intervals."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from experiments import harness


@dataclasses.dataclass(frozen=True)
class Options:
    """Which runs, and how they are grouped."""

    runs: tuple[Path, ...]
    """Run folders, or folders that hold some: runs/atari."""
    by: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting that makes a row of its own: lr, method, n-step, ...; may be given several times. If it is not given:
    the method, and all settings in which runs of one method differ."""
    csv: bool = False
    """Print comma-separated values, with every number, instead of a table for people."""


def main(argv: list[str]) -> int:
    """Prints the table; returns the exit code."""
    return harness.exit_code_of(lambda: _main(argv))


def _main(argv: list[str]) -> None:
    positional = Annotated[Options, tyro.conf.PositionalRequiredArgs]
    options = harness.parse_options(positional, argv, name="table", description=__doc__)
    # polars: not for --help
    from experiments.harness.read import load_runs
    from experiments.harness.table import as_frame, in_terminal, make_table

    table = make_table(load_runs(options.runs), options.by)
    print(as_frame(table).write_csv(), end="") if options.csv else print(in_terminal(table))
