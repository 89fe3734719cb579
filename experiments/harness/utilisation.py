"""How much of a device's arithmetic training uses: the network's own floating-point operations over a measured peak.

Model-FLOP utilisation counts what the mathematics asks for, three times a forward pass (Chowdhery et al., 2022, section
4.1), and not what the compiled program happens to do: what `remat` computes again is no use. XLA's own count would have
that in it, and the body of a loop only once.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

BACKWARD = 2
"""A backward pass has two products for each one of a forward pass: for the inputs' gradient and the weights'."""

_SIZES = {"cpu": 1024}
_SIZE = 8192
"""Rows of the square matrices that the peak is measured with: large enough to fill a GPU, done in a second."""
_REPEATS = 5


def training_flops(forward: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of a forward and a backward pass: of products and convolutions, two for each term.

    Args:
        forward: the network as a function; a kernel that JAX does not see into, such as cuDNN's attention, counts 0, so
            give a network without it.
        arguments: arrays, or their shapes.
    """
    return (1 + BACKWARD) * _flops(jax.make_jaxpr(forward)(*arguments).jaxpr)


@functools.cache
def measured_peak(dtype: str) -> float:
    """Floating-point operations a second of one large product of matrices on one device: the best of a few."""
    size = _SIZES.get(jax.default_backend(), _SIZE)
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(matrix))
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _COUNTED:
            total += _COUNTED[name](equation)
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(_flops(inner) for inner in _inside(equation.params))
    return total


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    """The programs that a loop, a branch or a call runs."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def _of_product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _of_convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * equation.outvars[0].aval.size * kernel.size / outputs


_COUNTED: dict[str, Callable[[Any], float]] = {"dot_general": _of_product, "conv_general_dilated": _of_convolution}
