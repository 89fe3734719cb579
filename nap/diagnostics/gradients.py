"""How a network's gradients on different examples relate: cosines of loss gradients, the empirical tangent kernel.

Blocks of cosines near 1, or one constant, show that examples can no longer be learned independently (arXiv 2411.04832).
All functions treat examples one at a time, so a network with batch statistics does not fit; kernels are float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Shaped

from nap.diagnostics.ranks import srank
from nap.paths import PyTree

LossOfOne = Callable[[PyTree, Shaped[Array, "..."], Shaped[Array, "..."]], Float[Array, ""]]
"""Loss of one example: (params, input, target), both without a batch axis, to a scalar."""

Kernel = Float[Array, "n n"]


def per_example_gradients(
    loss_of_one: LossOfOne, params: PyTree, inputs: Shaped[Array, "n ..."], targets: Shaped[Array, "n ..."]
) -> Float[Array, "n parameters"]:
    """The gradient of each example's loss, all parameters as one vector."""
    one = jax.grad(loss_of_one)
    return jax.vmap(lambda x, y: ravel_pytree(one(params, x, y))[0].astype(jnp.float32))(inputs, targets)


def gradient_cosines(
    loss_of_one: LossOfOne, params: PyTree, inputs: Shaped[Array, "n ..."], targets: Shaped[Array, "n ..."]
) -> Kernel:
    """Cosines between the loss gradients of every two examples; 0 where a gradient is zero, the diagonal included."""
    gradients = per_example_gradients(loss_of_one, params, inputs, targets)
    largest = jnp.max(jnp.abs(gradients), axis=1, keepdims=True)
    gradients = gradients / jnp.where(largest > 0, largest, 1.0)  # squares of the gradients of a fitted loss underflow
    return cosine_kernel(_gram(gradients))


def empirical_ntk(
    apply: Callable[[PyTree, Shaped[Array, "1 ..."]], Float[Array, "1 ..."]],
    params: PyTree,
    inputs: Shaped[Array, "n ..."],
) -> Float[Array, "n_outputs n_outputs"]:
    """The empirical neural tangent kernel: inner products of the parameter gradients of all outputs on all inputs.

    K[i o + a, j o + b] = <d f_a(x_i) / d params, d f_b(x_j) / d params> for o outputs (Jacot et al., 2018). Takes
    memory for n * o copies of the parameters.

    Args:
      apply: (params, batch of inputs) to a batch of outputs; called with batches of one.
      params: the parameters.
      inputs: the inputs.
    """
    jacobians = jax.vmap(jax.jacrev(lambda p, x: apply(p, x[None]).reshape(-1)), in_axes=(None, 0))(params, inputs)
    flat = [leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for leaf in jax.tree.leaves(jacobians)]
    return sum(map(_gram, flat[1:]), _gram(flat[0]))


def cosine_kernel(kernel: Kernel) -> Kernel:
    """K_ij / sqrt(K_ii K_jj): a kernel's cosines; rows and columns with K_ii = 0 become 0."""
    size = jnp.sqrt(jnp.diagonal(kernel))
    inverse = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1.0), 0.0)
    return kernel * inverse[:, None] * inverse


def mean_off_diagonal(matrix: Kernel) -> Float[Array, ""]:
    """The mean of the entries off the diagonal; of cosines: 0 if examples do not interfere, 1 if they are all alike.

    Raises:
      ValueError: the matrix has one row only.
    """
    n = matrix.shape[0]
    if n < 2:
        raise ValueError(f"a matrix of {n} row has no entries off the diagonal; give 2 examples or more")
    return jnp.sum(jnp.where(jnp.eye(n, dtype=bool), 0.0, matrix)) / (n * (n - 1))


def kernel_rank(kernel: Kernel, relative: float = 1e-4) -> Int[Array, ""]:
    """How many eigenvalues are above `relative` times the largest; 0 for a zero kernel.

    The default stands above the rounding errors of a float32 kernel of a few hundred rows.
    """
    eigenvalues = _eigenvalues(kernel)
    return jnp.sum(eigenvalues > relative * eigenvalues[0], dtype=jnp.int32)


def kernel_srank(kernel: Kernel, delta: float = 0.01) -> Int[Array, ""]:
    """How many eigenvalues it takes to reach a share 1 - delta of their sum; 0 for a zero kernel.

    The `srank` of the kernel, which is the `approximate_rank` of the gradients it is made of.
    """
    return srank(_eigenvalues(kernel), delta)


def kernel_condition(kernel: Kernel) -> Float[Array, ""]:
    """The largest eigenvalue over the smallest, float32: at most 1 / (n eps), 8e6 / n, which means singular.

    Infinite for a zero kernel.
    """
    eigenvalues = _eigenvalues(kernel)
    largest = eigenvalues[0]
    floor = kernel.shape[0] * jnp.finfo(kernel.dtype).eps * largest
    smallest = jnp.maximum(eigenvalues[-1], floor)
    return jnp.where(largest > 0, largest / jnp.where(largest > 0, smallest, 1.0), jnp.inf)


def _gram(rows: Float[Array, "n d"]) -> Kernel:
    """Full float32 also where a backend's default is coarser: small eigenvalues depend on it."""
    rows = rows.astype(jnp.float32)
    return jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)


def _eigenvalues(kernel: Kernel) -> Float[Array, " n"]:
    """Eigenvalues of a positive semidefinite matrix, the largest first; those that rounding made negative are 0."""
    return jnp.maximum(jnp.linalg.eigvalsh(kernel)[::-1], 0.0)
