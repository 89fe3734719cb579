"""UPGD, by hand and against a float64 transcription of its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nap.interventions.upgd import upgd

KEY = jax.random.key(1)


def test_first_step_by_hand():
    """Utilities -g w are 2, -1 and 0; scaled by the greatest 1, -0.5 and 0. w' = w (1 - 0.1 * 0.5) - 0.1 g (1 - s)."""
    params = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([0.0])}
    gradients = {"a": jnp.array([-2.0, 1.0]), "b": jnp.array([4.0])}
    optimizer = upgd(0.1, sigma=0.0, weight_decay=0.5, key=KEY)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    kept = [1 / (1 + np.exp(1)), 1 / (1 + np.exp(-0.5)), 0.5]
    np.testing.assert_allclose(updates["a"], [-0.05 + 0.2 * kept[0], -0.05 - 0.1 * kept[1]], rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [-0.4 * kept[2]], rtol=1e-5)


def test_many_steps_against_the_formula():
    rng = np.random.default_rng(0)
    weights, utility = rng.normal(size=6), np.zeros(6)
    params = {"w": jnp.asarray(weights, jnp.float32)}
    optimizer = upgd(lambda count: 0.1 / (1 + count), beta=0.9, sigma=0.0, weight_decay=0.01, key=KEY)
    state = optimizer.init(params)
    for t in range(1, 8):
        gradient = rng.normal(size=6)
        utility = 0.9 * utility + 0.1 * -gradient * weights
        corrected = utility / (1 - 0.9**t)
        scaled = 1 / (1 + np.exp(-corrected / corrected.max()))
        assert corrected.max() > 0
        weights = weights * (1 - 0.1 / t * 0.01) - 0.1 / t * gradient * (1 - scaled)
        updates, state = jax.jit(optimizer.update)({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], weights, rtol=1e-4, atol=1e-6)


def test_without_useful_weights_all_take_half_a_step():
    params, gradients = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 0.5])}
    optimizer = upgd(0.1, sigma=0.0, weight_decay=0.0, key=KEY)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.15, -0.025], rtol=1e-6)


def test_noise_is_gated_and_new_at_every_update():
    """Without utility, -lr * sigma * noise / 2: a deviation of 0.1 * 2 / 2."""
    params = {"w": jnp.ones(10_000)}
    optimizer = upgd(0.1, sigma=2.0, weight_decay=0.0, key=KEY)
    state = optimizer.init(params)
    first, state = optimizer.update({"w": jnp.zeros(10_000)}, state, params)
    second, _ = optimizer.update({"w": jnp.zeros(10_000)}, state, params)
    assert float(jnp.std(first["w"])) == pytest.approx(0.1, rel=0.03)
    assert abs(np.corrcoef(first["w"], second["w"])[0, 1]) < 0.05


def test_bfloat16_utilities_keep_a_small_share():
    """In bfloat16 0.999 rounds to 1 and a mean would never decay: after 2.0 at the first update, 2.0 * 0.999^299."""
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    optimizer = upgd(0.0, sigma=0.0, key=KEY)
    _, state = optimizer.update({"w": jnp.array([-2.0, 0.0], jnp.bfloat16)}, optimizer.init(params), params)
    zero = jax.tree.map(jnp.zeros_like, params)
    state = jax.lax.fori_loop(1, 300, lambda _, state: optimizer.update(zero, state, params)[1], state)
    np.testing.assert_allclose(state.utility["w"], [0.002 * 0.999**299, 0], rtol=1e-3)
    assert optimizer.update(zero, state, params)[0]["w"].dtype == jnp.bfloat16


def test_the_direction_is_adams_and_the_utility_the_gradients():
    params, gradients = {"w": jnp.array([1.0, -1.0])}, {"w": jnp.array([-4.0, -2.0])}
    optimizer = upgd(0.1, sigma=0.0, weight_decay=0.0, key=KEY, direction=optax.scale_by_adam())
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(state.utility["w"], [0.004, -0.002], rtol=1e-4)
    kept = 1 / (1 + np.exp([1, -0.5]))  # Adam's first direction is the gradient's sign
    np.testing.assert_allclose(updates["w"], 0.1 * kept, rtol=1e-4)


@pytest.mark.parametrize(
    ("argument", "value"), [("beta", 1.0), ("sigma", -1.0), ("sigma", float("nan")), ("weight_decay", -1.0)]
)
def test_bad_arguments(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be .*at least 0"):
        upgd(0.1, key=KEY, **{argument: value})
    with pytest.raises(ValueError, match="upgd needs the parameters"):
        upgd(0.1, key=KEY).update({}, upgd(0.1, key=KEY).init({}))
