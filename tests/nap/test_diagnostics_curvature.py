"""Curvature of quadratics whose Hessian is given, and of a small network against `jax.hessian`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from nap.diagnostics import hessian_trace, hessian_vector_product, top_hessian_eigenvalue
from nap.networks import MLP


def symmetric(eigenvalues, seed=0):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))[0]
    return jnp.asarray((q * np.asarray(eigenvalues)) @ q.T, jnp.float32)


def quadratic(hessian):
    """A loss with this Hessian, on a tree of two leaves."""

    def loss(params):
        x = jnp.concatenate([params["a"].ravel(), params["b"]])
        return 0.5 * x @ hessian @ x + x.sum()

    return loss, {"a": jnp.full((2, 2), 0.3), "b": jnp.full(len(hessian) - 4, -0.2)}


def network_loss():
    graph, params, _ = nnx.split(MLP(3, [8, 8], 2, norm="layer", activation=nnx.tanh, rngs=nnx.Rngs(0)), nnx.Param, ...)
    x, y = jax.random.normal(jax.random.key(1), (16, 3)), jax.random.normal(jax.random.key(2), (16, 2))
    return lambda params: jnp.mean((nnx.merge(graph, params)(x) - y) ** 2), params


@functools.cache
def network_hessian():
    loss, params = network_loss()
    flat, unravel = ravel_pytree(params)
    return jax.jit(jax.hessian(lambda flat: loss(unravel(flat))))(flat)


def test_product_of_a_quadratic():
    hessian = symmetric(np.arange(1.0, 11.0))
    loss, params = quadratic(hessian)
    vector = {"a": jnp.arange(4.0).reshape(2, 2), "b": jnp.arange(6.0) - 2}
    expected = np.asarray(hessian) @ np.concatenate([np.arange(4.0), np.arange(6.0) - 2])
    product = hessian_vector_product(loss, params, vector)
    np.testing.assert_allclose(np.concatenate([product["a"].ravel(), product["b"]]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.linspace(1, 10, 10),
        [-50.0, -20.0, *np.linspace(-1, 4, 8)],  # the largest in size is negative
        -np.arange(3.0, 13.0),  # negative definite
        [7.0] + [0.0] * 9,  # rank one
        [7.0] * 5 + [-2.0] * 5,  # multiplicities: the Krylov space has two dimensions
        [3.0] * 10,
        [-3.0] * 10,  # after the end, zeros would be larger
        [0.0] * 10,
        [1e-4, *(-1.0 * np.arange(1, 10))],
    ],
    ids=[
        "spread",
        "larger negative",
        "negative definite",
        "rank one",
        "multiple",
        "identity",
        "minus identity",
        "zero",
        "near zero",
    ],
)
@pytest.mark.parametrize("iterations", [10, 40])
def test_top_eigenvalue_of_a_quadratic(eigenvalues, iterations):
    loss, params = quadratic(symmetric(eigenvalues))
    found = top_hessian_eigenvalue(loss, params, jax.random.key(0), iterations)
    assert float(found) == pytest.approx(max(eigenvalues), abs=3e-6 * max(np.abs(eigenvalues)))


@pytest.mark.parametrize("diagonal", [[5.0] + [0.0] * 9, [-5.0, -1.0] + [0.0] * 8, [0.0, 0.0, 0.0, *range(-7, 0)]])
def test_parameters_without_effect(diagonal):
    """Exact zeros: the remainder of the last step has no direction but rounding errors within the space."""
    loss, params = quadratic(jnp.diag(jnp.array(diagonal)))
    found = top_hessian_eigenvalue(loss, params, jax.random.key(1), 10)
    assert float(found) == pytest.approx(max(diagonal), abs=1e-5)


def test_estimates_rise_to_the_eigenvalue():
    hessian = symmetric(np.linspace(-30, 10, 200))
    loss, params = quadratic(hessian)
    found = [float(top_hessian_eigenvalue(loss, params, jax.random.key(0), n)) for n in (1, 3, 10, 30, 60)]
    assert found == sorted(found)
    assert found[0] < 0 < found[2] < 10 + 1e-3
    assert found[-1] == pytest.approx(10, abs=1e-3)


def test_top_eigenvalue_of_a_network():
    loss, params = network_loss()
    found = jax.jit(lambda params, key: top_hessian_eigenvalue(loss, params, key))(params, jax.random.key(0))
    assert float(found) == pytest.approx(float(np.linalg.eigvalsh(network_hessian())[-1]), rel=1e-4)


def test_trace_of_a_diagonal_is_exact():
    loss, params = quadratic(jnp.diag(jnp.arange(-3.0, 7.0)))
    assert float(hessian_trace(loss, params, jax.random.key(0), samples=1)) == pytest.approx(15.0)


def test_trace_of_a_network():
    """Within four standard errors, which the entries off the diagonal give."""
    hessian = np.asarray(network_hessian())
    loss, params = network_loss()
    samples = 400
    error = float(np.sqrt(2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2)) / samples))
    estimate = jax.jit(lambda params, key: hessian_trace(loss, params, key, samples))
    assert float(estimate(params, jax.random.key(0))) == pytest.approx(np.trace(hessian), abs=4 * error)
    assert error < 0.1 * np.trace(hessian)


def test_under_vmap():
    """Over losses with Hessians of their own."""
    scales = jnp.array([1.0, -2.0, 3.0])
    hessian = symmetric(np.arange(1.0, 11.0))

    def both(scale, key):
        loss, params = quadratic(scale * hessian)
        return top_hessian_eigenvalue(loss, params, key, 10), hessian_trace(loss, params, key, 4)

    keys = jax.random.split(jax.random.key(0), 3)
    top, trace = jax.jit(jax.vmap(both))(scales, keys)
    np.testing.assert_allclose(top, [10.0, -2.0, 30.0], rtol=1e-4)
    np.testing.assert_allclose(trace, [both(*pair)[1] for pair in zip(scales, keys, strict=True)], rtol=1e-4)


def test_half_precision_parameters():
    """Products in bfloat16, the method itself in float32."""
    params = {"w": jnp.ones(6, jnp.bfloat16)}
    diagonal = jnp.array([4.0, 1.0, 1.0, 1.0, 0.5, -8.0], jnp.bfloat16)
    found = top_hessian_eigenvalue(lambda p: 0.5 * jnp.sum(diagonal * p["w"] ** 2), params, jax.random.key(0))
    assert float(found) == pytest.approx(4.0, rel=0.02)


def test_counts_below_one_are_errors():
    loss, params = quadratic(jnp.eye(10))
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        top_hessian_eigenvalue(loss, params, jax.random.key(0), 0)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        hessian_trace(loss, params, jax.random.key(0), 0)
