"""The steps of an optimizer: where they lead, and which ones lead to given weights.

A step that is computed in the weights' own type would be rounded away where the weights are bfloat16, so all of it is
done in float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from nap import paths
from nap.paths import PyTree


def wide(x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """The array as float32 at least: bfloat16 and float16 are widened, float64 and complex numbers stay."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def moved(params: PyTree, steps: PyTree, only: Iterable[str] | None = None) -> dict[str, Inexact[Array, "..."]]:
    """Where steps lead to: the floating-point parameters by path, all of them or those at some paths, made `wide`."""
    before, by_path = paths.leaves(params), paths.leaves(steps)
    chosen = [path for path, leaf in before.items() if paths.is_weight_array(leaf)] if only is None else only
    start = {path: wide(before[path]) for path in chosen}
    return {path: weight + by_path[path].astype(weight.dtype) for path, weight in start.items()}


def landing(params: PyTree, steps: PyTree, new: Mapping[str, Inexact[Array, "..."]]) -> PyTree:
    """The steps, with those that belong to `new` exchanged for ones that lead to these values."""
    before, by_path = paths.leaves(params), paths.leaves(steps)
    # Rounded to the weights' dtype first: the difference of two nearby floats is then exact, and so is the sum.
    exact = {path: value.astype(before[path].dtype) - before[path] for path, value in new.items()}
    return paths.replace(steps, {path: step.astype(by_path[path].dtype) for path, step in exact.items()})
