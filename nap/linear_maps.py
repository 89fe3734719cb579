"""Dense products and convolutions, computed the way that the backend is good at."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padding = Literal["VALID", "SAME"]
"""A convolution's padding: none, or zeros around, so that with stride 1 the height and width stay."""

_LARGEST_PATCHES = 2**24  # entries; beyond it the patches' memory costs more than the product gains
_MOST_ROWS, _SMALLEST_KERNEL = 32, 2**20  # where reading the kernel takes longer than computing with it


def multiply(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """The product x kernel.

    On a CPU that of at most 32 rows with a kernel of a million entries, such as the dense layers of a DQN, has the rows
    written as columns first, as XLA multiplies faster what lies like that: a Rainbow update, with twelve such products,
    took 0.87 of the time (`python -m experiments bench --only products` measures one).

    Args:
        x: the inputs.
        kernel: the kernel, of the same dtype.
    """
    inputs, outputs = kernel.shape
    rows = math.prod(x.shape[:-1])
    if jax.default_backend() != "cpu" or rows > _MOST_ROWS or inputs * outputs < _SMALLEST_KERNEL:
        return x @ kernel
    columns = jax.lax.optimization_barrier(x.reshape(rows, inputs).T)  # without it XLA undoes the transposition
    return jnp.tensordot(columns, kernel, ((0,), (0,))).reshape(*x.shape[:-1], outputs)


def convolve(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    stride: int = 1,
    padding: Padding = "VALID",
) -> Float[Array, "batch h w outputs"]:
    """A convolution in two dimensions, channels last, without dilation.

    On a CPU one of stride 1 is a matrix product of its patches. XLA's own convolutions take 4 to 48 times as long there
    inside a loop (`jax.lax.scan`), and 4 times under `jax.vmap`; outside of them a network with XLA's takes 0.7 to 3.3
    of the time (docs/speed.md). A strided one, and one with very many patches, is left to XLA.

    Args:
        x: the images.
        kernel: the kernel, of the same dtype.
        stride: step in both directions.
        padding: "VALID" or "SAME".
    """
    rows, columns, inputs, outputs = kernel.shape
    if jax.default_backend() == "cpu" and stride == 1 and math.prod(x.shape) * rows * columns <= _LARGEST_PATCHES:
        if padding == "SAME":  # an even kernel's odd zero goes behind, as XLA has it
            x = jnp.pad(x, ((0, 0), *(((n - 1) // 2, n // 2) for n in (rows, columns)), (0, 0)))
        x = jax.lax.optimization_barrier(x)  # else what makes x may be computed anew for each of the slices
        height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
        shifted = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
        return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(rows * columns * inputs, outputs)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
