"""What the units of a layer do on a batch: how many are dormant, dead, zero, linear or saturated.

Each word stands for one quantity here; in the field "dormant" and "dead" each name several. A convolution has one unit
a channel, looked at over the batch and all positions. Some layers have several features a unit (CReLU and Fourier
layers have two, concatenated on the last axis as [first of all units, second of all units]): `features_per_unit`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

Activations = Float[Array, "batch *space features"]


def dormancy_scores(activations: Activations, features_per_unit: int = 1) -> Float[Array, " units"]:
    """Mean absolute activation of each unit relative to the layer's mean (Sokar et al., 2023, equation 1).

    Averaged over the batch, over positions and over the features of a unit. All zero if the layer is silent.

    Args:
      activations: a layer's activations.
      features_per_unit: how many features on the last axis belong to one unit.

    Raises:
      ValueError: `features_per_unit` does not divide the number of features.
    """
    size = jnp.mean(jnp.abs(_by_unit(activations, features_per_unit).astype(jnp.float32)), axis=(0, 1))
    return size / jnp.maximum(jnp.mean(size), 1e-9)


def dormant_fraction(
    activations: Activations, taus: Sequence[float] = (0.0, 0.025, 0.1), features_per_unit: int = 1
) -> dict[float, Float[Array, ""]]:
    """The fraction of units whose dormancy score is at most tau, for several tau at once.

    tau = 0 counts units that are silent on the whole batch; published work uses 0, 0.025 and 0.1, hence all three.
    Arguments and errors as in `dormancy_scores`.
    """
    scores = dormancy_scores(activations, features_per_unit)
    return {tau: jnp.mean(scores <= tau) for tau in taus}


def dead_fraction(activations: Activations, below: float = 0.01, features_per_unit: int = 1) -> Float[Array, ""]:
    """The fraction of units that are nonzero on less than a share `below` of the samples (Dohare et al., 2024).

    A sample is an example, in a convolution one position of an example. A unit is zero if all its features are.
    Arguments and errors as in `dormancy_scores`.
    """
    nonzero = jnp.any(_by_unit(activations, features_per_unit) != 0, axis=1)
    return jnp.mean(jnp.mean(nonzero, axis=0) < below)


def zero_unit_fraction(activations: Activations, features_per_unit: int = 1) -> Float[Array, ""]:
    """The fraction of units that are exactly 0 on the whole batch.

    For ReLU: units that get no gradient from it. Arguments and errors as in `dormancy_scores`.
    """
    return jnp.mean(jnp.all(_by_unit(activations, features_per_unit) == 0, axis=(0, 1)))


def linearized_unit_fraction(activations: Activations, features_per_unit: int = 1) -> Float[Array, ""]:
    """The fraction of units that are positive on the whole batch: there a ReLU does nothing (arXiv 2411.04832).

    Takes the values after the nonlinearity, which for ReLU and its relatives have the sign of those before. A unit with
    several features counts if one of them is positive throughout: a CReLU is linear on either side of zero.
    Arguments and errors as in `dormancy_scores`.
    """
    return jnp.mean(jnp.any(jnp.all(_by_unit(activations, features_per_unit) > 0, axis=0), axis=0))


def active_fraction(activations: Activations) -> Float[Array, ""]:
    """The share of activations that are positive, over batch, positions and features."""
    return jnp.mean(activations > 0)


def saturated_fraction(activations: Activations, level: float = 0.99) -> Float[Array, ""]:
    """The share of activations, over batch, positions and features, whose absolute value is above `level`.

    For nonlinearities bounded by 1, such as tanh, sine and cosine.
    """
    return jnp.mean(jnp.abs(activations) > level)


def _by_unit(activations: Activations, features_per_unit: int) -> Float[Array, "samples per_unit units"]:
    features = activations.shape[-1]
    if features_per_unit < 1 or features % features_per_unit:
        raise ValueError(f"a layer of {features} features can't have features_per_unit={features_per_unit} each")
    return activations.reshape(-1, features_per_unit, features // features_per_unit)
