"""Jobs: ordinary commands whose run folders are known beforehand and tell all there is to know about them.

    waiting   its run has not begun, or was stopped and will go on
    running   a process holds its folder
    done      the folder has `DONE`
    failed    the folder has `FAILED`, the reason in a line

`FAILED` is all that is written down beside the run's own files: by the process that started the job, when the job ends
with an exit code that is neither success nor a stop on demand. A run that begins again removes it.
"""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.harness import folder as files
from experiments.harness.command_line import RunOptions
from experiments.harness.errors import UserError
from experiments.harness.held import held_by, make
from experiments.harness.records import row_step
from experiments.harness.run import run_folder
from experiments.harness.storage import opened, read, write_atomically

State = Literal["done", "running", "failed", "waiting"]

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of a process that was asked to stop."""

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout: Python finds the experiments here, wherever a job is started."""

MOST_JOBS = 100_000
"""Of a study: all of them are planned, each folder by its name, before the first one starts."""
_TAIL_BYTES = 1 << 16
_POLL_SECONDS = 0.1


class Job(NamedTuple):
    """A command that makes one run, or a few that belong together.

    Attributes:
        argv: the arguments after `python -m experiments`.
        folders: of the runs that it makes, in their order, but for those that belong to another job of the study.
        directory: where the command is to be started.
    """

    argv: tuple[str, ...]
    folders: tuple[Path, ...]
    directory: Path = Path()

    @property
    def name(self) -> str:
        """What people call it: the name of its (first) folder."""
        return self.folders[0].name

    @property
    def command(self) -> str:
        """The command as it would be typed."""
        return shlex.join(["python", "-m", "experiments", *self.argv])


def job_of(
    experiment: str, argv: Sequence[str], configs: Iterable[Any], options: RunOptions, label: Callable[[Any], str]
) -> Job:
    """The job of a command.

    Args:
        experiment: the experiment's name.
        argv: the command's arguments.
        configs: the resolved configurations of the runs that it makes.
        options: its other options.
        label: of a run's folder, from its configuration.
    """
    folders = (run_folder(experiment, config, out=options.out, label=label(config)) for config in configs)
    return Job((experiment, *argv), tuple(folders))


def seeds_planned(config: Any, options: RunOptions) -> range:
    """The seeds of a command line that is to become jobs. Raises UserError where these are too many."""
    if options.seeds > MOST_JOBS:
        raise UserError(f"--seeds {options.seeds}: a sweep has at most {MOST_JOBS:,} runs")
    return range(config.seed, config.seed + options.seeds)


class Status(NamedTuple):
    """How a job is doing; `remark` is who runs it, or why it failed."""

    state: State
    remark: str = ""


def look(job: Job) -> Status:
    """A job's status, read from its folders alone."""
    statuses = [_look_at(folder) for folder in job.folders]
    for state in ("running", "failed", "waiting"):
        for status in statuses:
            if status.state == state:
                return status
    return Status("done")


def progress(job: Job) -> str:
    """How far a job is, by its last record: "24,000/48,000 frames"; empty where there is none yet."""
    done = [(folder / files.DONE).exists() for folder in job.folders]
    if all(done):
        return ""
    runs = f"run {done.count(True) + 1} of {len(done)}: " if len(done) > 1 else ""
    folder = job.folders[done.index(False)]
    try:
        about = json.loads(read(folder / files.CONFIG) or b"")
        reached = row_step(json.loads(_last_lines(folder / files.METRICS)[-1]))
        whole = f"/{about['total']:,.0f}" if about["total"] is not None else ""
        return f"{runs}{reached:,}{whole} {about['unit'].replace('_', ' ')}"
    except (OSError, ValueError, LookupError, TypeError):  # not begun, or being written, or of an older version
        return ""


class Started(NamedTuple):
    """A job's process; what it prints goes to `output.log` in the job's folder, from the byte `begin` on."""

    job: Job
    process: subprocess.Popen[bytes]
    begin: int


def start(job: Job, environment: Mapping[str, str] | None = None) -> Started:
    """Starts a job in a process of its own, which is told to stop when this one dies.

    Args:
        job: the job. Where another process holds its folder, it waits for that one's end.
        environment: variables to set beside this process's.
    """
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with _output(job) as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.harness.launchers.tied", *job.argv, "--wait"],
            cwd=job.directory,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for whoever started it, who passes it on
        )
        return Started(job, process, output.tell())


def settle(started: Started) -> int:
    """Waits for a job's process and writes down why it failed, if it did; returns the exit code."""
    while (exit_code := started.process.poll()) is None:  # not `wait`: a signal's handler may have to look, too
        time.sleep(_POLL_SECONDS)
    said = _last_lines(started.job.folders[0] / files.OUTPUT, started.begin)
    note(started.job, exit_code, said)
    return exit_code


def note(job: Job, exit_code: int, said: Sequence[str]) -> None:
    """Writes down why a job failed, if it did.

    Args:
        job: a job that has ended.
        exit_code: how; minus the signal's number, where one killed it.
        said: the last lines that it printed.
    """
    if exit_code in STOPPED or look(job).state in ("done", "running"):
        return
    folder = next(folder for folder in job.folders if not (folder / files.DONE).exists())
    write_atomically(folder / files.FAILED, _reason(exit_code, said) + "\n")


def forgive(job: Job) -> None:
    """Forgets that a job failed, so that it is run again."""
    for folder in job.folders:
        (folder / files.FAILED).unlink(missing_ok=True)


def tell(job: Job) -> None:
    """Prints on stderr how a job is doing now."""
    state, remark = look(job)
    print(f"{state}: {job.name}{remark and f' ({remark})'}", file=sys.stderr, flush=True)


def _look_at(folder: Path) -> Status:
    if (folder / files.DONE).exists():
        return Status("done")
    holder = held_by(folder)
    if holder is not None:
        return Status("running", holder)
    if (folder / files.DONE).exists():  # it ended just now
        return Status("done")
    failed = read(folder / files.FAILED)
    return Status("waiting") if failed is None else Status("failed", failed.decode(errors="replace").strip())


def _output(job: Job) -> io.FileIO:
    """The job's log, to be appended to, after a line with its command."""
    make(job.folders[0])
    output = io.FileIO(job.folders[0] / files.OUTPUT, "ab")
    output.write(f"$ {job.command}\n".encode())
    return output


def _last_lines(path: Path, begin: int = 0) -> list[str]:
    """The last whole lines of a file, of those after the byte `begin`."""
    with opened(path) as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return file.read().decode(errors="replace").rpartition("\n")[0].splitlines()


def _reason(exit_code: int, said: Sequence[str]) -> str:
    """Why a process failed, in a line: its error, or its exception, or the signal that killed it."""
    if exit_code < 0:
        guess = " (the machine's memory was full?)" if exit_code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-exit_code).name}{guess}"
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    if errors:
        return errors[-1]
    traces = [number for number, line in enumerate(said) if line.startswith("Traceback ")]
    after = said[traces[-1] + 1 :] if traces else []
    raised = [line for line in after if line.strip() and not line.startswith(" ")]
    return raised[0] if raised else f"exit code {exit_code}; see {files.OUTPUT}"
