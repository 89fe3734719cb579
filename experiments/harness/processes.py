"""Several processes (hosts) that make one run together: the first alone writes its folder, and all decide alike.

Each runs the same program, call for call, and waits for the others wherever they compute something together. So what
one of them learns alone (a signal, what a file holds, an error) must reach all at the same call. In a run of a single
process, all that is here returns at once.

    join("node1:9876", processes=2, process=0)  # before JAX is used
    data = together(lambda: load(name))  # all go on, or none
    summary = in_first(lambda: json.loads(path.read_text()))  # in all, where one has the file
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from experiments.harness.errors import Interrupted, RunStopped, UserError
from experiments.harness.identity import difference

if TYPE_CHECKING:
    import numpy as np

Result = TypeVar("Result")
Failure = TypeVar("Failure", bound=BaseException)

AUTO = "auto"
"""The coordinator of processes that SLURM or Open MPI started: their environment tells all that `join` must know."""

_END_SECONDS = 30
"""All processes end within this time of each other. One that ends alone, by an error of its own, then ends them all."""
_JOIN_SECONDS = 300
"""All processes begin within this time of each other."""
_FIND_SECONDS = 240
"""The first one of them within this."""
_MOMENT = 1.0
_LAST_PORT = 65535
_LENGTH_BYTES, _SHORT_BYTES = 4, 1020
"""Of a message: its length, and as much of it as travels with that."""

known_to_all: "weakref.WeakSet[BaseException]" = weakref.WeakSet()
"""Errors that all processes raise at the same call: nobody has to be told of them."""


def join(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several that run together. Call it before JAX is used; a second call changes nothing.

    It returns when all are there; where they are not within 5 minutes, the process ends.

    Args:
        coordinator: host and port of process 0, "node1:9876", which the others must be able to reach; or `AUTO`. SLURM
            and Open MPI are then taken to have started a process for each GPU, and each one sees only its own. Where it
            is empty, this process stays alone.
        processes: how many there are; only with host and port.
        process: which one this is, from 0; only with host and port.

    Raises:
        UserError: with the option that is wrong: `--coordinator`, `--processes` or `--process`; or process 0 cannot be
            reached, or its port is taken.
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
    timeouts = {"initialization_timeout": 2 * _JOIN_SECONDS, "shutdown_timeout_seconds": _END_SECONDS}
    try:
        with _waiting_for_all(coordinator):
            if coordinator != AUTO:
                _find(coordinator, process)
            jax.distributed.initialize(**where, **timeouts)
    except UserError:
        raise
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
        UserError, RunStopped: what `action` raised in the first process in which it did, raised in each. Of something
            unexpected the others raise a RunStopped that says where it was.
    """
    if not several():
        return action()
    import jax

    result, error = _attempt(action)
    for process, words in enumerate(_told(_in_words(error))):
        if words is not None:
            raise _of_words(words) if error is None or process != jax.process_index() else _known(error)
    return result


def in_first(action: Callable[[], Result], same: Mapping[str, Any] | None = None) -> Result:
    """Does something in the first process only.

    Args:
        action: what is done there.
        same: plain values that must be equal in all processes, as what they compute is wrong where they are not. They
            are compared on the way, and `action` done in any case.

    Returns:
        What `action` returned there, in all: plain JSON values, so that no process runs what another one sends it. Of
        several processes, each gets lists for tuples.

    Raises:
        UserError, RunStopped: what `action` raised there, in all; see `together`.
        UserError: `same` is not equal in all; raised in all.
    """
    if not several():
        return action()
    own = dict(same or {})
    digest = zlib.crc32(json.dumps(own, sort_keys=True).encode())
    result, error = _attempt(lambda: json.dumps(action())) if writes() else (None, None)
    told = _told([digest, result, _in_words(error)])
    if any(other != digest for other, _, _ in told):
        first, *others = _told(own)
        changes = {process: difference(first, other) for process, other in enumerate(others, start=1)}
        process, change = next((process, change) for process, change in changes.items() if change is not None)
        raise _known(UserError(f"process 0 (there) and process {process} (here) do not run the same: {change}"))
    _, result, words = told[0]
    if words is not None:
        raise _of_words(words) if error is None else _known(error)
    return json.loads(result)


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
    if not host or not port.isdecimal() or not 0 < int(port) <= _LAST_PORT:
        raise UserError(f"--coordinator {coordinator}: it must be {AUTO}, or host:port of process 0, as node1:9876")
    if processes is None or processes < 1:
        raise UserError(f"--processes {processes}: with --coordinator {coordinator} it must be at least 1")
    if process is None or not 0 <= process < processes:
        raise UserError(f"--process {process}: it must lie in 0 to {processes - 1}, for --processes {processes}")


