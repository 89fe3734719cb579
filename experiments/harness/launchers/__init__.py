"""What runs the jobs of a study: thin adapters to engines that exist. Nothing is scheduled here.

A launcher is a module with a function `launch(jobs, options)`, which returns when all jobs have ended or are submitted.
It can rely on every job being resumable, and on the lock of a run's folder: a job that is started twice runs once.
"""

import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from experiments.harness.bounds import at_least
from experiments.harness.errors import UserError
from experiments.harness.jobs import MOST_JOBS, Job

Name = Literal["here", "pool", "slurm", "ray"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the runs go, and what each of them gets there."""

    launcher: Name = "here"
    """here: one after another, in this process; pool: processes on this machine; slurm: an array of jobs, through
    submitit; ray: tasks."""
    workers: Annotated[int, at_least(0, most=MOST_JOBS)] = 0
    """At most so many runs at once. 0: pool: one a GPU, or one a core where there is no GPU; slurm: no limit."""
    cpus: Annotated[int, at_least(1)] = 1
    """Cores of a run (slurm, ray)."""
    gpus: Annotated[int, at_least(0)] = 0
    """GPUs of a run (slurm, ray)."""
    memory_gb: Annotated[int, at_least(0)] = 0
    """Memory of a run (slurm, ray); 0: the cluster's default."""
    minutes: Annotated[int, at_least(1)] = 1440
    """Time limit of a job (slurm). A run that needs longer is queued again, and goes on."""
    partition: str = ""
    """The partition (slurm)."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch (slurm): account=vision qos=low exclusive."""
    address: str = ""
    """A cluster's address (ray), auto for the one that this machine is part of; by default one is started here."""
    retries: Annotated[int, at_least(0)] = 10
    """How often a run goes on after its machine died (ray) or its time was over (slurm)."""


class Launcher(NamedTuple):
    """What a launcher needs.

    Attributes:
        uses: the options that mean something to it.
        package: what must be installed, by the extra of the launcher's name; empty for none.
    """

    uses: frozenset[str] = frozenset()
    package: str = ""


_RESOURCES = frozenset({"cpus", "gpus", "memory_gb", "retries"})

LAUNCHERS: Mapping[Name, Launcher] = MappingProxyType(
    {
        "here": Launcher(),
        "pool": Launcher(frozenset({"workers"})),
        "slurm": Launcher(_RESOURCES | {"workers", "minutes", "partition", "sbatch"}, "submitit"),
        "ray": Launcher(_RESOURCES | {"address"}, "ray"),
    }
)


def check(options: Options) -> None:
    """Refuses options that the launcher has no use for, and those of sbatch that would take away what it relies on.

    Raises:
        UserError: there are some, or what the launcher needs is not installed.
    """
    name = options.launcher
    launcher = LAUNCHERS[name]
    for field in dataclasses.fields(options):
        value, option = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        users = [other for other, of in LAUNCHERS.items() if field.name in of.uses]
        if field.name != "launcher" and value != field.default and name not in users:
            raise UserError(f"{option}: --launcher {name} has no use for it; it is for {' and '.join(users)}")
    for option in options.sbatch:
        _check_sbatch(option)
    if launcher.package and importlib.util.find_spec(launcher.package) is None:
        raise UserError(
            f"--launcher {name} needs {launcher.package}: pip install --constraint constraints.txt -e '.[{name}]'"
        )


_OURS = {"time": "--minutes sets it", "array": "the runs are the array, and --workers its limit"} | dict.fromkeys(
    ("signal", "requeue", "no-requeue", "output", "error", "wrap"), "a run relies on it to save, and to be queued again"
)
"""Options of sbatch that are set already, and why they have to stay."""


def _check_sbatch(option: str) -> None:
    name = option.partition("=")[0].replace("_", "-")
    if not re.fullmatch(r"[a-z][a-z-]*", name) or not option.isprintable():
        raise UserError(f"--sbatch {option!r}: it must be a long name of sbatch's, as exclusive or account=me")
    if name in _OURS:
        raise UserError(f"--sbatch {option}: {_OURS[name]}")


def launch(jobs: Sequence[Job], options: Options) -> None:
    """Hands the jobs to the launcher that `options` names."""
    importlib.import_module(f"experiments.harness.launchers.{options.launcher}").launch(jobs, options)
