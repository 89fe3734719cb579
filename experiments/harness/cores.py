"""The cores that this process may use; a scheduler, a container or `taskset` can have made them fewer."""

import os


def cores_here() -> list[int]:
    """Their numbers."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
