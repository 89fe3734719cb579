"""Many seeds at once: the one place that decides, by backend, how they share a machine.

- **CPU**: one JAX device a core, the seeds divided among them, each device one seed after another. A vmapped small
  network gains little from one core and XLA gives it no second one.
- **GPU, TPU**: the seeds divided among the devices, vmapped on each, as many at a time as fit.

`python -m experiments bench --only plasticity` measures these choices.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.harness import large_arrays
from experiments.harness.cores import cores_here

PyTree = Any
_MEMORY_SHARE = 0.8  # of what a device has; the rest is XLA's to fragment


def use_all_cores() -> None:
    """Makes each core of the CPU a JAX device of its own. Call it before JAX is used; afterwards it changes nothing."""
    # LAPACK, which XLA calls for singular values on a CPU, would start threads on all cores for each of the devices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", len(cores_here()))
        except RuntimeError:  # JAX is in use already: one device, as it is
            return


def seeds_label(first: int, count: int) -> str:
    """Some seeds in the name of a run's folder: "seeds0to9"."""
    return f"seeds{first}to{first + count - 1}"


class Seeds:
    """How some seeds share the devices.

    Attributes:
        count: the number of seeds.
        padded: the number that is computed: a multiple of the number of devices. The last ones are dropped.
        per_device: how many of them each device has.
        in_memory: how many of them have their states in one memory: all of them on a CPU, whose devices share it.
        at_once: how many of them are computed at a time in one memory, at least.
    """

    def __init__(self, count: int) -> None:
        devices = jax.local_devices()
        most = min(count, len(cores_here())) if jax.default_backend() == "cpu" else count
        self._mesh = Mesh(np.asarray(devices[:most]), ("seeds",))
        self.count, self.padded = count, -(-count // self._mesh.size) * self._mesh.size
        self.per_device = self.padded // self._mesh.size
        on_host = jax.default_backend() == "cpu"
        self.in_memory = self.padded if on_host else self.per_device
        self.at_once = self._mesh.size if on_host else 1

    def keys(self, first_seed: int) -> jax.Array:
        """A random key for each seed, padded: seed s has the same key however many seeds there are."""
        numbers = (first_seed + np.arange(self.padded)).astype(np.uint32)  # the last 32 bits, as `jax.random.key` does
        return self.divided(jax.vmap(jax.random.key)(numbers))

    def divided(self, own: PyTree) -> PyTree:
        """What belongs to the seeds, of which the leading axis has `padded`: each device's part on it."""
        return jax.device_put(own, self._divided())

    def shared(self, data: PyTree) -> PyTree:
        """Data that all seeds read: one copy on each device."""
        return jax.device_put(data, NamedSharding(self._mesh, PartitionSpec()))

    def drop_padding(self, own: PyTree) -> PyTree:
        """The seeds that were asked for: what a checkpoint holds, however many devices there are.

        They are on one device, but for large arrays, such as replays: of all seeds together they may not fit there, and
        are NumPy's.
        """

        def gather(leaf: jax.Array) -> jax.Array | np.ndarray:
            if large_arrays.is_large(leaf):
                return np.asarray(leaf)[: self.count]
            return jax.device_put(leaf[: self.count], jax.local_devices()[0])

        return jax.tree.map(gather, own)

    def pad(self, own: PyTree, padding: PyTree) -> PyTree:
        """What `drop_padding` returned, divided among the devices again, with the last seeds of `padding`."""

        def joined(leaf: jax.Array | np.ndarray, more: jax.Array) -> jax.Array | np.ndarray:
            if isinstance(leaf, np.ndarray):
                return np.concatenate([leaf, np.asarray(more[self.count :])]) if self.padded > self.count else leaf
            return jnp.concatenate([leaf, jax.device_put(more, leaf.sharding)[self.count :]])

        return jax.device_put(jax.tree.map(joined, own, padding), self._divided())

    def map(
        self, function: Callable[..., PyTree], *, at_once: int | None = None, donate: bool = False
    ) -> Callable[..., PyTree]:
        """A function of one seed, for all of them.

        Args:
            function: `function(shared, own, *others)`; `own` and the result are one seed's.
            at_once: seeds vmapped together on a GPU or TPU; None for one after another.
            donate: whether the result may take the memory of `own`.

        Returns:
            The same with a leading axis of seeds on `own` and on the result.
        """

        def on_device(shared: PyTree, own: PyTree, *others: Any) -> PyTree:
            return jax.lax.map(lambda one: function(shared, one, *others), own, batch_size=batch)

        batch = None if jax.default_backend() == "cpu" else at_once
        divided, whole = PartitionSpec("seeds"), PartitionSpec()

        def everywhere(shared: PyTree, own: PyTree, *others: Any) -> PyTree:
            specs = (whole, divided, *(whole for _ in others))
            return jax.shard_map(on_device, mesh=self._mesh, in_specs=specs, out_specs=divided, check_vma=False)(
                shared, own, *others
            )

        return jax.jit(everywhere, donate_argnums=1 if donate else ())

    def fit(self, function: Callable[..., PyTree], shared: PyTree, own: PyTree, *others: Any) -> int | None:
        """How many seeds fit on a device at once, by what XLA says one needs; None on a CPU, where it is one."""
        if jax.default_backend() == "cpu":
            return None
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        if memory is None:  # the backend does not tell
            return self.per_device
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), own)
        needs: Any = jax.jit(function).lower(shared, one, *others).compile().memory_analysis()
        each = needs.temp_size_in_bytes + needs.output_size_in_bytes + 1
        data = sum(leaf.nbytes for leaf in jax.tree.leaves(shared))
        state = sum(leaf.nbytes for leaf in jax.tree.leaves(own)) // self._mesh.size
        return max(1, min(self.padded, int((_MEMORY_SHARE * memory - data - 2 * state) // each)))

    def _divided(self) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec("seeds"))
