"""What supervised training takes of a device's memory at least, by the shapes of what it is made of."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from experiments.harness.memory import bytes_of
from experiments.harness.mesh import copies_in_memory
from experiments.harness.sizes import kept_bytes
from experiments.harness.supervised import SupervisedConfig, Task, learner_of
from nap.paths import PyTree


def memory_needed(
    task: Task, config: SupervisedConfig, row: Any, mesh: Mesh | None, *, shard: bool = False, kept: bool = True
) -> dict[str, int]:
    """The bytes of the state; and of a batch, with what it takes to learn from it.

    The latter is the larger one of the gradient, and of what a part of the batch leaves behind for its backward pass:
    the outputs and `experiments.harness.sizes.kept_bytes`.

    Args:
        task: what is learned.
        config: of the run.
        row: the shapes of an example, as it stands in a batch.
        mesh: the devices that share each batch; None: there is a single one.
        shard: whether they share the state, too.
        kept: whether `task.network` shows what it keeps; a kernel that JAX does not see into keeps less.
    """
    copies, learner = copies_in_memory(mesh), learner_of(task, config)
    here = copies / (1 if mesh is None else mesh.size)  # the share of what is divided that lies in one memory
    state = jax.eval_shape(learner.init, jax.random.key(0))

    def rows(count: int) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), row)

    def outputs(params: PyTree, rest: PyTree, batch: Any) -> Any:
        return task.network.train(params, rest, task.inputs(batch))[0]

    forward = state.params, state.rest, rows(config.training.part)
    left = bytes_of(jax.eval_shape(outputs, *forward)) + (kept_bytes(outputs, *forward) if kept else 0)
    batch = bytes_of(rows(config.training.batch_size)) + max(left, bytes_of(state.params))
    return {
        "weights and optimizer": int(bytes_of(state) * (here if shard else copies)),
        "a batch": int(here * batch),
    }
