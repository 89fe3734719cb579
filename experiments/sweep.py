"""Run a study: a grid of an experiment's options, here, on all cores or GPUs, on a SLURM cluster, or on a Ray one.

    python -m experiments sweep STUDY.toml
    python -m experiments sweep atari --game pong --method none --method nap --seed 0 --seed 1 --launcher pool

A study is a file (see experiments/harness/study.py), or an experiment's command line on which repeated options are the
axes of a grid. Every run lies where the plain command would put it. So the same sweep again goes on: what is done is
not run again, what was stopped is resumed, and what another process runs is left to it.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from experiments import harness
from experiments.harness import launchers
from experiments.harness.ends import expected_end
from experiments.harness.grid import grouped, name_of
from experiments.harness.jobs import Job, State, Status, forgive, look, progress

_STYLES: Mapping[State, str] = {"done": "green", "running": "cyan", "failed": "red", "waiting": "dim"}
_WIDTH_OF_A_FILE = 10_000  # never wrapped
_LONGEST_TABLE = 200


@dataclasses.dataclass(frozen=True)
class Options:
    """What is to be done with a study, and where."""

    status: bool = False
    """Only show how its runs are doing."""
    dry_run: bool = False
    """Only print the commands of its runs."""
    retry_failed: bool = False
    """Run again what has failed."""
    launch: launchers.Options = dataclasses.field(default_factory=launchers.Options)


def main(argv: list[str]) -> int:
    """Run a study from the command line; returns the exit code, 1 where a run has failed."""
    return harness.exit_code_of(lambda: _main(argv))


def divide(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of a sweep, and all others, which are the experiment's."""
    fields = (*dataclasses.fields(Options), *dataclasses.fields(launchers.Options))
    names = {"--help", *(f"--{field.name.replace('_', '-')}" for field in fields)}
    mine: list[str] = []
    others: list[str] = []
    for words in grouped(argv):
        (mine if name_of(words) in names else others).extend(words)
    return mine, others


def table(jobs: Sequence[Job], statuses: Sequence[Status]) -> str:
    """How the jobs are doing, a row each, and a line with the counts, as text for the terminal or for a file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("run", "options of its own", "", "progress", "who, or why"):
        shown.add_column(column, overflow="fold")
    for job, own, (state, remark) in zip(jobs, _own_options(jobs), statuses, strict=True):
        if len(jobs) <= _LONGEST_TABLE or state in ("running", "failed"):
            shown.add_row(Text(job.name), Text(own), Text(state, _STYLES[state]), progress(job), Text(remark))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    with console.capture() as captured:
        console.print(shown)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([*lines, "", f"{len(jobs)} runs: {_counts(statuses)}"])


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h"):
        argv = ["STUDY", "--help"]
    if argv[0].startswith("-"):
        raise harness.UserError(f"{argv[0]}: the study comes first: python -m experiments sweep STUDY.toml {argv[0]}")
    mine, others = divide(argv[1:])
    options = harness.parse_options(Options, mine, name="sweep STUDY", description=__doc__, default=Options())
    launchers.check(options.launch)
    jobs = _plan(argv[0], others, options)
    if options.dry_run:
        print("\n".join(job.command for job in jobs))
        return 0
    statuses = [look(job) for job in jobs]
    if not options.status:
        again = ("waiting", "failed") if options.retry_failed else ("waiting",)
        unfinished = [job for job, status in zip(jobs, statuses, strict=True) if status.state in again]
        print(f"{len(jobs)} runs: {_counts(statuses)}; {len(unfinished)} to run", file=sys.stderr)
        for job in unfinished:
            forgive(job)
        if unfinished:
            launchers.launch(unfinished, options.launch)
        statuses = [look(job) for job in jobs]
    print(table(jobs, statuses))
    failed = any(status.state == "failed" for status in statuses)
    if failed and not options.retry_failed:
        print("what has failed is run again by --retry-failed", file=sys.stderr)
    return int(failed)


def _plan(study: str, argv: list[str], options: Options) -> list[Job]:
    if options.launch.launcher == "here" and not (options.status or options.dry_run):
        return _plan_here(study, argv)
    # To see that a run's parts fit, JAX builds them: elsewhere, lest it takes a GPU's memory from those who run on it,
    # or has threads by the time that Ray forks.
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, get_context("spawn"), _keep_to_the_cpu) as elsewhere:
        try:
            return elsewhere.submit(_plan_here, study, argv).result()
        except BrokenProcessPool:
            raise harness.RunStopped("the process that plans the runs was killed; too little memory?") from None


def _plan_here(study: str, argv: list[str]) -> list[Job]:
    """The jobs. Whether JAX can start is asked in this process: the one that started it need not have tried."""
    from experiments.harness.study import plan  # here, and below: not for --help

    try:
        return plan(study, argv)
    except Exception as error:
        if (end := expected_end(error)) is not None:
            raise end from None
        raise


def _keep_to_the_cpu() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"


def _own_options(jobs: Sequence[Job]) -> list[str]:
    """Of each job's options those that not all jobs have."""
    options = [[shlex.join(words) for words in grouped(job.argv[1:])] for job in jobs]
    shared = set(options[0]).intersection(*options)
    return [" ".join(words for words in own if words not in shared) for own in options]


def _counts(statuses: Sequence[Status]) -> str:
    """Such as "3 done, 1 running, 0 failed, 2 waiting"."""
    counts = collections.Counter(status.state for status in statuses)
    return ", ".join(f"{counts[state]} {state}" for state in _STYLES)
