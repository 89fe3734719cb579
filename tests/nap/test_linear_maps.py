import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nap import linear_maps
from nap.linear_maps import convolve, multiply


def by_xla(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 1), (5, 1), (4, 2), (3, 2)])
def test_equals_xlas_own_convolution_and_so_do_its_gradients(size, stride, padding):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 9, 7, 3)), jax.random.normal(keys[1], (size, size, 3, 4))
    found, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, padding), x, kernel)
    expected, pull_expected = jax.vjp(lambda x, kernel: by_xla(x, kernel, stride, padding), x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    cotangent = jax.random.normal(keys[2], expected.shape)
    for ours, theirs in zip(pull(cotangent), pull_expected(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("batch", [(), (32,), (4, 8), (33,)])
def test_a_product_is_the_product_and_so_are_its_gradients(batch):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (*batch, 2048)), jax.random.normal(keys[1], (2048, 512))
    found, pull = jax.vjp(multiply, x, kernel)
    expected, pull_expected = jax.vjp(jnp.matmul, x, kernel)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # sums of 2,048 products of normal numbers
    cotangent = jax.random.normal(keys[2], expected.shape)
    for ours, theirs in zip(pull(cotangent), pull_expected(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_only_few_rows_and_a_large_kernel_on_a_cpu_are_written_as_columns(monkeypatch):
    def are_columns(rows, outputs):
        x, kernel = jnp.zeros((rows, 2048)), jnp.zeros((2048, outputs))
        jaxpr = jax.make_jaxpr(lambda x, kernel: multiply(x, kernel))(x, kernel)  # a new function is traced anew
        return "optimization_barrier" in {equation.primitive.name for equation in jaxpr.eqns}

    assert are_columns(32, 512) is (jax.default_backend() == "cpu")
    assert not are_columns(33, 512)
    assert not are_columns(32, 511)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not are_columns(32, 512)


def primitives(x, kernel, stride):
    jaxpr = jax.make_jaxpr(lambda x, kernel: convolve(x, kernel, stride))(x, kernel)  # a new function is traced anew
    return {equation.primitive.name for equation in jaxpr.eqns}


def test_on_a_cpu_only_a_convolution_that_strides_or_has_too_many_patches_is_xlas(monkeypatch):
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))
    if jax.default_backend() == "cpu":
        assert "conv_general_dilated" not in primitives(x, kernel, 1)
    assert "conv_general_dilated" in primitives(x, kernel, 2)
    monkeypatch.setattr(linear_maps, "_LARGEST_PATCHES", 9 * x.size - 1)
    assert "conv_general_dilated" in primitives(x, kernel, 1)


def test_other_backends_convolve(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in primitives(jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4)), 1)
