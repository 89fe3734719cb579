"""Ranks of a layer's features: five definitions that the field calls by each other's names, from one SVD.

Each takes the singular values of the feature matrix F, one row an example, and is 0 for a zero matrix. Features must be
finite.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SingularValues = Float[Array, " values"]


def singular_values(features: Float[Array, "batch *space features"]) -> SingularValues:
    """The singular values of a batch of features, the largest first; min(batch, features) of them, float32.

    Convolutional features are averaged over their positions: one column a channel. To count positions as samples, or
    each position's features as columns, reshape to [samples, columns] first.

    By SVD, accurate to 1e-6 of the largest value (about 1 ms for [256, 100] on a CPU). The eigenvalues of F^T F would
    take half as long, but their roots are off by up to 4e-4 of the largest value in float32, and `srank` adds them up.
    """
    matrix = jnp.mean(features.astype(jnp.float32), axis=range(1, features.ndim - 1))
    return jnp.linalg.svd(matrix, compute_uv=False)


def srank(values: SingularValues, delta: float = 0.01) -> Int[Array, ""]:
    """How many singular values it takes to reach a share 1 - delta of their sum (Kumar et al., 2020).

    Not the stable rank, though some packages call it so.

    Args:
      values: singular values, the largest first.
      delta: the share that may be missing.
    """
    reached = jnp.cumsum(values)
    count = 1 + jnp.sum(reached < (1 - delta) * reached[-1], dtype=jnp.int32)
    return jnp.where(reached[-1] == 0, 0, count)


def approximate_rank(values: SingularValues, delta: float = 0.01) -> Int[Array, ""]:
    """How many singular values it takes to reach a share 1 - delta of the sum of their squares (Yang et al., 2020).

    The number of principal components for that share of the (uncentred) variance. Arguments as in `srank`.
    """
    return srank(jnp.square(_relative(values)), delta)


def effective_rank(values: SingularValues) -> Float[Array, ""]:
    """exp(entropy) of the singular values divided by their sum (Roy & Vetterli, 2007)."""
    total = jnp.sum(values)
    shares = values / jnp.where(total == 0, 1.0, total)
    return jnp.where(total == 0, 0.0, jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares))))


def stable_rank(values: SingularValues) -> Float[Array, ""]:
    """||F||_F^2 / sigma_max^2 (Rudelson & Vershynin, 2007)."""
    return jnp.sum(jnp.square(_relative(values)))


def feature_rank(values: SingularValues, samples: int, epsilon: float = 0.01) -> Int[Array, ""]:
    """How many singular values of F / sqrt(samples) are above epsilon (Lyle et al., 2022).

    The only one of the five that depends on the scale of the features.

    Args:
      values: singular values of F.
      samples: rows of F.
      epsilon: the threshold.
    """
    return jnp.sum(values / jnp.sqrt(samples) > epsilon, dtype=jnp.int32)


def ranks(features: Float[Array, "batch *space features"]) -> dict[str, Float[Array, ""] | Int[Array, ""]]:
    """All five ranks by name, at their default thresholds, from one SVD; convolutions as in `singular_values`."""
    values = singular_values(features)
    return {
        "srank": srank(values),
        "approximate_rank": approximate_rank(values),
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(values),
        "feature_rank": feature_rank(values, features.shape[0]),
    }


def _relative(values: SingularValues) -> SingularValues:
    """Divided by the largest, so that squares neither overflow nor vanish."""
    largest = jnp.max(values)
    return values / jnp.where(largest == 0, 1.0, largest)
