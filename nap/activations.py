"""Activation functions by name: plain, with learned parameters, and with two features a unit."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nap.axes import last_axes
from nap.roles import Role
from nap.steps import wide

Activation = Callable[[jax.Array], jax.Array]

ActivationName = Literal["relu", "leaky-relu", "tanh", "gelu", "crelu", "prelu", "rational", "fourier"]
"""relu, leaky-relu (slope 0.01 below zero), crelu and prelu are positively homogeneous, f(c x) = c f(x) for c > 0:
between a normalization and another normalized layer they let its scale and offset be projected jointly without changing
the function. The others are curved; for them take `affine="regularize"` in `nap.normalize_and_project`. gelu is the
exact x Phi(x)."""

RATIONAL_NUMERATOR = (0.03356344, 0.505, 1.653176, 2.009367, 0.9314525, 0.1523257)
RATIONAL_DENOMINATOR = (0.0, 3.978945, 0.0, 0.3016351)
"""The start of `Rational`, powers ascending, the denominator's from 1: our least-squares fit of leaky ReLU with slope
0.01 on [-3, 3] (6,001 evenly spaced points). Root mean square error 0.0055, largest error 0.034, at 0."""


def crelu(x: Float[Array, "*batch units"]) -> Float[Array, "*batch features"]:
    """Concatenated ReLU (Shang et al., 2016; against loss of plasticity: Abbas et al., 2023).

    Returns:
      [relu(x), relu(-x)] on the last axis: two features a unit, the first of all units before the second of all units.
    """
    return jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)


def fourier(x: Float[Array, "*batch units"]) -> Float[Array, "*batch features"]:
    """Deep Fourier features (Lewandowski et al., 2024).

    Returns:
      [sin(x), cos(x)] on the last axis: two features a unit, the first of all units before the second of all units.
    """
    return jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=-1)


class PReLU(nnx.Module):
    """Parametric ReLU (He et al., 2015): x where x > 0, else slope x; a learned slope a channel, 0.25 at the start.

    Args:
      units: size of the last axis.
    """

    def __init__(self, units: int):
        self.slope = nnx.Param(jnp.full(units, 0.25, jnp.float32), role=Role.ACTIVATION)

    def __call__(self, x: Float[Array, "*batch units"]) -> Float[Array, "*batch units"]:
        """The activations."""
        return jnp.where(x > 0, x, last_axes(self.slope[...].astype(x.dtype), x) * x)


class Rational(nnx.Module):
    """Padé activation unit (Molina et al., 2020): P(x) / (1 + |Q(x)|) with learned coefficients, one set a layer.

    P(x) = a_0 + a_1 x + ... + a_5 x^5 and Q(x) = b_1 x + ... + b_4 x^4 start as a fit of leaky ReLU on [-3, 3], the
    range of normalized pre-activations; beyond it both tails bend towards slope a_5 / |b_4|. Computed in float32 at
    least.

    Scaling the numerator scales the activations. Where another normalized layer reads them this has no effect on the
    output, so the numerator keeps an implicit schedule of its own there, and `nap.audit` says so.
    """

    def __init__(self) -> None:
        self.numerator = nnx.Param(jnp.array(RATIONAL_NUMERATOR), role=Role.ACTIVATION)
        self.denominator = nnx.Param(jnp.array(RATIONAL_DENOMINATOR), role=Role.ACTIVATION)

    def __call__(self, x: Float[Array, "*batch units"]) -> Float[Array, "*batch units"]:
        """The activations."""
        full = wide(x)
        below = 1 + jnp.abs(full * _polynomial(self.denominator[...], full))
        return (_polynomial(self.numerator[...], full) / below).astype(x.dtype)


_FUNCTIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "leaky-relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "crelu": crelu,
    "fourier": fourier,
}

_TWO_FEATURES = (crelu, fourier)


def make_activation(activation: Activation | ActivationName, units: int) -> Activation:
    """The activation function of one layer.

    Args:
      activation: a name, or a function of the pre-activations, [*batch, units]. A function of yours keeps that shape.
      units: units of the layer: the size of the pre-activations' last axis.

    Returns:
      A function, or an NNX module if the activation has parameters to learn; their role is `Role.ACTIVATION`.

    Raises:
      ValueError: an activation that does not exist.
    """
    if callable(activation):
        return activation
    if activation == "prelu":
        return PReLU(units)
    if activation == "rational":
        return Rational()
    return _FUNCTIONS[_known(activation)]


def features_per_unit(activation: Activation | ActivationName) -> int:
    """How many features a unit has after an activation: 2 after `crelu` and `fourier`, else 1.

    Raises:
      ValueError: an activation that does not exist.
    """
    function = activation if callable(activation) else _FUNCTIONS.get(_known(activation))
    return 2 if function in _TWO_FEATURES else 1


def _known(name: str) -> str:
    names = get_args(ActivationName)
    if name not in names:
        nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
        known = ", ".join(map(repr, names))
        raise ValueError(f"activation must be a function or one of {known}, got {name!r}; the nearest is {nearest!r}")
    return name


def _polynomial(coefficients: Float[Array, " n"], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The polynomial with these coefficients, powers ascending, by Horner's rule."""
    value = jnp.zeros_like(x)
    for coefficient in reversed(tuple(coefficients.astype(x.dtype))):
        value = value * x + coefficient
    return value
