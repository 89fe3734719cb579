"""Regularizers, resets and interventions on the weights inside of Normalize-and-Project: its norms are held."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from nap import paths
from nap.interventions.dash import dash
from nap.interventions.regularizers import l2, l2_init, parseval, spectral_regularization, w2_init
from nap.interventions.resets import reset_layers, reset_optimizer_state
from nap.interventions.upgd import upgd
from nap.interventions.weights import (
    clip_weights,
    hare_and_tortoise,
    noisy_updates,
    project_units,
    shrink_and_perturb,
    spectral_normalization,
)
from nap.networks import MLP, as_functions

NETWORK = as_functions(lambda rngs: MLP(5, [6, 4], 3, rngs=rngs))
SGD = optax.sgd(0.1)

MAKERS = {
    "l2": lambda key: optax.chain(l2(0.1), SGD),
    "l2_init": lambda key: optax.chain(l2_init(0.1), SGD),
    "w2_init": lambda key: optax.chain(w2_init(0.1), SGD),
    "parseval": lambda key: optax.chain(parseval(0.01, width=5), SGD),
    "spectral_regularization": lambda key: optax.chain(spectral_regularization(0.01), SGD),
    "shrink_and_perturb": lambda key: optax.chain(
        SGD, shrink_and_perturb(shrink=0.5, perturb=0.5, init=NETWORK.init, key=key, every=2)
    ),
    "noisy_updates": lambda key: optax.chain(SGD, noisy_updates(0.1, key)),
    "clip_weights": lambda key: optax.chain(SGD, clip_weights(0.5)),
    "spectral_normalization": lambda key: optax.chain(SGD, spectral_normalization()),
    "project_units": lambda key: optax.chain(SGD, project_units()),
    "hare_and_tortoise": lambda key: optax.chain(SGD, hare_and_tortoise(momentum=0.5, every=2)),
    "upgd": lambda key: upgd(0.1, sigma=0.1, key=key, direction=optax.scale_by_adam()),
    "reset_layers": lambda key: reset_layers(SGD, layers=["hidden/1/*"], every=2, init=NETWORK.init, key=key),
    "reset_network": lambda key: reset_layers(SGD, layers=["*"], every=2, init=NETWORK.init, key=key),
    "reset_optimizer_state": lambda key: reset_optimizer_state(optax.adam(0.1), every=2),
    "dash": lambda key: dash(SGD, every=3, window=1),
}


@functools.cache
def two_seeds():
    """The initial parameters of two seeds, on a leading axis."""
    return jax.jit(jax.vmap(NETWORK.init))(jax.random.split(jax.random.key(0), 2))


def run(optimizer, params):
    """Some updates with gradients that belong to no loss: the final parameters, and the first and the last state."""
    state = optimizer.init(params)

    def step(carry, t):
        params, state = carry
        gradients = jax.tree.map(lambda leaf: jnp.sin(40 * leaf + t), params)
        updates, state = optimizer.update(gradients, state, params, unknown=None)
        return (optax.apply_updates(params, updates), state), None

    (after, last), _ = jax.lax.scan(step, (params, state), jnp.arange(4.0))
    return after, state, last


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_norms_and_targets_are_held(make):
    """For two seeds in vmap, in scan: weights end on the sphere that the initial ones are on, targets never change."""
    before, keys = two_seeds(), jax.random.split(jax.random.key(1), 2)
    run_seed = jax.jit(jax.vmap(lambda params, key: run(nap.normalize_and_project(make(key)), params)))
    after, first, last = run_seed(before, keys)
    hidden = [path for path in paths.leaves(before) if path.startswith("hidden") and path.endswith("kernel")]
    assert len(hidden) == 2
    for path in hidden:
        start, end = (np.asarray(paths.leaves(tree)[path], np.float64) for tree in (before, after))
        assert np.max(np.abs(start - end)) > 0.01
        np.testing.assert_allclose(np.linalg.norm(end, axis=(1, 2)), np.linalg.norm(start, axis=(1, 2)), rtol=1e-5)
    targets = [optax.tree.get(state, "target_norms") for state in (first, last)]
    assert set(hidden) <= targets[0].keys()
    jax.tree.map(np.testing.assert_array_equal, *targets)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
