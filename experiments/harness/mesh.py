"""One run on several devices, of one process or of several (hosts): the one place that knows of meshes.

A mesh is all the devices in a row. Each batch is divided over them, and all else has a copy on every one: data
parallelism. Where the copies don't fit, what is trained is divided too (`fully_sharded`, known as FSDP or ZeRO). The
program stays the one for a single device: arrays say where they lie, and XLA adds the sums over devices that follow. So
the gradient is that of the whole batch, and results differ from one device's by rounding only.

    mesh = make_mesh()
    state = on_every_device(init, mesh)(key)
    update = jax.jit(data_parallel(update, mesh), donate_argnums=0)
    state, loss = update(state, batch_of(my_share, mesh))

What is not divided must be equal in all processes, random keys too; `experiments.harness.processes` has them decide
alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.harness.errors import UserError
from experiments.harness.processes import several

PyTree = Any

_DATA = "data"
_SMALL = 1 << 16
"""Elements. To gather an array below this from all devices takes longer than its memory is worth."""


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh of so many devices, or of all that the processes have together.

    Raises:
        UserError: for `--devices`: there are not so many; or several processes would not use all that they have.
    """
    there = jax.devices()
    wanted = len(there) if devices is None else devices
    if not 1 <= wanted <= len(there):
        kind = there[0].platform
        remedy = f"; XLA_FLAGS=--xla_force_host_platform_device_count={wanted} makes as many of a CPU"
        raise UserError(
            f"--devices {wanted}: it must lie in 1 to {len(there)}, the number of {kind} devices"
            f"{remedy if kind == 'cpu' and wanted > 0 else ''}"
        )
    if jax.process_count() > 1 and wanted < len(there):
        raise UserError(f"--devices {wanted}: {jax.process_count()} processes use all their {len(there)} devices")
    return jax.make_mesh((wanted,), (_DATA,), (AxisType.Auto,), devices=there[:wanted])


def mesh_of(devices: int | None) -> Mesh | None:
    """The devices that share each batch, as `--devices` has it; None: there is a single one, and nothing to share.

    Args:
        devices: how many; None: all that several processes have, or one where a process is alone.

    Raises:
        UserError: as `make_mesh` does.
    """
    return make_mesh(devices) if several() or devices not in (None, 1) else None


def check_divisible(option: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError, with the option and the nearest right values, for a batch that the devices can't share."""
    below = batch_size // mesh.size * mesh.size
    if below != batch_size or batch_size < 1:
        near = " and ".join(str(size) for size in (below, below + mesh.size) if size > 0)
        raise UserError(
            f"{option} {batch_size}: it must be a multiple of the number of devices, {mesh.size}; the nearest: {near}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def copies_in_memory(mesh: Mesh | None) -> int:
    """How many copies of what is replicated share a memory: one a GPU, and all of this process on a CPU."""
    if mesh is None or mesh.devices.flat[0].platform != "cpu":
        return 1
    return len(mesh.local_devices)


def divided(mesh: Mesh) -> NamedSharding:
    """The leading axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(_DATA))


def kept_divided(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """The identity of a batch's activations, for inside of a jitted function: they stay divided as the batch is.

    With a `fully_sharded` state, XLA could as well divide what a layer computes by its units, as the layer's parameters
    lie, and gather the activations of the whole batch on every device. Rows that the devices can't share evenly lie
    where XLA puts them.
    """

    def constrain(x: jax.Array) -> jax.Array:
        return x if x.shape[0] % mesh.size else jax.lax.with_sharding_constraint(x, divided(mesh))

    return constrain


def fully_sharded(tree: PyTree, mesh: Mesh) -> PyTree:
    """Where each leaf lies when a state is divided over the devices: parameters, and an optimizer's moments like them.

    A leaf is divided along the largest of its axes that the number of devices divides, the first one of equals. A small
    one, or one without such an axis, has a copy on every device.

    Args:
        tree: arrays, or the shapes that `jax.eval_shape` gave: `jax.jit(init, out_shardings=...)` then makes the state
            where it belongs, and no device ever holds the whole.

    Returns:
        A sharding for each leaf.
    """

    def place(leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, length in enumerate(leaf.shape) if length and length % mesh.size == 0]
        if leaf.size < _SMALL or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, _DATA))

    return jax.tree.map(place, tree)


def on_every_device(init: Callable[..., PyTree], mesh: Mesh) -> Callable[..., PyTree]:
    """The function jitted, and a copy of its result on every device."""
    return jax.jit(init, out_shardings=replicated(mesh))


def data_parallel(
    update: Callable[..., tuple[Any, ...]], mesh: Mesh, state_shardings: PyTree = None
) -> Callable[..., tuple[Any, ...]]:
    """An update whose batch is divided over the devices, to be jitted alone or as a part of something else.

    Args:
        update: `update(state, batch, *others)`: the new state, and what else there is to tell. It sees the whole batch:
            its means and maxima are over all devices.
        mesh: the devices; their number divides the leading axis of every leaf of `batch`.
        state_shardings: where the state lies, before and after: from `fully_sharded`; None: a copy on every device.

    Returns:
        The same function. What else it tells has a copy on every device.
    """
    keep = replicated(mesh)
    of_state = keep if state_shardings is None else state_shardings

    def over_devices(state: PyTree, batch: PyTree, *others: Any) -> tuple[Any, ...]:
        # Else XLA would be free to divide the results as well, and the next call be compiled anew for them.
        state, *told = update(state, jax.lax.with_sharding_constraint(batch, divided(mesh)), *others)
        return jax.lax.with_sharding_constraint(state, of_state), *jax.lax.with_sharding_constraint(told, keep)

    return over_devices


def batch_of(share: PyTree, mesh: Mesh) -> PyTree:
    """The whole batch, divided over the devices, from the share of it that each process has.

    Args:
        share: arrays with as many rows as this process has devices, times the same number in all processes.
        mesh: the devices of all processes. The first rows of the batch are process 0's.
    """
    place = divided(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(place, leaf), share)
