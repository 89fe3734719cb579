"""Utility-based perturbed gradient descent: small steps for useful weights, noise for the others."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from nap import checks
from nap.interventions.regularizers import needed
from nap.paths import PyTree
from nap.steps import wide


class UPGDState(NamedTuple):
    """State of `upgd`.

    Attributes:
      count: updates so far.
      key: the random key, folded with the count at each update.
      utility: the running mean of each parameter's utility, without bias correction; float32 at least.
      direction: the state of `direction`.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    utility: PyTree
    direction: optax.OptState


def upgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta: float = 0.999,
    sigma: float = 0.001,
    weight_decay: float = 0.001,
    key: jax.Array,
    direction: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """UPGD with first-order, globally scaled utilities of single weights (Elsayed & Mahmood, 2024, algorithm 1).

    A weight's utility U is the running mean, bias corrected, of -g w: the first-order estimate of what the loss gains
    when the weight is set to zero. With s = sigmoid(U / max U), the maximum over all weights of the network,

      w <- (1 - learning_rate * weight_decay) w - learning_rate * (direction(g) + noise) * (1 - s),

    noise from N(0, sigma^2). This is the paper's step, with the learning rate of the authors' supervised experiments;
    their README and their optimizer for reinforcement learning multiply it by 2, because a weight without utility has
    1 - s = 0.5. As long as no utility is positive, s is 0.5 for all.

    All of the authors' code takes the maximum before the bias correction, so that U / max U is 1 / (1 - beta^t) times
    what it is here, at beta = 0.999 1,000 times at the first update, 10 at the 100th and 1.6 at the 1,000th: for some
    hundred updates their most useful weights stand still. And where no utility is positive it divides by the negative
    maximum, which protects the least useful weights most.

    Args:
      learning_rate: the learning rate or a schedule of it.
      beta: decay of the running mean.
      sigma: standard deviation of the noise, in units of the gradient (or of what `direction` makes of it).
      weight_decay: decoupled weight decay, in learning rates.
      key: a random key.
      direction: what makes a step of the gradient, such as `optax.scale_by_adam()`; None: the gradient itself, as
        published. Utilities are always those of the gradient.

    Raises:
      ValueError: `beta` not in 0 to 1, or a negative `sigma` or `weight_decay`.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1, got {beta}")
    checks.not_negative(sigma=sigma, weight_decay=weight_decay)
    inner = optax.with_extra_args_support(optax.identity() if direction is None else direction)

    def init_fn(params: PyTree) -> UPGDState:
        # A share of 1 - beta would be lost in a narrower type than float32.
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(wide(leaf)), params)
        return UPGDState(jnp.zeros([], jnp.int32), jnp.copy(key), zeros, inner.init(params))

    def update_fn(updates, state, params=None, **extra):
        params = needed(params, "upgd")
        rate = jnp.asarray(learning_rate(state.count) if callable(learning_rate) else learning_rate)
        count = jnp.asarray(optax.safe_increment(state.count))
        utility = jax.tree.map(lambda u, g, w: beta * u - (1 - beta) * g * w, state.utility, updates, params)
        corrected = jax.tree.map(lambda u: u / (1 - beta**count), utility)
        greatest = jnp.asarray(optax.tree.max(corrected))
        steps, inner_state = inner.update(updates, state.direction, params, **extra)
        noise = optax.tree.random_like(jax.random.fold_in(state.key, count), params)

        def step(d: Array, n: Array, u: Array, w: Array) -> Array:
            share = jax.nn.sigmoid(jnp.where(greatest > 0, u / jnp.where(greatest > 0, greatest, 1), 0))
            return (-rate * (weight_decay * w + (d + sigma * n) * (1 - share))).astype(w.dtype)

        steps = jax.tree.map(step, steps, noise, corrected, params)
        return steps, UPGDState(count, state.key, utility, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