def _find(coordinator: str, process: int | None) -> None:
    """Waits until process 0 can be reached; in process 0, checks that it can be. JAX would end the process otherwise.

    Raises:
        UserError: for `--coordinator`.
    """
    host, _, port = coordinator.rpartition(":")
    try:
        if process == 0:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            socket.create_server(("", int(port)), family=family, dualstack_ipv6=both).close()
        else:
            _connect((host.strip("[]"), int(port)))
    except OSError as error:
        what = f"port {port} is not free here" if process == 0 else f"process 0 is not there after {_FIND_SECONDS} s"
        raise UserError(f"--coordinator {coordinator}: {what} ({error.strerror or error})") from None


def _connect(address: tuple[str, int]) -> None:
    """Returns when something listens at the address. Raises OSError where nothing does for long."""
    deadline = time.monotonic() + _FIND_SECONDS
    while True:
        try:
            socket.create_connection(address, timeout=_FIND_SECONDS).close()
            return
        except OSError:  # it does not listen yet, or the name is not known yet, as of a container that is being started
            if time.monotonic() > deadline:
                raise
        time.sleep(_MOMENT)


@contextlib.contextmanager
def _waiting_for_all(coordinator: str) -> Iterator[None]:
    """Says that it is being waited for the others, if it is, and ends the process where that takes too long."""

    def say() -> None:
        print(f"--coordinator {coordinator}: waiting until all processes are there", file=sys.stderr, flush=True)

    def give_up() -> None:  # JAX, inside which this process waits, would end it by a signal
        line = f"error: --coordinator {coordinator}: not all processes were there after {_JOIN_SECONDS} s"
        print(line, file=sys.stderr, flush=True)
        os._exit(UserError.exit_code)

    timers = [threading.Timer(_MOMENT, say), threading.Timer(_JOIN_SECONDS, give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _attempt(action: Callable[[], Result]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


def _in_words(error: Exception | None) -> list[Any] | None:
    """An error as plain values: its class, where that is one of ours, the line that it shows, its exit code."""
    if error is None:
        return None
    if not isinstance(error, (UserError, RunStopped)):
        import jax

        error = RunStopped(f"in process {jax.process_index()}: {type(error).__name__}: {error}")
    return [type(error).__name__, str(error), error.exit_code]


def _of_words(words: Sequence[Any]) -> UserError | RunStopped:
    """The error of another process, to be raised here."""
    name, line, exit_code = words
    if name == Interrupted.__name__:
        return _known(Interrupted(line, exit_code - 128))
    kinds = {kind.__name__: kind for base in (UserError, RunStopped) for kind in (base, *_kinds(base))}
    return _known(kinds.get(name, UserError if exit_code == UserError.exit_code else RunStopped)(line))


def _kinds(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _known(error: Failure) -> Failure:
    with contextlib.suppress(TypeError):  # one of Python's own, which cannot be in a weak set
        known_to_all.add(error)
    return error


def _told(own: Any) -> list[Any]:
    """What each process has to say, in plain values."""
    return [json.loads(said) for said in _sent(json.dumps(own).encode())]


def _sent(own: bytes) -> list[bytes]:
    """The message of each process: a short one travels with its length, the rest of longer ones behind that."""
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
