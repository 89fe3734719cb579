"""Norms of arrays whose squares may leave the range of floats.

The plain root of a sum of squares is 0 for float32 entries below 1e-23 and infinite above 1e19. It is taken all the
same, since it costs one look at the weights; only where it shows that squares were lost are they scaled and looked at
again. What it gives otherwise is returned as it is, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from nap.checks import is_known

Axes = Sequence[int] | None


class Joint(NamedTuple):
    """Arrays that have one norm together.

    Attributes:
      tensors: float32 at least.
      axes: the axes that the norm is taken over, which are kept at size 1; None: all of them, and none is kept.
    """

    tensors: Sequence[Inexact[Array, "..."]]
    axes: Axes = None


def vector_norm(
    x: Inexact[Array, "..."], axis: int | Sequence[int] | None = None, keepdims: bool = False
) -> Float[Array, "..."]:
    """The 2-norm over some axes, by default all: right wherever the result itself is in the range of floats."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    found = norms({"": Joint([x], tuple(axes))})[""]
    return found if keepdims else jnp.squeeze(found, tuple(axes))


def norms(
    joints: Mapping[str, Joint], needed: Mapping[str, Bool[Array, "..."]] | None = None
) -> dict[str, Float[Array, "..."]]:
    """The norms of many arrays, with one look at whether any of them has to be taken again.

    Taking them again is a branch that is not entered otherwise; under `jax.vmap`, which has no branches, it is computed
    each time, which costs another two looks at the weights.

    Args:
      joints: what to take the norms of, by name.
      needed: where a norm counts, by name; by default everywhere. Only there it is taken again.

    Returns:
      The norms by the same names, float32 at least.
    """
    plain = {name: _plain(joint) for name, joint in joints.items()}
    sound = {name: _is_sound(plain[name], joint) for name, joint in joints.items()}
    if needed is not None:
        sound = {name: where | ~needed[name] for name, where in sound.items()}

    def again() -> dict[str, Float[Array, "..."]]:
        return {name: jnp.where(sound[name], plain[name], _scaled(joint)) for name, joint in joints.items()}

    all_sound = jnp.all(jnp.array([jnp.all(where) for where in sound.values()]))
    if is_known(all_sound):  # outside of `jit`, where a `cond` would be compiled at every call
        return plain if all_sound else again()
    return jax.lax.cond(all_sound, lambda: plain, again)


def _plain(joint: Joint) -> Float[Array, "..."]:
    parts = [
        jnp.linalg.vector_norm(t, axis=_over(t, joint.axes), keepdims=joint.axes is not None) for t in joint.tensors
    ]
    return parts[0] if len(parts) == 1 else jnp.sqrt(sum(jnp.square(part) for part in parts))


def _is_sound(norm: Float[Array, "..."], joint: Joint) -> Bool[Array, "..."]:
    """Whether no square can have been lost that matters: none overflowed, and what underflowed is below rounding."""
    size = sum(t.size for t in joint.tensors) // max(norm.size, 1)
    limits = jnp.finfo(norm.dtype)
    return (norm > math.sqrt(size * float(limits.tiny) / float(limits.eps))) & jnp.isfinite(norm)


def _scaled(joint: Joint) -> Float[Array, "..."]:
    """The norm by way of entries scaled to about 1, by a power of two, which rounds nothing."""
    keep = joint.axes is not None
    over = [_over(t, joint.axes) for t in joint.tensors]
    largest = [
        jnp.max(jnp.abs(t), axis=axes, keepdims=keep, initial=0) for t, axes in zip(joint.tensors, over, strict=True)
    ]
    size = jax.lax.stop_gradient(jnp.max(jnp.stack(largest), axis=0))
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(size), size, 0))
    limit = jnp.finfo(size.dtype).maxexp - 2  # both powers are normal numbers
    exponent = jnp.clip(exponent, -limit, limit)
    down, up = (jnp.ldexp(jnp.ones_like(size), sign * exponent) for sign in (-1, 1))
    return _plain(joint._replace(tensors=[t * down for t in joint.tensors])) * up


def _over(tensor: Inexact[Array, "..."], axes: Axes) -> tuple[int, ...]:
    return tuple(range(tensor.ndim)) if axes is None else tuple(axes)
