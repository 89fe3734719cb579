"""Several processes (hosts) that make one run together: the first alone writes its folder, and all decide alike.

Each runs the same program, call for call, and waits for the others wherever they compute something together. So what
one of them learns alone (a signal, what a file holds, an error) must reach all at the same call. In a run of a single
process, all that is here returns at once.

    join("node1:9876", processes=2, process=0)  # before JAX is used
    data = together(lambda: load(name))  # all go on, or none
    summary = in_first(lambda: json.loads(path.read_text()))  # in all, where one has the file
"""

import json
import pickle
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from experiments.harness.errors import RunStopped, UserError
from experiments.harness.identity import difference

if TYPE_CHECKING:
    import numpy as np

Result = TypeVar("Result")

AUTO = "auto"
"""The coordinator of processes that SLURM or Open MPI started: their environment tells all that `join` must know."""

_END_SECONDS = 30
"""All processes end within this time of each other. One that ends alone, by an error of its own, then ends them all."""
_LENGTH_BYTES, _SHORT_BYTES = 4, 1020
"""Of a message: its length, and as much of it as travels with that."""


def join(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several that run together. Call it before JAX is used; a second call changes nothing.

    It returns when all are there; where they are not within 5 minutes, JAX ends the process.

    Args:
        coordinator: host and port of process 0, "node1:9876", which the others must be able to reach; or `AUTO`. SLURM
            and Open MPI are then taken to have started a process for each GPU, and each one sees only its own. Where it
            is empty, this process stays alone.
        processes: how many there are; only with host and port.
        process: which one this is, from 0; only with host and port.

    Raises:
        UserError: with the option that is wrong: `--coordinator`, `--processes` or `--process`.
    """
    if coordinator in ("", AUTO):
        for option, value in (("--processes", processes), ("--process", process)):
            if value is not None:
                raise UserError(f"{option} {value}: it goes with --coordinator host:port, that of process 0")
        if not coordinator:
            return
    else:
        _check(coordinator, processes, process)
    import jax  # here and below: listing the experiments imports this file, and must stay quick

    if jax.distributed.is_initialized():
        return
    # SIGTERM is the run's to handle, and JAX would keep it to itself.
    jax.config.update("jax_enable_preemption_service", False)
    # On a CPU, computations that need nothing of each other would run at once, and their messages mix.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    where: dict[str, Any] = {}
    if coordinator != AUTO:
        where = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
        where["cluster_detection_method"] = "deactivate"  # else JAX leaves it a single GPU where it finds SLURM
    print(f"--coordinator {coordinator}: waiting until all processes are there", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(**where, shutdown_timeout_seconds=_END_SECONDS)
    except ValueError:  # JAX found none of the environments that it knows
        raise UserError(
            f"--coordinator {AUTO}: neither SLURM (srun) nor Open MPI (mpirun) started this process; give the "
            "host:port of process 0, --processes and --process"
        ) from None


def check_alone(coordinator: str) -> None:
    """Raises UserError, for `--coordinator`, where runs are planned: a sweep starts a single process for each."""
    if coordinator:
        raise UserError(f"--coordinator {coordinator}: a sweep starts one process a run; start those of a run by srun")


def several() -> bool:
    """Whether this process is one of several."""
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def writes() -> bool:
    """Whether this process is the first, which writes the run's folder."""
    import jax

    return not several() or jax.process_index() == 0


def together(action: Callable[[], Result]) -> Result:
    """Does something in every process. Where it fails in one, it fails in all.

    Raises:
        UserError, RunStopped: what `action` raised in the first process in which it did, raised in each.
    """
    if not several():
        return action()
    result, error = _attempt(action)
    for said in map(pickle.loads, _told(pickle.dumps(error))):
        if said is not None:
            raise said
    return result


def in_first(action: Callable[[], Result], same: Mapping[str, Any] | None = None) -> Result:
    """Does something in the first process only.

    Args:
        action: what is done there.
        same: plain values that must be equal in all processes, as what they compute is wrong where they are not. They
            are compared on the way, and `action` done in any case.

    Returns:
        What `action` returned there, in all: something that can be pickled.

    Raises:
        UserError, RunStopped: what `action` raised there, in all.
        UserError: `same` is not equal in all; raised in all.
    """
    if not several():
        return action()
    own = dict(same or {})
    digest = zlib.crc32(json.dumps(own, sort_keys=True).encode())
    told = [pickle.loads(said) for said in _told(pickle.dumps((digest, _attempt(action) if writes() else None)))]
    if any(other != digest for other, _ in told):
        first, *others = map(pickle.loads, _told(pickle.dumps(own)))
        changes = {process: difference(first, other) for process, other in enumerate(others, start=1)}
        process, change = next((process, change) for process, change in changes.items() if change is not None)
        raise UserError(f"process 0 (there) and process {process} (here) do not run the same: {change}")
    result, error = told[0][1]
    if error is not None:
        raise error
    return result


class Asked:
    """What any process asks for reaches all at the same call: one call late, so that none has to wait for it."""

    def __init__(self) -> None:
        self._answer: Any = None  # on its way
        self._most: Callable[[Any], Any] | None = None

    def most(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each number that the processes gave, this time where there is one, else the last time."""
        if not several():
            return numbers
        import numpy as np

        self._most = self._most or _largest()
        last, self._answer = self._answer, self._most(np.array(numbers, np.int32))
        return (0,) * len(numbers) if last is None else tuple(np.asarray(last).tolist())


def _check(coordinator: str, processes: int | None, process: int | None) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator {coordinator}: it must be {AUTO}, or host:port of process 0, as node1:9876")
    if processes is None or processes < 1:
        raise UserError(f"--processes {processes}: with --coordinator {coordinator} it must be at least 1")
    if process is None or not 0 <= process < processes:
        raise UserError(f"--process {process}: it must lie in 0 to {processes - 1}, for --processes {processes}")


def _attempt(action: Callable[[], Result]) -> tuple[Any, UserError | RunStopped | None]:
    try:
        return action(), None
    except (UserError, RunStopped) as error:
        return None, error


def _told(own: bytes) -> list[bytes]:
    """What each process has to say: a short message travels with its length, the rest of longer ones behind that."""
    heads = _gathered(len(own).to_bytes(_LENGTH_BYTES, "big") + own[:_SHORT_BYTES], _LENGTH_BYTES + _SHORT_BYTES)
    lengths = [int.from_bytes(head[:_LENGTH_BYTES], "big") for head in heads]
    longest = max(lengths) - _SHORT_BYTES
    if longest <= 0:
        return [head[_LENGTH_BYTES : _LENGTH_BYTES + length] for head, length in zip(heads, lengths, strict=True)]
    rests = _gathered(own[_SHORT_BYTES:], 1 << longest.bit_length())  # each size is compiled anew
    return [(head[_LENGTH_BYTES:] + rest)[:length] for head, rest, length in zip(heads, rests, lengths, strict=True)]


def _gathered(own: bytes, size: int) -> list[bytes]:
    """The bytes of each process, filled up to a size."""
    import numpy as np
    from jax.experimental import multihost_utils

    filled = np.frombuffer(own.ljust(size, b"\0"), np.uint8)
    return [row.tobytes() for row in multihost_utils.process_allgather(filled)]


def _largest() -> Callable[["np.ndarray"], Any]:
    """(this process's numbers) -> the largest of each in all, on their way."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments.harness.mesh import batch_of, make_mesh, replicated

    mesh = make_mesh()
    over_devices = jax.jit(lambda rows: jnp.max(rows, axis=0), out_shardings=replicated(mesh))
    return lambda numbers: over_devices(batch_of(np.tile(numbers, (len(mesh.local_devices), 1)), mesh))
