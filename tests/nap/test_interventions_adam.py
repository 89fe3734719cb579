"""Adam with a step count for every entry: optax's steps, and those of a new Adam after a reset."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nap.interventions.adam import adam, scale_by_adam
from nap.interventions.units import reset_entries

PARAMS = {"layer": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.1, 0.2])}}


def gradients(step):
    key = jax.random.key(step)
    return jax.tree.map(lambda p: 10.0 ** (step % 5 - 3) * jax.random.normal(key, p.shape, p.dtype), PARAMS)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (adam(0.1), optax.adam(0.1)),
        (adam(0.01, b1=0.5, b2=0.9, eps=1e-3), optax.adam(0.01, b1=0.5, b2=0.9, eps=1e-3)),
        (adam(optax.linear_schedule(0.1, 0.0, 20)), optax.adam(optax.linear_schedule(0.1, 0.0, 20))),
    ],
    ids=["defaults", "other constants", "a schedule"],
)
def test_equals_optax_step_for_step(ours, reference):
    @jax.jit
    def step(state, number_gradients, params):
        (one, two), (p, q) = state, params
        u, one = ours.update(number_gradients, one, p)
        v, two = reference.update(number_gradients, two, q)
        return (one, two), (optax.apply_updates(p, u), optax.apply_updates(q, v)), (u, v)

    state, params = (ours.init(PARAMS), reference.init(PARAMS)), (PARAMS, PARAMS)
    for number in range(25):
        state, params, (u, v) = step(state, gradients(number), params)
        for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(v), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-9)
    for a, b in zip(jax.tree.leaves(params[0]), jax.tree.leaves(params[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_first_step_by_hand():
    """(1 - b1) g / (1 - b1) over sqrt((1 - b2) g^2 / (1 - b2)) + eps: the sign of g, but for eps."""
    transform = scale_by_adam(eps=1.0)
    direction, state = transform.update({"w": jnp.array([3.0, -4.0])}, transform.init({"w": jnp.zeros(2)}))
    np.testing.assert_allclose(direction["w"], [3 / 4, -4 / 5], rtol=2e-5)  # 1 - 0.999 in float32
    np.testing.assert_allclose(state.mu["w"], [0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(state.nu["w"], [0.009, 0.016], rtol=1e-5)
    np.testing.assert_array_equal(state.counts["w"], [1, 1])


def run(optimizer, state, first, last):
    updates = None
    for number in range(first, last):
        updates, state = optimizer.update(gradients(number), state, PARAMS)
    return updates, state


def test_a_reset_entry_steps_as_a_fresh_adams():
    optimizer = adam(0.1)
    masks = {"layer": {"kernel": jnp.array([[True, False], [False, False]]), "bias": jnp.array([False, True])}}
    _, state = run(optimizer, optimizer.init(PARAMS), 0, 12)
    mixed, _ = run(optimizer, reset_entries(optimizer, state, PARAMS, masks), 12, 15)
    undisturbed, _ = run(optimizer, state, 12, 15)
    fresh, _ = run(optax.adam(0.1), optax.adam(0.1).init(PARAMS), 12, 15)
    for mask, entry, young, old in zip(*map(jax.tree.leaves, (masks, mixed, fresh, undisturbed)), strict=True):
        np.testing.assert_allclose(entry[mask], young[mask], rtol=2e-6)
        np.testing.assert_array_equal(entry[~mask], old[~mask])
        assert not np.allclose(young[mask], old[mask])


def test_a_single_count_would_make_the_first_step_too_long():
    """What the docstring says: 3.2 times, because moments of one step are taken for those of many."""
    optimizer = optax.adam(1.0)
    gradient, everything = {"w": jnp.ones(1)}, {"w": jnp.array([True])}
    _, state = optimizer.update(gradient, optimizer.init(gradient))
    state = (state[0]._replace(count=jnp.array(10_000_000)), state[1])
    updates, _ = optimizer.update(gradient, reset_entries(optimizer, state, gradient, everything))
    np.testing.assert_allclose(updates["w"], -0.1 / np.sqrt(0.001), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_updates_keep_the_gradients_dtype(dtype):
    params = {"w": jnp.array([1.0, 2.0], dtype)}
    ours, reference = adam(0.1), optax.adam(0.1)
    u, state = ours.update(params, ours.init(params), params)
    v, _ = reference.update(params, reference.init(params), params)
    assert u["w"].dtype == v["w"].dtype == dtype
    assert [leaf.dtype for leaf in jax.tree.leaves(state[0])] == [jnp.int32, dtype, dtype]
    np.testing.assert_allclose(u["w"].astype(jnp.float32), v["w"].astype(jnp.float32), rtol=1e-2)
