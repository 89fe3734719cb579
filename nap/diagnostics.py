"""What the field logs about a network's health, under names that mean one thing each."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def dormancy_scores(activations: Float[Array, "batch *space units"]) -> Float[Array, " units"]:
    """Mean absolute activation of each unit relative to the layer's mean (Sokar et al., 2023, equation 1).

    Averaged over the batch and, in a convolution, over positions: one score a channel. All zero if the layer is silent.
    """
    size = jnp.mean(jnp.abs(activations.astype(jnp.float32)), axis=range(activations.ndim - 1))
    return size / jnp.maximum(jnp.mean(size), 1e-9)


def dormant_fraction(
    activations: Float[Array, "batch *space units"], taus: Sequence[float] = (0.0, 0.025, 0.1)
) -> dict[float, Float[Array, ""]]:
    """The fraction of units whose dormancy score is at most tau, for several tau at once.

    tau = 0 counts units that are silent on the whole batch; published work uses 0, 0.025 and 0.1, hence all three.
    """
    scores = dormancy_scores(activations)
    return {tau: jnp.mean(scores <= tau) for tau in taus}
