"""How much memory the host has: what Linux tells, within the limits of control groups, in made-up trees."""

from pathlib import Path

import pytest

from envs import memory

FREE = 60_000 * 1024
NAMES = {
    "": ("memory.max", "memory.current", ""),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


def machine(tmp_path: Path, own_groups: str, levels: dict[str, tuple[object, int, int]]) -> int | None:
    """What is said to be free where the groups at these paths have a limit, a use, and this much of it page cache."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  80000 kB\nMemAvailable:  60000 kB\nSwapFree:  5 kB\n", encoding="utf-8")
    (proc / "self" / "cgroup").write_text(own_groups, encoding="utf-8")
    for path, (limit, used, cache) in levels.items():
        (groups / path).mkdir(parents=True, exist_ok=True)
        limit_file, used_file, prefix = NAMES[path.split("/")[0] if path.startswith("memory") else ""]
        (groups / path / limit_file).write_text(f"{limit}\n", encoding="utf-8")
        (groups / path / used_file).write_text(f"{used}\n", encoding="utf-8")
        # Version 1 tells of the group alone beside the sums, and the sums count.
        own = "inactive_file 1\nactive_file 1\n" if prefix else ""
        sums = f"{prefix}inactive_file {cache - 10}\n{prefix}active_file 10\n"
        (groups / path / "memory.stat").write_text(f"anon 7\n{own}{sums}file {used}\n", encoding="utf-8")
    return memory.host_bytes(proc, groups)


@pytest.mark.parametrize(
    ("own_groups", "levels", "free"),
    [
        ("0::/\n", {}, FREE),
        ("0::/\n", {"": (20_000, 19_000, 15_000)}, 16_000),  # the cache of a checkpoint gives way
        ("0::/\n", {"": ("max", 19_000, 15_000)}, FREE),
        ("0::/\n", {"": (FREE * 9, 19_000, 15_000)}, FREE),
        ("0::/job/step\n", {"job/step": (9_000, 5_000, 100), "job": ("max", 6_000, 100)}, 4_100),
        ("0::/job/step\n", {"job/step": ("max", 5_000, 100), "job": (9_000, 6_000, 100), "": (8_000, 20, 10)}, 3_100),
        ("0::/job\n", {"other": (9_000, 5_000, 100)}, FREE),
        ("0::/of/the/host\n", {"": (9_000, 5_000, 100)}, 4_100),  # a container has its own group at the root
        ("0::/../outside\n", {"": (9_000, 5_000, 100)}, 4_100),
        (
            "9:name=systemd:/elsewhere\n4:cpu,memory:/slurm/job\n1:cpuset:/slurm\n0::/\n",
            {"memory/slurm/job": (1 << 63, 5_000, 100), "memory/slurm": (9_000, 6_000, 500)},
            3_500,
        ),
        ("4:cpuset:/slurm\n", {"memory/slurm": (9_000, 6_000, 500)}, FREE),
    ],
)
def test_the_tightest_control_group_counts_without_its_page_cache(own_groups, levels, free, tmp_path):
    assert machine(tmp_path, own_groups, levels) == free


def test_a_system_that_tells_nothing(tmp_path):
    assert memory.host_bytes(tmp_path, tmp_path) is None
    (tmp_path / "meminfo").write_text("MemAvailable: 3 kB\n", encoding="utf-8")
    assert memory.host_bytes(tmp_path, tmp_path) == 3 * 1024
