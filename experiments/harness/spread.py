"""A state that lies over several processes: gathered where the first one saves it, and spread when it was restored.

A checkpoint is written and read by the first process alone, on whatever disk it has. So a run may go on with another
number of processes, or with one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.harness.checkpoint import Checkpoints, Restored
from experiments.harness.processes import in_first, several, writes
from experiments.harness.state_files import is_key, typed_like

PyTree = Any

_BLOCK_BYTES = 1 << 24
"""What is sent at a time: on its way it lies on every device."""


def gather(state: PyTree) -> PyTree:
    """The state with all its arrays in this process. What is divided comes to each, array by array.

    Raises:
        TypeError: of several processes: a leaf is no array.
    """
    return jax.tree.map(_here, state) if several() else state


def restore(checkpoints: Checkpoints, state: PyTree, usable: Callable[[Mapping[str, int]], str | None]) -> Restored:
    """`Checkpoints.restore`: the first process reads, and all get what it read. The JAX arrays of `state` are given up.

    Args:
        checkpoints: read in the first process only.
        state: as for `Checkpoints.restore`; its arrays may lie over the processes.
        usable: likewise.

    Raises:
        UserError: as `Checkpoints.restore` does; in all processes.
    """
    if not several():
        return checkpoints.restore(state, usable)
    found = state

    def read() -> Restored:
        nonlocal found
        restored = checkpoints.restore(jax.tree.map(_empty, state), usable)
        found = restored.state
        return restored._replace(state=None)

    restored = Restored(*in_first(read))
    return restored._replace(state=jax.tree.map(_spread, state, found) if restored.iteration else state)


def _here(leaf: Any) -> Any:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf
    if not isinstance(leaf, jax.Array):
        raise TypeError(
            f"a state of several processes holds arrays only, and this one a {type(leaf).__name__}: {leaf!r}"
        )
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)


def _empty(leaf: Any) -> Any:
    """What a leaf is read into: memory of the host, as no device may have room for the whole."""
    if not isinstance(leaf, jax.Array):
        return leaf
    return leaf.addressable_data(0) if is_key(leaf) else np.empty(leaf.shape, leaf.dtype)


def _spread(like: Any, read: Any) -> Any:
    """What the first process read, where `like` lies; what the others give for it does not matter."""
    if not isinstance(like, jax.Array):  # NumPy's
        numbers = np.array(read) if writes() else np.empty(like.shape, like.dtype)
        _send(numbers)
        return numbers[()] if isinstance(like, np.generic) else numbers
    if is_key(like):
        numbers = _spread(jax.random.key_data(like), jax.random.key_data(read) if writes() else None)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(like))
    values = np.asarray(read) if writes() else np.empty(like.shape, like.dtype)
    _send(values)
    like.delete()
    # Copies: memory that NumPy owns could not be donated.
    parts = [
        jax.device_put(values[index], device, may_alias=False)
        for device, index in like.sharding.addressable_devices_indices_map(like.shape).items()
    ]
    return typed_like(like, jax.make_array_from_single_device_arrays(like.shape, like.sharding, parts))


def _send(values: np.ndarray) -> None:
    """Fills an array with the first process's values."""
    flat = values.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _BLOCK_BYTES):
        block = flat[start : start + _BLOCK_BYTES]
        sent = multihost_utils.broadcast_one_to_all(block)
        if not writes():
            block[:] = sent
