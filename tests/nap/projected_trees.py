"""Small networks as trees of parameters, training on random gradients, and whether norms were held."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nap
from nap import paths
from nap.networks import MLP


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in (16, 12):
            x = nn.relu(nn.LayerNorm()(nn.Dense(width, use_bias=False)(x)))
        return nn.Dense(3)(x)


def nnx_state(key: jax.Array) -> Any:
    return nnx.split(MLP(8, [16, 12], 3, rngs=nnx.Rngs(key)), nnx.Param)[1]


def linen(key: jax.Array) -> Any:
    return LinenMLP().init(key, jnp.ones((1, 8)))


def random_gradients(params: Any, key: jax.Array) -> Any:
    """Gradients that have nothing to do with any loss: projection must hold whatever comes."""
    return jax.tree.map(lambda p: jax.random.normal(key, p.shape, p.dtype), params)


def true_norms(params: Any, names: Any) -> dict[str, float]:
    """Frobenius norms in float64, by NumPy."""
    leaves = paths.leaves(params)
    return {name: float(np.linalg.norm(np.asarray(leaves[name], np.float64))) for name in names}


def assert_held(params: Any, initial: Any, tolerance: float = 1e-6) -> None:
    names = nap.weight_norms(initial)
    assert len(names) == 2
    for name, norm in true_norms(initial, names).items():
        assert true_norms(params, [name])[name] == pytest.approx(norm, rel=tolerance), name


def train(optimizer: Any, params: Any, steps: int = 3) -> Any:
    @jax.jit
    def step(params, state, key):
        updates, state = optimizer.update(random_gradients(params, key), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(steps):
        params, state = step(params, state, jax.random.key(i))
    return params
