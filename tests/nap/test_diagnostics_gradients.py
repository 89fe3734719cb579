"""Gradients of examples against loops and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from nap.diagnostics import (
    cosine_kernel,
    empirical_ntk,
    gradient_cosines,
    kernel_condition,
    kernel_rank,
    kernel_srank,
    mean_off_diagonal,
    per_example_gradients,
)
from nap.networks import MLP, as_functions

X = jax.random.normal(jax.random.key(0), (5, 3))
Y = jax.random.normal(jax.random.key(1), (5, 2))
NETWORK = as_functions(lambda rngs: MLP(3, [6], 2, norm="layer", activation=nnx.tanh, rngs=rngs))


@pytest.fixture(scope="module")
def params():
    return jax.jit(NETWORK.init)(jax.random.key(2))


def loss_of_one(params, x, y):
    return jnp.sum((NETWORK.apply(params, x[None])[0] - y) ** 2)


def linear(params, x):
    return x @ params["w"]


def test_gradients_and_cosines_of_a_network_against_a_loop(params):
    loop = np.stack([ravel_pytree(jax.grad(loss_of_one)(params, x, y))[0] for x, y in zip(X, Y, strict=True)])
    np.testing.assert_allclose(per_example_gradients(loss_of_one, params, X, Y), loop, rtol=1e-4, atol=1e-5)
    unit = loop / np.linalg.norm(loop, axis=1, keepdims=True)
    found = jax.jit(lambda params: gradient_cosines(loss_of_one, params, X, Y))(params)
    np.testing.assert_allclose(found, unit @ unit.T, atol=1e-5)
    assert float(mean_off_diagonal(found)) == pytest.approx((np.sum(unit @ unit.T) - 5) / 20, abs=1e-5)


def test_cosines_of_a_linear_model_by_hand():
    """Gradients (w x - y) x: x = (1, 0), (0, 2), (3, 3) with errors of signs +, +, -, and one that is fitted."""
    x = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [1.0, 1.0]])
    y = jnp.array([-1.0, -1.0, 1.0, 0.0])
    found = gradient_cosines(lambda w, x, y: 0.5 * (x @ w - y) ** 2, jnp.zeros(2), x, y)
    half = np.sqrt(0.5)
    expected = [[1, 0, -half, 0], [0, 1, -half, 0], [-half, -half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert float(mean_off_diagonal(found)) == pytest.approx(-4 * half / 12)


def test_cosines_of_tiny_gradients():
    """1e-30 squared is 0 in float32."""
    x = jnp.array([[1.0, 0.0], [3.0, 3.0]])
    found = gradient_cosines(lambda w, x, y: y * (x @ w), jnp.zeros(2), x, jnp.array([1e-30, 1e-30]))
    assert float(found[0, 1]) == pytest.approx(np.sqrt(0.5), rel=1e-5)


def test_kernel_of_a_network_against_a_loop(params):
    """Rows are outputs, those of one input together."""
    rows = np.stack(
        [
            ravel_pytree(jax.grad(lambda p, x=x, a=a: NETWORK.apply(p, x[None])[0, a])(params))[0]
            for x in X
            for a in range(2)
        ]
    )
    found = jax.jit(lambda params: empirical_ntk(NETWORK.apply, params, X))(params)
    np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-4, atol=1e-4)
    size = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(cosine_kernel(found), rows @ rows.T / np.outer(size, size), atol=1e-5)


def test_kernel_of_a_linear_model():
    """f = x W: K = X X^T for each output, and nothing between outputs."""
    params = {"w": jnp.ones((3, 2))}
    np.testing.assert_allclose(empirical_ntk(linear, params, X), np.kron(X @ X.T, np.eye(2)), atol=1e-5)


def test_a_linear_model_has_the_rank_of_its_inputs():
    """15 examples in 3 dimensions, with 2 outputs: rank 6 of 30, singular."""
    x = jax.random.normal(jax.random.key(3), (15, 3))
    kernel = empirical_ntk(linear, {"w": jnp.ones((3, 2))}, x)
    assert kernel.shape == (30, 30)
    assert int(kernel_rank(kernel)) == 6
    assert int(kernel_srank(kernel)) == 6
    assert float(kernel_condition(kernel)) > 1e5


def test_kernel_summaries_by_hand():
    kernel = jnp.diag(jnp.array([100.0, 1.5, 1.0, 0.02]))
    assert int(kernel_rank(kernel, relative=1e-2)) == 2
    assert int(kernel_rank(kernel)) == 4
    assert int(kernel_srank(kernel)) == 2  # 101.5 of 102.52 is 99.005 %
    assert float(kernel_condition(kernel)) == pytest.approx(5000, rel=1e-4)


def test_a_zero_kernel():
    zero = jnp.zeros((4, 4))
    assert int(kernel_rank(zero)) == int(kernel_srank(zero)) == 0
    assert float(kernel_condition(zero)) == np.inf
    np.testing.assert_array_equal(cosine_kernel(zero), zero)


def test_the_mean_leaves_out_the_diagonal():
    assert float(mean_off_diagonal(jnp.array([[100.0, 1.0], [3.0, 100.0]]))) == 2.0
    with pytest.raises(ValueError, match="give 2 examples or more"):
        mean_off_diagonal(jnp.ones((1, 1)))


def test_under_vmap_over_seeds():
    params = jax.vmap(NETWORK.init)(jax.random.split(jax.random.key(4), 2))
    kernels = jax.jit(jax.vmap(lambda params: empirical_ntk(NETWORK.apply, params, X)))(params)
    for i in range(2):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        np.testing.assert_allclose(kernels[i], empirical_ntk(NETWORK.apply, member, X), rtol=1e-4, atol=1e-4)
