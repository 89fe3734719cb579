"""Checkpoints that a run killed at any moment can trust: orbax's v1 API, with a checksum for every file.

`checkpoints/<iteration>/` is orbax's; `checkpoints/<iteration>.arrays/` has the large arrays, as a replay's frames. Of
a run of several processes it has all: orbax would have every process write, and they need not share a disk.
`checkpoints/<iteration>.json`, written last, tells that both are complete. It holds whose checkpoint this is, the marks
(how long the record files were), each leaf's shape and dtype, and the size and CRC-32 of every file, because orbax
notices a missing file but not a changed byte in an array.
"""

import contextlib
import gc
import io
import json
import logging
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness import large_arrays
from experiments.harness.errors import UserError
from experiments.harness.identity import difference
from experiments.harness.processes import several

_READ_BYTES = 1 << 20
_ORBAX_ENDS_SECONDS = 5.0


class Restored(NamedTuple):
    """What `Checkpoints.restore` found."""

    iteration: int  # 0 when there is no checkpoint
    state: Any
    marks: dict[str, int]  # as given to `save`; empty when there is no checkpoint
    passed_over: list[str]  # one sentence for each newer checkpoint that could not be used


class _Unusable(Exception):
    """Why one checkpoint cannot be used; the next older one may be."""


class Checkpoints:
    """The checkpoints of one run: the newest two are kept, so that a damaged one leaves one to go back to."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """`identity`: the experiment and plain configuration that every checkpoint here must be of."""
        self._folder, self._identity = folder.absolute(), dict(identity)  # orbax takes absolute paths only

    def path(self, iteration: int) -> Path:
        """The folder of the checkpoint taken after `iteration` iterations."""
        return self._folder / str(iteration)

    def iterations(self) -> list[int]:
        """The iterations with a completely written checkpoint, in rising order."""
        return sorted(int(path.stem) for path in self._folder.glob("*.json") if path.stem.isdecimal())

    def save(self, iteration: int, state: Any, marks: Mapping[str, int]) -> int:
        """Writes a checkpoint and, once it is complete, deletes all but it and the one before.

        It returns when everything is on disk. Saving in the background would read arrays that the caller's next
        jitted call may already have been given to overwrite (donated), or NumPy arrays that it changes in place.

        Args:
            iteration: how many iterations are done; it names the checkpoint.
            state: any pytree of JAX or NumPy arrays, typed PRNG keys, numbers, bools and strings.
            marks: whole numbers to get back with the state.

        Returns:
            How many bytes it takes on disk.

        Raises:
            OSError, ValueError: it cannot be written. The earlier checkpoints are untouched.
        """
        import jax
        from orbax.checkpoint import v1 as ocp

        folder = self.path(iteration)
        self._delete(iteration)  # what a killed process or a damaged disk left under this name
        self._folder.mkdir(parents=True, exist_ok=True)
        leaves, structure = jax.tree.flatten(state)
        ours = [i for i, leaf in enumerate(leaves) if several() or large_arrays.is_large(leaf)]
        try:
            if len(ours) < len(leaves):
                with _quiet_orbax():
                    writable = [0 if i in ours else _writable(leaf) for i, leaf in enumerate(leaves)]
                    ocp.save(str(folder), structure.unflatten(writable))
            if ours:
                _arrays(folder).mkdir()
            sums = _checksums(folder)
            arrays = {str(i): large_arrays.write(_arrays(folder) / str(i), _numbers(leaves[i])) for i in ours}
            content = {
                **self._identity,
                "iteration": iteration,
                "marks": dict(marks),
                "leaves": _describe(state),
                "files": sums,
                "arrays": arrays,
            }
            write_atomically(_commit(folder), json.dumps({"crc32": _crc32(content), "content": content}))
        except Exception:
            self._delete(iteration)  # what a full disk left of it only takes space
            raise
        older = [other for other in self.iterations() if other < iteration]
        self.keep_only({iteration, *older[-1:]})
        return sum(size for size, _ in [*sums.values(), *arrays.values()])

    def restore(self, state: Any, usable: Callable[[Mapping[str, int]], str | None]) -> Restored:
        """Loads the newest checkpoint that is whole.

        Args:
            state: a pytree of the structure, shapes, dtypes and devices to load into; its values are returned when
                there is no checkpoint, and its large arrays are given up when there is one.
                `jax.ShapeDtypeStruct` leaves will do where a checkpoint is sure to exist.
            usable: given a checkpoint's marks, says in words why it can not be resumed from, or None if it can.

        Returns:
            The iteration, the state, the marks and what was passed over.

        Raises:
            UserError: the newest whole checkpoint is of another configuration, or its leaves are not `state`'s; or
                there are checkpoints and none of them is whole.
        """
        from orbax.checkpoint import v1  # noqa: F401  # seconds, for which a signal would wait at the first save

        complete = self.iterations()
        passed_over = [
            f"checkpoint {iteration} is half-written (the run was stopped while saving it)"
            for iteration in sorted(self._all_iterations() - set(complete), reverse=True)
            if iteration > max(complete, default=0)
        ]
        for iteration in reversed(complete):
            try:
                content = self._read_commit(iteration, usable)
                restored = _load(self.path(iteration), state, content)
            except _Unusable as error:
                passed_over.append(f"checkpoint {iteration} cannot be used: {error}")
                continue
            return Restored(iteration, restored, content["marks"], passed_over)
        if complete:
            raise UserError(f"no checkpoint in {self._folder} is whole ({'; '.join(passed_over)}); --fresh starts over")
        return Restored(0, state, {}, passed_over)

    def keep_only(self, iterations: set[int]) -> None:
        """Deletes all other checkpoints, half-written ones included."""
        for iteration in self._all_iterations() - iterations:
            self._delete(iteration)

    def _all_iterations(self) -> set[int]:
        if not self._folder.is_dir():
            return set()
        prefixes = (path.name.split(".")[0] for path in self._folder.iterdir())  # "12", "12.json", "12.orbax-...-tmp"
        return {int(prefix) for prefix in prefixes if prefix.isdigit()}

    def _delete(self, iteration: int) -> None:
        folder = self.path(iteration)
        _commit(folder).unlink(missing_ok=True)  # first: a half-deleted checkpoint must look half-written
        for path in (folder, *self._folder.glob(f"{iteration}.*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _read_commit(self, iteration: int, usable: Callable[[Mapping[str, int]], str | None]) -> dict[str, Any]:
        folder = self.path(iteration)
        try:
            commit = json.loads(_commit(folder).read_text())
            content = commit["content"]
            if commit["crc32"] != _crc32(content):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise _Unusable(f"{_commit(folder).name} is damaged") from None
        change = difference({name: content.get(name) for name in self._identity}, self._identity)
        if change:
            raise UserError(f"the checkpoint {folder} is of another run: {change}; move it away, or give another --out")
        problem = usable(content["marks"]) or _damage(folder, content["files"])
        if problem:
            raise _Unusable(problem)
        return content


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file so that a reader finds the old text or the new, never a part, even after a power cut."""
    draft = path.with_name(path.name + ".draft")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _commit(folder: Path) -> Path:
    return folder.with_name(folder.name + ".json")


