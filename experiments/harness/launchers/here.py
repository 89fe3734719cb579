"""One job after another, in this process: nothing starts anew, and a debugger works."""

import contextlib
import io
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from experiments.harness.catalogue import dispatch
from experiments.harness.errors import Interrupted
from experiments.harness.jobs import STOPPED, Job, look, note, tell
from experiments.harness.launchers import Options


def launch(jobs: Sequence[Job], options: Options) -> None:
    """Runs the jobs."""
    for number, job in enumerate(jobs, start=1):
        if look(job).state in ("waiting", "failed"):  # by now another process may have it
            print(f"[{number}/{len(jobs)}] {job.command}", file=sys.stderr)
            exit_code, said = _run(job)
            note(job, exit_code, said)
            if exit_code in STOPPED:
                raise Interrupted("the sweep is stopped; the same command goes on", exit_code - 128)
        tell(job)


def _run(job: Job) -> tuple[int, list[str]]:
    """The exit code, and what was said on stderr. What goes to stdout is about this one run only, and is not shown."""
    said: Any = _Heard()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            exit_code = dispatch([*job.argv, "--wait"])
        except Exception:
            traceback.print_exc()
            exit_code = 1
    return exit_code, said.text.getvalue().splitlines()


class _Heard:
    """The standard error stream, which keeps what is written to it."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self.text = io.StringIO()

    def write(self, text: str) -> int:
        self.text.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
