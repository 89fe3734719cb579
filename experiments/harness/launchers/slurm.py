"""An array of SLURM jobs, through submitit; a job that is preempted, or whose time is over, is queued again.

SLURM says so beforehand: with SIGUSR2 (`sbatch --signal`), on which submitit asks us for a checkpoint and queues the
job anew, or, on a cluster without that, with SIGTERM, after which SLURM queues it itself.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.harness.cores import LIMIT
from experiments.harness.errors import UserError
from experiments.harness.jobs import STOPPED, Job, Started, look, settle, start, tell
from experiments.harness.launchers import Options

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_SECONDS_TO_SAVE = 120
_POLL_SECONDS = 0.2


def launch(jobs: Sequence[Job], options: Options) -> None:
    """Submits the jobs and returns.

    Raises:
        UserError: SLURM is not there, or refuses.
    """
    import submitit  # the extra `slurm`

    logs = jobs[0].folders[0].parents[1] / "slurm"
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster="slurm", slurm_max_num_timeout=options.retries)
    except RuntimeError as error:
        raise UserError(f"--launcher slurm: {error}") from None
    given = [option.partition("=") for option in options.sbatch]
    more = {name: value if equals else True for name, equals, value in given}  # True: a flag, such as exclusive
    executor.update_parameters(
        name="nap-sweep",
        timeout_min=options.minutes,
        cpus_per_task=options.cpus,
        slurm_signal_delay_s=_SECONDS_TO_SAVE,
        slurm_additional_parameters={"requeue": True, **more},
        **({"slurm_partition": options.partition} if options.partition else {}),
        **({"gpus_per_node": options.gpus} if options.gpus else {}),
        **({"mem_gb": options.memory_gb} if options.memory_gb else {}),
        **({"slurm_array_parallelism": options.workers} if options.workers else {}),
    )
    try:
        submitted = executor.map_array(Task(options.cpus), jobs)
    except submitit.core.utils.FailedJobError as error:
        raise UserError(f"--launcher slurm: {error}") from None
    ids = dict.fromkeys(job.job_id.partition("_")[0] for job in submitted)
    print(f"submitted to SLURM: {len(jobs)} jobs, {', '.join(ids)}; their logs: {logs}", file=sys.stderr)


class Task:
    """What SLURM runs: a job in a process of its own, on `cpus` cores. As it has `checkpoint`, submitit requeues it."""

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._started: Started | None = None

    def __call__(self, job: Job) -> None:
        """Runs the job to its end. Raises RuntimeError where it failed, so that SLURM shows it as failed."""
        while look(job).state in ("waiting", "failed"):  # another process may have it, if it was submitted twice
            self._started = start(job, {LIMIT: str(self._cpus)})  # not all clusters keep it to them
            if settle(self._started) not in STOPPED:
                break
            time.sleep(_SECONDS_TO_SAVE)  # SLURM has stopped it and is about to end this job
        tell(job)
        state, reason = look(job)
        if state == "failed":
            raise RuntimeError(reason)

    def checkpoint(self, job: Job) -> "DelayedSubmission":
        """Stops the job's process, which saves, and gives what is to be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._started is not None:
            process = self._started.process
            process.terminate()
            deadline = time.monotonic() + 0.8 * _SECONDS_TO_SAVE
            while _is_running(process.pid) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        return DelayedSubmission(Task(self._cpus), job)


def _is_running(process_id: int) -> bool:
    # Leaves the exit code to `__call__`, in the middle of which the signal has come.
    return os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
