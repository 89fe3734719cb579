"""A state's files in a checkpoint: orbax's, through its v1 API, and one for each large array.

orbax notices a missing file but not a changed byte in an array, so every file has a checksum. Of a run of several
processes all leaves are written as large ones are: orbax would have each of them write, and they need not share a disk.
"""

import contextlib
import gc
import io
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness import large_arrays, storage
from experiments.harness.errors import Damaged, Unreadable, reason
from experiments.harness.processes import several

_ORBAX_ENDS_SECONDS = 5.0
_ORBAX_OPENS = 32
"""Files at once, for a small state. Where it can open fewer, it leaves tasks behind that complain at the exit."""


class Files(NamedTuple):
    """[size in bytes, CRC-32] of the files of a state."""

    by_orbax: dict[str, list[int]]  # by the path in its folder
    of_arrays: dict[str, list[int]]  # by the leaf's place

    @property
    def size(self) -> int:
        """How many bytes they take on disk."""
        return sum(size for size, _ in [*self.by_orbax.values(), *self.of_arrays.values()])


def write(folder: Path, state: Any) -> Files:
    """Writes a state into a folder that is not there yet, and into `arrays_beside(folder)`; waits for the disk.

    Args:
        folder: an absolute path.
        state: any pytree of JAX or NumPy arrays, typed PRNG keys, numbers, bools and strings.

    Raises:
        OSError: it cannot be written. A part may be there.
    """
    import jax
    from orbax.checkpoint import v1 as ocp

    leaves, structure = jax.tree.flatten(state)
    ours = [i for i, leaf in enumerate(leaves) if several() or large_arrays.is_large(leaf)]
    if len(ours) < len(leaves):
        writable = [0 if i in ours else _writable(leaf) for i, leaf in enumerate(leaves)]
        require_descriptors()
        try:
            with _quiet_orbax():
                ocp.save(str(folder), structure.unflatten(writable))
        except (ValueError, RuntimeError) as error:  # tensorstore's and its threads', for whatever the system refused
            raise OSError(f"orbax says {type(error).__name__}: {error}") from error
    if ours:
        arrays_beside(folder).mkdir()
    sums = dict(_sums(folder))
    return Files(sums, {str(i): large_arrays.write(arrays_beside(folder) / str(i), _numbers(leaves[i])) for i in ours})


def check(folder: Path, files: Mapping[str, list[int]]) -> None:
    """Compares orbax's files with their sizes and checksums; those of large arrays are compared as they are read.

    Raises:
        Damaged: one has changed, or is missing.
        Unreadable: one cannot be read.
    """
    for name, expected in files.items():
        try:
            found = storage.extent(folder / name)
        except FileNotFoundError:
            raise Damaged(f"its file {name} is missing") from None
        if found != expected:
            raise Damaged(f"its file {name} is damaged")


def read(folder: Path, at: Path, state: Any, arrays: Mapping[str, list[int]]) -> Any:
    """The state that `write` wrote, its files checked.

    Args:
        folder: where it lies.
        at: the same place, by the absolute path that orbax is to take.
        state: gives the structure, shapes, dtypes and devices to load into; its large arrays are given up.
        arrays: as `Files.of_arrays`.

    Raises:
        Damaged: the file of a large array has changed, or is missing.
        Unreadable: something cannot be read, or loaded though its checksums are right.
    """
    import jax
    from orbax.checkpoint import v1 as ocp

    leaves, structure = jax.tree.flatten(state)
    ours = {int(name): checksum for name, checksum in arrays.items()}
    try:
        require_descriptors()
        with _quiet_orbax(), _by_one_process():
            targets = [0 if i in ours else _target(leaf) for i, leaf in enumerate(leaves)]
            loaded = ocp.load(str(at), structure.unflatten(targets)) if len(ours) < len(leaves) else state
    except Exception as error:
        raise Unreadable(
            f"orbax cannot load {folder}, whose files are whole ({reason(error)}); nothing was changed; once it can, "
            "the same command goes on"
        ) from error
    found = jax.tree.leaves(loaded)
    for i, checksum in ours.items():
        found[i] = large_arrays.read(arrays_beside(folder) / str(i), _numbers_like(leaves[i]), checksum)
    return structure.unflatten(map(_as_before, leaves, found))


