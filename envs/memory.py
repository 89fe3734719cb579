"""How much memory the host has free, so that what would not fit is refused before it is read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def host_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what Linux says can be had without swapping, within control groups' limits (a container's, a SLURM job's).

    Args:
        proc: where the system tells of its memory and of this process.
        groups: where the control groups are.

    Returns:
        Bytes; None where nobody tells.
    """
    try:
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text(encoding="utf-8").splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    return min([available, *_left_by_groups(proc, groups)])


def _left_by_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What this process's control group leaves, and each one around it: those that tell, of either version."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
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
                limit, used = (int((root / level / name).read_text(encoding="utf-8")) for name in names)
                stat = dict(
                    line.split() for line in (root / level / "memory.stat").read_text(encoding="utf-8").splitlines()
                )
                # Files that were written or read lately count as used, but give way: a checkpoint, for one.
                yield limit - used + sum(int(stat[f"{prefix}{kind}_file"]) for kind in ("inactive", "active"))
