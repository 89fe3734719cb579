"""Arrays of lower rank beside those of higher rank, for users who have JAX refuse to match the two by itself."""

from __future__ import annotations

import jax
from jaxtyping import Array, Shaped


def last_axes(values: Shaped[Array, "*last"], x: Shaped[Array, "*first_and_last"]) -> Shaped[Array, "..."]:
    """`values` with as many leading axes of size 1 as `x` has more axes: to be combined along the last axes of `x`.

    JAX does that by itself unless `jax_numpy_rank_promotion` forbids it.
    """
    return jax.lax.broadcast_to_rank(values, x.ndim)