def require_descriptors() -> None:
    """Raises OSError where orbax could not open the files that it needs."""
    with contextlib.ExitStack() as opened:
        for _ in range(_ORBAX_OPENS):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def arrays_beside(folder: Path) -> Path:
    """The folder of the large arrays of a state that is in `folder`."""
    return folder.with_name(folder.name + ".arrays")


def describe(state: Any) -> dict[str, str]:
    """Each leaf's path, with its dtype and shape, or its type for a leaf that is no array."""
    import jax

    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else type(leaf).__name__
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }


def is_key(leaf: Any) -> bool:
    """Whether a leaf has typed random keys, which orbax knows and a file of plain bytes does not."""
    import jax

    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def typed_like(leaf: Any, loaded: Any) -> Any:
    """A loaded array, weakly typed where the leaf is: it promotes differently, and may change the precision."""
    import jax.numpy as jnp

    if getattr(leaf, "weak_type", False) and not loaded.weak_type:
        return jnp.full(loaded.shape, loaded.dtype.type(0).item()).at[...].set(loaded)
    return loaded


def _sums(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Every file under a folder, by its path there, with its size in bytes and its CRC-32."""

    def refuse(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=refuse) if folder.exists() else ():
        for path in (Path(place, name) for name in names):
            with open(path, "rb") as file:
                yield path.relative_to(folder).as_posix(), storage.extent_of(file)


def _writable(leaf: Any) -> Any:
    """A leaf as orbax takes it: it refuses NumPy scalars and empty arrays."""
    import numpy as np

    if getattr(leaf, "size", 1) == 0:
        return 0
    return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf


def _target(leaf: Any) -> Any:
    """What orbax loads a leaf into: shape, dtype and placement of an array, without holding on to its buffer."""
    import jax

    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) and leaf.size:
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return _writable(leaf)


def _numbers(leaf: Any) -> Any:
    """An array as our own files take it. A large one stays on its device."""
    import jax
    import numpy as np

    numbers = jax.random.key_data(leaf) if is_key(leaf) else leaf
    return numbers if large_arrays.is_large(numbers) else np.asarray(numbers)


def _numbers_like(leaf: Any) -> Any:
    """What our own file of a leaf is read into."""
    import jax
    import numpy as np

    if is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return np.empty(leaf.shape, leaf.dtype) if isinstance(leaf, np.generic) or not leaf.size else leaf


def _as_before(leaf: Any, loaded: Any) -> Any:
    """A loaded leaf with what files do not keep: NumPy scalars, arrays without elements, random keys, weak types."""
    import jax
    import numpy as np

    if getattr(leaf, "size", 1) == 0:
        return leaf
    if isinstance(leaf, np.generic):
        return loaded[()]
    if is_key(leaf) and not is_key(loaded):
        return jax.device_put(jax.random.wrap_key_data(loaded, impl=jax.random.key_impl(leaf)), leaf.sharding)
    return typed_like(leaf, loaded)


def _by_one_process() -> contextlib.AbstractContextManager[Any]:
    """orbax as in a process that is alone: of several, the first one reads."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.multiprocessing.active_processes = {0}
    return context


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps back what orbax prints when it fails: tracebacks of its threads and tasks, some of them after it returned.

    The exception that it raises says enough. After one, its loggers stay quiet, and what it left running is waited for.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, threads = [logger.level for logger in loggers], set(threading.enumerate())
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except Exception:
            deadline = time.monotonic() + _ORBAX_ENDS_SECONDS
            while time.monotonic() < deadline and (late := set(threading.enumerate()) - threads):
                late.pop().join(_ORBAX_ENDS_SECONDS / 50)
            gc.collect()  # a task that failed unheard says so when it is collected
            raise
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
