"""Resets: which weights are drawn anew, and what the optimizer forgets of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nap import paths
from nap.interventions.adam import adam
from nap.interventions.resets import reset_layers, reset_optimizer_state

KEY = jax.random.key(4)


def init(key):
    """Two layers."""
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(first, (3, 4)), "bias": jnp.zeros(4)},
        "output": {"kernel": jax.random.normal(second, (4, 2))},
    }


def run(optimizer, updates, params=None):
    """Some updates with gradients of 1, and the state after them."""
    params = init(jax.random.key(0)) if params is None else params
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(updates):
        steps, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, steps)
    return params, state


def test_only_the_named_layers_are_drawn_anew():
    plain, _ = run(adam(0.1), 3)
    before, _ = run(reset_layers(adam(0.1), layers=["output/*"], every=3, init=init, key=KEY), 2)
    params, _ = run(reset_layers(adam(0.1), layers=["output/*"], every=3, init=init, key=KEY), 3)
    np.testing.assert_allclose(before["output"]["kernel"], run(adam(0.1), 2)[0]["output"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(params["hidden"]["kernel"], plain["hidden"]["kernel"], rtol=1e-6)
    fresh = init(jax.random.fold_in(KEY, 3))["output"]["kernel"]
    np.testing.assert_allclose(params["output"]["kernel"], fresh, rtol=1e-5, atol=1e-6)


def test_the_optimizer_forgets_exactly_these_weights():
    _, state = run(reset_layers(adam(0.1), layers=["output/*"], every=3, init=init, key=KEY), 3)
    moments = state.inner[0]
    for tree in (moments.counts, moments.mu, moments.nu):
        assert not np.any(tree["output"]["kernel"])
        assert np.all(tree["hidden"]["kernel"] != 0) and np.all(tree["hidden"]["bias"] != 0)
    assert np.all(moments.counts["hidden"]["kernel"] == 3)


def test_the_first_step_after_a_reset_is_as_long_as_a_first_step():
    """Adam's first step is the learning rate; with a single step count it would be 3.2 times as long."""
    optimizer = reset_layers(adam(0.1), layers=["output/*"], every=3, init=init, key=KEY)
    at_reset, _ = run(optimizer, 3)
    after, _ = run(optimizer, 4)
    np.testing.assert_allclose(after["output"]["kernel"] - at_reset["output"]["kernel"], -0.1, rtol=1e-4)


def test_a_reset_of_the_whole_network_starts_everything_over():
    """Even what has no entry for each weight: the step count of optax's Adam."""
    optimizer = reset_layers(optax.adam(0.1), layers=["*"], every=3, init=init, key=KEY)
    params, state = run(optimizer, 3)
    for path, leaf in paths.leaves(init(jax.random.fold_in(KEY, 3))).items():
        np.testing.assert_allclose(paths.leaves(params)[path], leaf, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state.inner, optax.adam(0.1).init(params))
    assert int(state.count) == 3
    again, _ = run(optimizer, 6)
    assert not np.allclose(again["output"]["kernel"], params["output"]["kernel"])


def test_a_part_of_the_network_leaves_a_single_count():
    _, state = run(reset_layers(optax.adam(0.1), layers=["output/*"], every=3, init=init, key=KEY), 3)
    assert int(state.inner[0].count) == 3


def test_layers_that_are_named_one_by_one_are_the_whole_network():
    _, state = run(reset_layers(optax.adam(0.1), layers=["hidden/*", "output/*"], every=3, init=init, key=KEY), 3)
    assert int(state.inner[0].count) == 0


@pytest.mark.parametrize("every", [2, (2, 4)])
def test_optimizer_state_starts_over_while_weights_and_schedule_stay(every):
    """With momentum 0.5 a gradient of 1 has a trace of 1, then 1.5, then 1 again; the schedule is 1, 2, ..."""
    schedule = optax.chain(optax.trace(0.5), optax.scale_by_schedule(lambda count: -(count + 1.0)))
    params, state = run(reset_optimizer_state(schedule, every=every), 5, {"w": jnp.zeros(2)})
    np.testing.assert_allclose(params["w"], -(1 + 1.5 * 2 + 3 + 1.5 * 4 + 5))
    assert int(state.count) == 5 and int(state.inner[1].count) == 5


def test_single_updates_behind_which_the_state_starts_over():
    params, _ = run(reset_optimizer_state(optax.trace(0.5), every=(1, 3)), 4, {"w": jnp.zeros(2)})
    np.testing.assert_allclose(params["w"], 1 + (1 + 1.5) + 1)


@pytest.mark.parametrize("wrap", [reset_optimizer_state, lambda inner, every: whole_network(inner, every)])
def test_injected_schedules_go_on_while_what_is_inside_starts_over(wrap):
    @optax.inject_hyperparams
    def momentum(learning_rate):
        return optax.chain(optax.trace(0.5), optax.scale_by_learning_rate(learning_rate))

    _, state = run(wrap(momentum(lambda count: 0.1 / (count + 1.0)), every=3), 4)
    assert int(state.inner.hyperparams_states["learning_rate"].count) == 4
    np.testing.assert_allclose(state.inner.hyperparams["learning_rate"], 0.1 / 4)  # of the last update
    np.testing.assert_array_equal(state.inner.inner_state[0].trace["output"]["kernel"], 1.0)


def whole_network(inner, every):
    return reset_layers(inner, layers=["*"], every=every, init=init, key=KEY)


def test_seeds_in_vmap_have_draws_of_their_own():
    def final(key):
        optimizer = reset_layers(adam(0.1), layers=["output/*"], every=2, init=init, key=key)
        return run(optimizer, 2)[0]["output"]["kernel"]

    keys = jax.random.split(KEY, 2)
    together = jax.jit(jax.vmap(final))(keys)
    for kernel, key in zip(together, keys, strict=True):
        np.testing.assert_allclose(kernel, final(key), rtol=1e-5, atol=1e-6)
    assert not np.allclose(*together)


def test_extra_arguments_reach_the_optimizer():
    def scale(updates, state, params=None, *, factor):
        return jax.tree.map(lambda u: factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scale)
    params = init(KEY)
    for optimizer in (
        reset_layers(inner, layers=["*"], every=9, init=init, key=KEY),
        reset_optimizer_state(inner, every=9),
    ):
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params, factor=3.0)
        np.testing.assert_array_equal(updates["output"]["kernel"], 3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="every must be at least 1"):
        reset_layers(adam(0.1), layers=["*"], every=0, init=init, key=KEY)
    with pytest.raises(ValueError, match="every must be at least 1"):
        reset_optimizer_state(adam(0.1), every=0)
    with pytest.raises(ValueError, match=r"no parameter matches 'head/\*'; the parameters are hidden/bias, hidden/"):
        reset_layers(adam(0.1), layers=["head/*"], every=1, init=init, key=KEY).init(init(KEY))
