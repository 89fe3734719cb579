"""How much memory there is, so that a run that can't fit is refused before it starts."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.harness.errors import UserError


def bytes_of(tree: Any) -> int:
    """Memory that the arrays of a pytree take, or the shapes that `jax.eval_shape` gave."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available_bytes(device: jax.Device | None) -> int | None:
    """Memory that arrays on this device, or on the host (None), may still take; None where nobody tells."""
    if device is None:
        return _host_bytes()
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    if device.platform == "cpu":
        return _host_bytes()
    return None


def require_memory(parts: Mapping[str, int], device: jax.Device | None, remedy: str | Callable[[int], str]) -> str:
    """A line that says what each part needs, in bytes, and what there is.

    Args:
        parts: the bytes of each.
        device: where they must fit; None: in the host's memory.
        remedy: what is said if they do not; or a function that says it, of the bytes that there are.

    Raises:
        UserError: all together do not fit; with the remedy.
    """
    each, needed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items()), sum(parts.values())
    available, device = available_bytes(device), device or "the host"
    if available is not None and needed > available:
        there = f"{needed / 1e9:.2f} GB on {device}, and {available / 1e9:.2f} GB are free there"
        said = remedy if isinstance(remedy, str) else remedy(available)
        raise UserError(f"{each}: they need {there}; {said}")
    free = "" if available is None else f", of {available / 1e9:.2f} GB free"
    return f"memory: {each}{free} on {device}"


def _host_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What Linux says can be had without swapping, within the control groups' limits (a container's or SLURM job's)."""
    try:
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    return min([available, *_left_by_groups(proc, groups)])


def _left_by_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What this process's control group leaves, and each one around it: those that tell, of either version."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names, prefix = groups, ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):
            root, names, prefix = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"
        else:
            continue
        inside = Path(path.lstrip("/"))
        for level in (inside, *inside.parents):
            with contextlib.suppress(OSError, KeyError, ValueError):  # no limit ("max"), or a path from outside
                limit, used = (int((root / level / name).read_text()) for name in names)
                stat = dict(line.split() for line in (root / level / "memory.stat").read_text().splitlines())
                # Files that were written or read lately count as used, but give way: a checkpoint, for one.
                yield limit - used + sum(int(stat[f"{prefix}{kind}_file"]) for kind in ("inactive", "active"))
