"""How much memory there is, so that a run that can't fit is refused before it starts."""

import math
from pathlib import Path
from typing import Any

import jax

from experiments.harness.errors import UserError


def bytes_of(tree: Any) -> int:
    """Memory that the arrays of a pytree take, or the shapes that `jax.eval_shape` gave."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available_bytes(device: jax.Device) -> int | None:
    """Memory that arrays on this device may still take; None where nobody tells."""
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    if device.platform == "cpu":
        return _host_bytes()
    return None


def require_memory(what: str, needed: int, device: jax.Device, remedy: str) -> str:
    """A line that says what some things together need and what there is.

    Raises:
        UserError: it does not fit; with the remedy.
    """
    available = available_bytes(device)
    if available is not None and needed > available:
        raise UserError(
            f"{what} need {needed / 1e9:.2f} GB on {device}, and {available / 1e9:.2f} GB are free there; {remedy}"
        )
    free = "" if available is None else f" of {available / 1e9:.2f} GB free"
    return f"{what}: {needed / 1e9:.2f} GB{free} on {device}"


def _host_bytes() -> int | None:
    """What Linux says can be had without swapping, within a control group's limit (a container's or SLURM job's)."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(available, limit - used)
    except (OSError, ValueError):  # no limit ("max"), or another kind of control group
        return available
