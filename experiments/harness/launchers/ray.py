"""Ray tasks: on this machine, or on a cluster whose machines have the same files and Python in the same places.

Where a task's process or machine dies, Ray starts the task again, and the run goes on from its last checkpoint.
"""

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from experiments.harness.cores import LIMIT
from experiments.harness.errors import Interrupted, UserError
from experiments.harness.interrupt import InterruptFlag
from experiments.harness.jobs import ROOT, Job, look, note, settle, start, tell
from experiments.harness.launchers import Options

_SECONDS_TO_CONNECT = 10
_SECONDS_TO_SAVE = 120


def launch(jobs: Sequence[Job], options: Options) -> None:
    """Runs the jobs.

    Raises:
        Interrupted: SIGINT or SIGTERM came: the runs were asked to stop, and have.
        UserError: there is no cluster at the address.
    """
    import ray  # the extra `ray`

    host, _, port = options.address.rpartition(":")
    if port.isdecimal():
        try:  # Ray itself would try for a quarter of an hour
            socket.create_connection((host.removeprefix("ray://"), int(port)), _SECONDS_TO_CONNECT).close()
        except OSError as error:
            raise UserError(f"--address {options.address}: {error.strerror or error}; is Ray running there?") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    try:
        ray.init(
            options.address or "local",
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            log_to_driver=False,
            configure_logging=False,
        )
    except ConnectionError as error:
        raise UserError(f"--address {options.address}: {error}") from None
    needs: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": options.gpus, "max_retries": options.retries}
    if options.memory_gb:
        needs["memory"] = options.memory_gb << 30
    task = ray.remote(**needs)(_perform)
    try:
        with InterruptFlag() as interrupt:
            waiting = {task.remote(job, options.cpus): job for job in jobs}
            print(f"Ray has {len(jobs)} tasks and {ray.cluster_resources().get('CPU', 0):.0f} cores", file=sys.stderr)
            while waiting and not interrupt.received:
                for ended in ray.wait(list(waiting), timeout=1.0)[0]:
                    _settle(waiting.pop(ended), ended)
        if interrupt.received:
            for left in waiting:
                ray.cancel(left)
            ray.wait(list(waiting), num_returns=len(waiting), timeout=_SECONDS_TO_SAVE)
            raise Interrupted(f"stopped by {interrupt.received.name}; the same command goes on", interrupt.received)
    finally:
        ray.shutdown()


def _perform(job: Job, cpus: int) -> None:
    """The task: a job in a process of its own, on `cpus` cores. Only the job's folder tells of failures."""
    if look(job).state == "done":
        return
    started = start(job, {LIMIT: str(cpus)})  # Ray counts cores, and keeps nobody to them
    try:
        settle(started)
    except BaseException:  # a KeyboardInterrupt: the task is cancelled
        started.process.terminate()
        settle(started)
        raise


def _settle(job: Job, ended: Any) -> None:
    import ray

    try:
        ray.get(ended)
    except ray.exceptions.RayError as error:  # its machine died too often, or the task could not be started
        note(job, 1, [f"error: {' '.join(str(error).split())}"])
    tell(job)
