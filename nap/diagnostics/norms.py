"""Sizes of features, gradients, updates and weights, a layer at a time.

Effective learning rates and angles of updates are in `nap.effective_lr`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nap import paths
from nap.norms import vector_norm
from nap.paths import PyTree
from nap.steps import wide


class LeafNorms(NamedTuple):
    """The size of one leaf, scalars, float32 at least.

    Attributes:
      l2: root of the sum of squares; a few outliers rule it.
      l1: sum of absolute values.
      zero_fraction: the share of entries that are exactly 0.
    """

    l2: Float[Array, ""]
    l1: Float[Array, ""]
    zero_fraction: Float[Array, ""]


def feature_norm(features: Float[Array, "batch *shape"]) -> Float[Array, ""]:
    """Mean over the batch of the L2 norm of an example's features, all positions and channels as one vector."""
    flat = wide(features).reshape(features.shape[0], -1)
    return jnp.mean(vector_norm(flat, axis=1))


def leaf_norms(tree: PyTree) -> dict[str, LeafNorms]:
    """L2 norm, L1 norm and sparsity of every floating-point leaf, by path: of gradients, updates or weights.

    Gradients of one L2 norm can be dense or a few spikes, hence the other two (Abbas et al., 2023).
    """
    norms = {}
    for path, leaf in paths.leaves(tree).items():
        if paths.is_weight_array(leaf):
            x = wide(leaf)
            norms[path] = LeafNorms(vector_norm(x), jnp.sum(jnp.abs(x)), jnp.mean(x == 0))
    return norms


def distance_to_init(params: PyTree, initial: PyTree) -> dict[str, Float[Array, ""]]:
    """||W - W_0|| / sqrt(size) of every floating-point leaf: the root mean square change of a weight, by path.

    With an earlier checkpoint for `initial`, the change since then.

    Args:
      params: the parameters now.
      initial: the parameters to compare with; the same leaves.

    Raises:
      ValueError: a leaf is missing in `initial` or has another shape there.
    """
    before = paths.leaves(initial)
    distances = {}
    for path, leaf in paths.leaves(params).items():
        if not paths.is_weight_array(leaf):
            continue
        if path not in before or before[path].shape != leaf.shape:
            found = f"shape {before[path].shape}" if path in before else "no such leaf"
            raise ValueError(f"{path!r} has shape {leaf.shape}, but the initial parameters have {found}")
        change = wide(leaf) - wide(before[path])
        distances[path] = vector_norm(change) / math.sqrt(leaf.size)
    return distances
