"""How a pool divides a machine: cores and GPUs, a share for each of the jobs that run at once."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_NO_DEVICE = ("-1", "NoDevFiles")  # for none at all, as people and SLURM say it
_GPU_MEMORY = 0.9  # of a GPU, divided among the slots that share it


class Slot(NamedTuple):
    """What a job has while it runs."""

    cores: frozenset[int]
    environment: Mapping[str, str]


def slots_of(workers: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """Divides a machine.

    Args:
        workers: the number of slots; 0: one a GPU, or one a core where there is no GPU.
        cores: the cores' numbers.
        gpus: the GPUs' names, as in CUDA_VISIBLE_DEVICES.

    Returns:
        The slots: each with cores of its own, if there are enough, and with one GPU, shared if there are too few.
    """
    workers = workers or len(gpus) or len(cores)
    sharing = -(-workers // len(gpus)) if gpus else 0
    slots = []
    for number in range(workers):
        own = frozenset(cores[number::workers]) or frozenset([cores[number % len(cores)]])
        environment = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        if sharing > 1:
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{_GPU_MEMORY / sharing:.3f}"
        slots.append(Slot(own, environment))
    return slots


def gpus_here() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; JAX, which takes them, is not asked."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name not in _NO_DEVICE]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, encoding="utf-8", check=False)
    except OSError:
        return []
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(number) for number, line in enumerate(line for line in lines if line.startswith("GPU "))]


@contextlib.contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """A process started in here keeps to these cores; XLA makes as many threads as it has cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
