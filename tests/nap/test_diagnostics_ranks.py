"""Ranks of matrices whose singular values are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nap.diagnostics import (
    approximate_rank,
    effective_rank,
    feature_rank,
    ranks,
    singular_values,
    srank,
    stable_rank,
)


def matrix(values, rows, columns, seed=0):
    """A matrix with these singular values and random singular vectors, in float64."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(n, len(values))))[0] for n in (rows, columns))
    return (u * np.asarray(values)) @ v.T


@pytest.mark.parametrize("shape", [(256, 100), (20, 60)])
def test_singular_values_agree_with_numpy(shape):
    """To 1e-6 of the largest, over five orders of magnitude."""
    features = matrix(np.logspace(0, -5, min(shape)), *shape).astype(np.float32)
    found = singular_values(jnp.asarray(features))
    assert found.shape == (min(shape),)
    np.testing.assert_allclose(found, np.linalg.svd(features.astype(np.float64), compute_uv=False), atol=1e-6)


def test_convolutional_features_are_averaged_over_space():
    features = np.random.default_rng(1).normal(size=(7, 2, 3, 4)).astype(np.float32)
    expected = np.linalg.svd(features.reshape(7, 6, 4).mean(1), compute_uv=False)
    np.testing.assert_allclose(singular_values(jnp.asarray(features)), expected, atol=1e-6)


def test_ranks_by_hand():
    """Singular values 60, 39, 0.9, 0.1, sum 100; squares 3600, 1521, 0.81, 0.01, sum 5121.82."""
    values = jnp.array([60.0, 39.0, 0.9, 0.1])
    assert int(srank(values, delta=0.011)) == 2
    assert int(srank(values, delta=0.009)) == 3
    assert int(srank(values, delta=0.0005)) == 4
    assert int(srank(values, delta=0.5)) == 1
    assert int(approximate_rank(values)) == 2
    assert int(approximate_rank(values, delta=0.3)) == 1  # 3600 / 5121.82 = 0.703
    assert float(stable_rank(values)) == pytest.approx((3600 + 1521 + 0.81 + 0.01) / 3600)
    shares = np.array([0.6, 0.39, 0.009, 0.001])
    assert float(effective_rank(values)) == pytest.approx(np.prod(shares**-shares), rel=1e-5)
    assert int(feature_rank(values, samples=400)) == 3  # 3, 1.95, 0.045, 0.005 after division by 20
    assert int(feature_rank(values, samples=400, epsilon=0.04)) == 3
    assert int(feature_rank(values, samples=400, epsilon=0.05)) == 2


def test_equal_singular_values_give_the_number_of_columns():
    """All but srank and its square, which leave out 1 %."""
    found = ranks(jnp.asarray(matrix([3.0] * 8, 50, 8), jnp.float32))
    assert {name: round(float(rank), 4) for name, rank in found.items()} == {
        "srank": 8,
        "approximate_rank": 8,
        "effective_rank": 8,
        "stable_rank": 8,
        "feature_rank": 8,
    }


def test_the_five_ranks_differ():
    """One large and 19 small singular values: what each definition says."""
    features = jnp.asarray(matrix([100.0] + [2.0] * 19, 400, 20), jnp.float32)
    found = {name: float(rank) for name, rank in ranks(features).items()}
    assert found["srank"] == 20  # 138 of sum 138; 136.62 needs all
    assert found["approximate_rank"] == 1  # 10000 of 10076
    assert found["stable_rank"] == pytest.approx(1.0076, abs=1e-4)
    assert found["feature_rank"] == 20  # 2 / 20 = 0.1
    shares = np.array([100.0] + [2.0] * 19) / 138
    assert found["effective_rank"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-4)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 2, 2, 3)])
def test_a_zero_matrix_has_rank_zero(shape):
    assert {name: float(rank) for name, rank in ranks(jnp.zeros(shape)).items()} == dict.fromkeys(
        ranks(jnp.ones(shape)), 0
    )


def test_rank_one():
    """The rounding errors of 99 other singular values do not add up to 1 %."""
    rng = np.random.default_rng(0)
    found = ranks(jnp.asarray(np.outer(1 + rng.random(256), rng.random(100)), jnp.float32))
    assert {name: round(float(rank), 3) for name, rank in found.items()} == dict.fromkeys(found, 1)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_all_but_feature_rank_ignore_the_scale(scale):
    """Also where squares are beyond float32."""
    values = jnp.array([60.0, 38.0, 1.5, 0.5])  # 98, 99.5: not at the threshold
    for rank in (srank, approximate_rank, effective_rank, stable_rank):
        np.testing.assert_allclose(rank(scale * values), rank(values), rtol=1e-5)
    assert int(feature_rank(scale * values, 4)) == (4 if scale > 1 else 0)


def test_under_jit_and_vmap():
    features = jnp.stack([jnp.asarray(matrix(np.arange(1.0, n), 12, 6, n), jnp.float32) for n in (3, 5, 7)])
    together = jax.jit(jax.vmap(ranks))(features)
    for i, member in enumerate(features):
        for name, rank in ranks(member).items():
            np.testing.assert_allclose(together[name][i], rank, rtol=1e-5)
