"""What every experiment shares: run folders, records, checkpoints, progress, the command line, the report."""

from experiments.harness.catalogue import dispatch
from experiments.harness.command_line import (
    RunOptions,
    each_alone,
    exit_code_of,
    parse_command,
    parse_options,
    print_error,
    run_command,
)
from experiments.harness.compilation import enable_compilation_cache
from experiments.harness.ending import tell_end
from experiments.harness.errors import DiskFull, Interrupted, NonFinite, RunStopped, UserError, unknown
from experiments.harness.identity import config_hash
from experiments.harness.jobs import Job, job_of, seeds_planned
from experiments.harness.run import Run, open_run, run_folder

__all__ = [
    "DiskFull",
    "Interrupted",
    "Job",
    "NonFinite",
    "Run",
    "RunOptions",
    "RunStopped",
    "UserError",
    "config_hash",
    "dispatch",
    "each_alone",
    "enable_compilation_cache",
    "exit_code_of",
    "job_of",
    "open_run",
    "parse_command",
    "parse_options",
    "print_error",
    "run_command",
    "run_folder",
    "seeds_planned",
    "tell_end",
    "unknown",
]
