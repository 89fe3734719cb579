"""The cores that this process may use; a scheduler, a container or `taskset` can have made them fewer."""

import os

from experiments.harness.errors import UserError

LIMIT = "PJRT_NPROC"
"""The environment variable that says how many cores a process was given where nothing keeps it to them, as under Ray:
`cores_here` returns no more, and XLA starts no more threads on a CPU."""


def cores_here() -> list[int]:
    """Their numbers; at most as many as `LIMIT` says, where it is set. Raises UserError where it is no such number."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    given = os.environ.get(LIMIT)
    if not given:
        return cores
    try:
        limit = int(given)
    except ValueError:
        limit = 0
    if limit < 1:
        raise UserError(f"{LIMIT}={given}: it is a number of cores, at least 1; unset it for all {len(cores)}")
    return cores[:limit]
