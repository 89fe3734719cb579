"""Sizes of features and of trees, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nap.diagnostics import LeafNorms, distance_to_init, feature_norm, leaf_norms
from nap.networks import MLP


def test_feature_norm_by_hand():
    """Norms 5 and 13."""
    assert float(feature_norm(jnp.array([[3.0, 4.0], [5.0, 12.0]]))) == pytest.approx(9.0)
    assert float(feature_norm(jnp.full((2, 2, 2, 1), 0.5, jnp.bfloat16))) == pytest.approx(1.0)


def test_leaf_norms_by_hand():
    tree = {"layer": {"kernel": jnp.array([[3.0, 0.0], [0.0, -4.0]]), "count": jnp.array(7)}, "bias": jnp.zeros(3)}
    found = jax.jit(leaf_norms)(tree)
    assert found == {"layer/kernel": LeafNorms(5.0, 7.0, 0.5), "bias": LeafNorms(0.0, 0.0, 1.0)}


def test_distance_by_hand():
    """A change of 2 in every entry is a distance of 2, whatever the size."""
    initial = {"a": jnp.ones((3, 5)), "b": jnp.array([1.0, 2.0])}
    params = {"a": initial["a"] - 2, "b": jnp.array([1.0, 6.0])}
    assert distance_to_init(params, initial) == {"a": 2.0, "b": pytest.approx(4 / np.sqrt(2))}


def test_distance_of_a_network_under_vmap():
    def init(key):
        return nnx.split(MLP(3, [4], 2, rngs=nnx.Rngs(key)), nnx.Param)[1]

    initial = jax.vmap(init)(jax.random.split(jax.random.key(0), 2))
    params = jax.tree.map(lambda x: x + jnp.array([1.0, 3.0]).reshape((2,) + (1,) * (x.ndim - 1)), initial)
    found = jax.jit(jax.vmap(distance_to_init))(params, initial)
    assert set(found) == {
        "hidden/0/kernel",
        "hidden/0/norm/scale",
        "hidden/0/norm/offset",
        "output/kernel",
        "output/bias",
    }
    for distance in found.values():
        np.testing.assert_allclose(distance, [1.0, 3.0], rtol=1e-6)


def test_another_tree_is_an_error():
    with pytest.raises(ValueError, match=r"'a' has shape \(2,\), but the initial parameters have no such leaf"):
        distance_to_init({"a": jnp.ones(2)}, {"b": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"'a' has shape \(2,\), but the initial parameters have shape \(3,\)"):
        distance_to_init({"a": jnp.ones(2)}, {"a": jnp.ones(3)})