def _arrays(folder: Path) -> Path:
    return folder.with_name(folder.name + ".arrays")


def _crc32(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksums(folder: Path) -> dict[str, list[int]]:
    """[size in bytes, CRC-32] of every file under `folder`, by its path there."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = checksum = 0
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                size, checksum = size + len(block), zlib.crc32(block, checksum)
        sums[path.relative_to(folder).as_posix()] = [size, checksum]
    return sums


def _damage(folder: Path, files: Mapping[str, list[int]]) -> str | None:
    try:
        found = _checksums(folder)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    for name, checksum in files.items():
        if name not in found:
            return f"its file {name} is missing"
        if found[name] != checksum:
            return f"its file {name} is damaged"
    return None


def _load(folder: Path, state: Any, content: Mapping[str, Any]) -> Any:
    import jax
    from orbax.checkpoint import v1 as ocp

    change = difference(content["leaves"], _describe(state))
    if change:
        raise UserError(
            f"the checkpoint {folder} was written by other code: leaf {change}; go back to that code, or start over "
            "with --fresh"
        )
    leaves, structure = jax.tree.flatten(state)
    ours = {int(name): checksum for name, checksum in content.get("arrays", {}).items()}
    try:
        with _quiet_orbax(), _by_one_process():
            targets = [0 if i in ours else _target(leaf) for i, leaf in enumerate(leaves)]
            loaded = ocp.load(str(folder), structure.unflatten(targets)) if len(ours) < len(leaves) else state
    except Exception as error:  # whatever orbax cannot read, an older checkpoint may serve
        raise _Unusable(f"orbax cannot read it ({type(error).__name__}: {str(error).splitlines()[0][:200]})") from error
    found = jax.tree.leaves(loaded)
    for i, checksum in ours.items():
        try:
            found[i] = large_arrays.read(_arrays(folder) / str(i), _numbers_like(leaves[i]), checksum)
        except ValueError as error:
            raise _Unusable(f"its array {i} cannot be read ({error})") from None
    return structure.unflatten(map(_as_before, leaves, found))


def _describe(state: Any) -> dict[str, str]:
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
