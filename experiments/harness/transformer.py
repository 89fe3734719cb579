"""A transformer's sizes as options, and what its training takes of a device's memory at least."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from envs.loaders import TextBatch
from experiments.harness import training_memory
from experiments.harness.bounds import at_least, more_than, replaced
from experiments.harness.sizes import Sized, extrapolated
from experiments.harness.supervised import Task
from nap.networks.attention import AttentionKernel
from nap.networks.transformer import MLPKind, Positions

MOST_LAYERS = 1000
"""Blocks: each is built, and unless they are scanned compiled, by itself."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The transformer; see `nap.networks.transformer`."""

    layers: Annotated[int, at_least(1, most=MOST_LAYERS)] = 4
    """Blocks."""
    heads: Annotated[int, at_least(1)] = 4
    """Heads of attention, which divide the width."""
    width: Annotated[int, at_least(1)] = 128
    """Features of the residual stream."""
    mlp: MLPKind = "gelu"
    """What is between the two matrices of an MLP."""
    mlp_factor: Annotated[float, more_than(0)] = 4.0
    """Units of an MLP, as a multiple of the width."""
    positions: Positions = "rotary"
    """rotary, or a learned embedding of each."""
    tied: bool = False
    """The embedding is the output layer as well."""
    qk_norm: Literal["auto", "yes", "no"] = "auto"
    """Normalize queries and keys; auto: for every method but none."""
    attention: AttentionKernel = "xla"
    """cudnn: flash attention on NVIDIA GPUs, in bfloat16."""
    remat: bool = False
    """Compute each block again in the backward pass, instead of keeping its activations."""
    scan_layers: bool = False
    """Run the blocks in a loop: they compile once."""


def memory_needed(
    task_of: Callable[[Any], Task], mesh: Mesh | None, config: Any, *, shard: bool = False
) -> dict[str, int]:
    """See `experiments.harness.training_memory`: of a deep network, from what one block and a second one take.

    Args:
        task_of: (configuration) -> what is learned.
        mesh: the devices that share each batch; None: there is a single one.
        config: has `sequence`, and the network's sizes as `network`.
        shard: whether the devices share the state, too.
    """
    one: Any = functools.partial(jax.ShapeDtypeStruct, (config.sequence,))
    row = TextBatch(one(jnp.int32), one(jnp.int32), one(jnp.float32))
    flash = config.network.attention == "cudnn"  # it needs a GPU to be traced
    seen = replaced(config, ("network", "attention"), "xla")

    def of(layers: int) -> dict[str, int]:
        shallow = replaced(seen, ("network", "layers"), layers)
        return training_memory.memory_needed(task_of(shallow), shallow, row, mesh, shard=shard, kept=not flash)

    return extrapolated(of, config.network.layers)


def sized(config: Any, mesh: Mesh | None) -> list[Sized]:
    """The options that the memory depends on; those that must be multiples stay so."""
    rows = config.training.accumulate * (1 if mesh is None else mesh.size)
    each_head = config.network.heads * (2 if config.network.positions == "rotary" else 1)
    of_network = [Sized("network.layers"), Sized("network.mlp_factor")]
    of_network.append(Sized("network.width", step=each_head, least=each_head))
    return [Sized("training.batch_size", step=rows), Sized("sequence"), *of_network]
