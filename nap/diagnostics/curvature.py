"""Curvature of a loss: the Hessian's largest eigenvalue and its trace, from Hessian-vector products.

`loss` maps parameters (floating-point leaves only) to a scalar; fix the batch inside it. The products run in a
`lax.scan`, in which XLA's CPU backend computes convolutions many times slower than outside one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from nap.norms import vector_norm
from nap.paths import PyTree

Loss = Callable[[PyTree], Float[Array, ""]]


def hessian_vector_product(loss: Loss, params: PyTree, vector: PyTree) -> PyTree:
    """H v, with H the Hessian of `loss` at `params` (Pearlmutter, 1994); costs about four evaluations of the loss.

    Args:
      loss: parameters to scalar.
      params: the point.
      vector: v, with the structure, shapes and dtypes of `params`.
    """
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def top_hessian_eigenvalue(loss: Loss, params: PyTree, key: jax.Array, iterations: int = 30) -> Float[Array, ""]:
    """The algebraically largest eigenvalue of the Hessian of `loss`, by the Lanczos method.

    Unlike power iteration it is not drawn to a negative eigenvalue of larger size. The estimate comes from below: it is
    at most the true value and rises to it with the iterations, fastest where the largest eigenvalue stands apart. With
    as many iterations as parameters it is exact. Every step is orthogonalized against all former ones, which takes
    memory for `iterations` copies of the parameters.

    Args:
      loss: parameters to scalar.
      params: the point.
      key: draws the starting vector.
      iterations: Hessian-vector products; more than there are parameters are not made.

    Raises:
      ValueError: `iterations` is below 1.
    """
    _check_count("iterations", iterations)
    flat, product = _flat_product(loss, params)
    steps = min(iterations, flat.size)
    start = jax.random.normal(key, (flat.size,), flat.dtype)

    def step(basis: Array, i: Array) -> tuple[Array, tuple[Array, Array]]:
        image = product(basis[i])
        remainder = image
        for _ in range(2):  # twice is enough: once leaves rounding errors as large as a small remainder
            remainder = remainder - _dot(basis.T, _dot(basis, remainder))
        size = vector_norm(remainder)
        # A remainder of the size of rounding errors: the products no longer leave the space that is spanned.
        is_new = size > 10 * jnp.finfo(flat.dtype).eps * vector_norm(image)
        beta = jnp.where(is_new, size, 0.0)
        direction = jnp.where(is_new, remainder / jnp.where(is_new, size, 1.0), 0.0)
        return basis.at[i + 1].set(direction, mode="drop"), (_dot(basis[i], image), beta)

    basis = jnp.zeros((steps, flat.size), flat.dtype).at[0].set(start / jnp.linalg.vector_norm(start))
    basis, (alpha, beta) = jax.lax.scan(step, basis, jnp.arange(steps))
    # Rows after the end would add eigenvalues 0; the first alpha is never above the largest eigenvalue of the rest.
    alpha = jnp.where(jnp.any(basis != 0, axis=1), alpha, alpha[0])
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    return jnp.linalg.eigvalsh(tridiagonal)[-1]


def hessian_trace(loss: Loss, params: PyTree, key: jax.Array, samples: int = 32) -> Float[Array, ""]:
    """The trace of the Hessian of `loss`: the mean of v^T H v over random signs v (Hutchinson, 1990).

    Unbiased, with variance 2 / samples times the sum of squares of the entries off the diagonal: exact if there are
    none.

    Args:
      loss: parameters to scalar.
      params: the point.
      key: draws the signs.
      samples: Hessian-vector products.

    Raises:
      ValueError: `samples` is below 1.
    """
    _check_count("samples", samples)
    flat, product = _flat_product(loss, params)

    def quadratic(key: jax.Array) -> Array:
        signs = jax.random.rademacher(key, (flat.size,), flat.dtype)
        return _dot(signs, product(signs))

    return jnp.mean(jax.lax.map(quadratic, jax.random.split(key, samples)))


def _flat_product(loss: Loss, params: PyTree) -> tuple[Float[Array, " size"], Callable[[Array], Array]]:
    """The parameters as one vector of float32 at least, and v -> H v on such vectors."""
    flat, unravel = ravel_pytree(params)
    working = jnp.promote_types(flat.dtype, jnp.float32)

    def product(vector: Array) -> Array:
        image = hessian_vector_product(loss, params, unravel(vector.astype(flat.dtype)))
        return ravel_pytree(image)[0].astype(working)

    return flat.astype(working), product


def _dot(a: Array, b: Array) -> Array:
    """Full float32 also where a backend's default is coarser: orthogonality depends on it."""
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
