"""Plasticity injection: what the outputs are, and who learns when."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from nap import paths
from nap.interventions.adam import adam
from nap.interventions.injection import plasticity_injection, with_injection
from nap.networks import MLP, as_functions
from nap.roles import Role

PLAIN = as_functions(lambda rngs: MLP(4, [6, 5], 2, rngs=rngs))
HEAD = ["hidden/1/*", "output/*"]
NETWORK = with_injection(PLAIN, HEAD)
X = jax.random.normal(jax.random.key(9), (7, 4))
Y = jax.random.normal(jax.random.key(8), (7, 2))


@functools.cache
def initial():
    return jax.jit(NETWORK.init)(jax.random.key(0))


def train(optimizer, updates):
    """The parameters after each update on a small regression."""

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: jnp.mean((NETWORK.apply(p, X) - Y) ** 2))(params)
        steps, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, steps), state

    params = initial()
    state, seen = optimizer.init(params), [params]
    for _ in range(updates):
        params, state = step(params, state)
        seen.append(params)
    return seen, state


def changed(before, after):
    """The paths of the leaves that differ."""
    a, b = paths.leaves(before), paths.leaves(after)
    return {path for path in a if np.any(a[path] != b[path])}


def names(part, *prefixes):
    return {path for path in paths.leaves(initial()) if path.startswith(tuple(f"{part}/{p}" for p in prefixes))}


def test_an_untrained_second_head_adds_nothing():
    params = initial()
    expected, hidden = PLAIN.activations(params["first"], X)
    np.testing.assert_array_equal(NETWORK.apply(params, X), PLAIN.apply(params["first"], X))
    outputs, activations = NETWORK.activations(params, X)
    np.testing.assert_array_equal(outputs, expected)
    jax.tree.map(np.testing.assert_array_equal, activations, hidden)
    assert NETWORK.readers == PLAIN.readers
    assert set(params["second"]) == {path for path in paths.leaves(params["first"]) if not path.startswith("hidden/0")}
    assert not np.allclose(params["second"]["output/kernel"][...], paths.leaves(params["first"])["output/kernel"])


def test_outputs_are_first_plus_second_minus_start():
    params = initial()
    params = {**params, "second": jax.tree.map(lambda leaf: leaf + 0.3, params["second"])}

    @functools.partial(jax.jit, static_argnums=0)
    def of_head(part, params):
        return PLAIN.apply(paths.replace(params["first"], paths.leaves(params[part])), X)

    expected = PLAIN.apply(params["first"], X) + of_head("second", params) - of_head("start", params)
    np.testing.assert_allclose(NETWORK.apply(params, X), expected, rtol=1e-5, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(NETWORK.apply(p, X) ** 2)))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["start"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["second"]))


def test_first_learns_until_the_injection_and_then_the_second_head():
    """Even under a weight decay, which moves what has no gradient."""
    seen, _ = train(plasticity_injection(optax.chain(optax.add_decayed_weights(0.1), adam(0.01)), at=3), 6)
    for update, (before, after) in enumerate(itertools.pairwise(seen)):
        learning = names("first", "") if update < 3 else names("first", "hidden/0") | names("second", "")
        assert changed(before, after) == learning
    np.testing.assert_allclose(NETWORK.apply(seen[3], X), PLAIN.apply(seen[3]["first"], X), rtol=1e-6)


def test_before_the_injection_it_is_the_plain_network_and_optimizer():
    seen, _ = train(plasticity_injection(adam(0.01), at=5), 5)
    optimizer, params = adam(0.01), initial()["first"]

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: jnp.mean((PLAIN.apply(p, X) - Y) ** 2))(params)
        steps, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, steps), state

    state = optimizer.init(params)
    for _ in range(5):
        params, state = step(params, state)
    for path, leaf in paths.leaves(params).items():
        np.testing.assert_allclose(paths.leaves(seen[-1]["first"])[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path)


def test_the_second_heads_first_step_is_a_first_step():
    """Adam's first step is the learning rate for every entry with a gradient."""
    seen, _ = train(plasticity_injection(adam(0.01), at=4), 5)
    step = paths.leaves(optax.tree.sub(seen[5]["second"], seen[4]["second"]))["output/bias"]
    np.testing.assert_allclose(np.abs(step), 0.01, rtol=1e-3)


def test_moments_of_what_is_frozen_see_no_gradient():
    _, state = train(plasticity_injection(adam(0.01), at=2), 2)
    second = {path: leaf for path, leaf in paths.leaves(state.inner[0].mu).items() if not path.startswith("first/")}
    assert second and not any(np.any(leaf) for leaf in second.values())


def test_roles_are_the_networks_own():
    """The second head's leaves declare what they are: its output layer is never projected."""
    roles = nap.roles(initial())
    plain = nap.roles(initial()["first"])
    for part in ("first", "second", "start"):
        for leaf in roles:
            if leaf.path.startswith(part):
                assert leaf.role is plain[leaf.path.removeprefix(f"{part}/")].role
    assert sum(path.startswith("second") for path in roles.paths(Role.HIDDEN)) == 1


def test_under_projection_all_three_keep_their_norms():
    optimizer = nap.normalize_and_project(plasticity_injection(adam(0.05), at=2))
    seen, _ = train(optimizer, 5)
    start, end = nap.weight_norms(seen[0]), nap.weight_norms(seen[-1])
    assert len(start) == 4
    for path, norm in start.items():
        assert float(end[path]) == pytest.approx(float(norm), rel=1e-5)
    for path in ("output/kernel", "hidden/1/kernel"):
        a, b = (paths.leaves(params["start"])[path] for params in (seen[0], seen[-1]))
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no parameter matches 'head/"):
        with_injection(PLAIN, ["head/*"]).init(jax.random.key(0))
    with pytest.raises(ValueError, match="at is a number of updates, at least 0, got -1"):
        plasticity_injection(adam(0.1), at=-1)
    params = initial()["first"]
    optimizer = plasticity_injection(adam(0.1), at=1)
    with pytest.raises(ValueError, match="made by with_injection"):
        optimizer.update(params, optimizer.init(params), params)
