"""Adam with a step count for every entry, so that a unit that starts anew gets the bias correction of a new one."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from nap.paths import PyTree


class AdamState(NamedTuple):
    """State of `scale_by_adam`; each part has the parameters' structure and shapes.

    Attributes:
      counts: updates since the entry's start, int32.
      mu: first moments.
      nu: second moments.
    """

    counts: PyTree
    mu: PyTree
    nu: PyTree


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam's direction (Kingma & Ba, 2015), as `optax.scale_by_adam`, with a step count for every entry.

    Where nothing resets an entry, it makes the same steps as optax's. An entry reset under a single, global count gets
    no bias correction: its first step is (1 - b1) / sqrt(1 - b2) times the learning rate, 3.2 times too long.

    The optimizer of Dohare et al. that counts like this, AdamGnT, loses half of the correction: it multiplies by
    1 - b2^n instead of its root / (1 - b1^n), so that its first step is (1 - b1) sqrt(1 - b2) times the learning rate,
    0.003 of it, and a recycled unit takes some 1 / (1 - b2) updates to move. Here its first step is a whole one.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
    """

    def init_fn(params: PyTree) -> AdamState:
        counts = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=jnp.int32), params)
        return AdamState(counts, optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def direction(n: Array, m: Array, v: Array) -> Array:
        return (m / (1 - b1**n).astype(m.dtype)) / (jnp.sqrt(v / (1 - b2**n).astype(v.dtype)) + eps)

    def update_fn(updates, state, params=None):
        del params
        counts = jax.tree.map(optax.safe_increment, state.counts)
        mu = jax.tree.map(lambda g, m: (1 - b1) * g + b1 * m, updates, state.mu)
        nu = jax.tree.map(lambda g, v: (1 - b2) * jnp.square(g) + b2 * v, updates, state.nu)
        return jax.tree.map(direction, counts, mu, nu), AdamState(counts, mu, nu)

    return optax.GradientTransformation(init_fn, update_fn)


def adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """`optax.adam` with a step count for every entry: what the interventions that recycle units should wrap.

    Args:
      learning_rate: the learning rate or a schedule of it; the schedule counts all updates and is never reset.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
    """
    return optax.chain(scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate))
