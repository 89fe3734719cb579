"""Continual backprop: utilities, which units are replaced, and when; numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recycled_networks import READERS, STILL, drive, normal_init, one_layer

from nap.interventions.continual_backprop import continual_backprop


def published_utilities(batches, into, out, decay):
    """Dohare et al.'s "adaptable contribution", one unit and one example at a time."""
    units = len(into[0])
    mean, utility, corrected = np.zeros(units), np.zeros(units), np.zeros(units)
    for age, batch in enumerate(np.asarray(batches, np.float64), start=1):
        for u in range(units):
            mean[u] = decay * mean[u] + (1 - decay) * batch[:, u].mean()
            usual = mean[u] / (1 - decay**age)
            swing = np.mean([abs(h - usual) for h in batch[:, u]])
            now = np.abs(out[u]).mean() * swing / np.abs(into[:, u]).mean()
            utility[u] = decay * utility[u] + (1 - decay) * now
            corrected[u] = utility[u] / (1 - decay**age)
    return mean, utility, corrected


def test_continual_backprop_utility_of_two_updates():
    """First by hand: one unit, weights 2 in and 3 out, decay 0.5, batches (1, 3), then (5, 5).

    Means: 0.5 * 2 = 1, corrected 2; then 0.5 * 1 + 0.5 * 5 = 3, corrected 4. Swings: 1, then 1.
    Utilities: 0.5 * (3 * 1 / 2) = 0.75; then 0.5 * 0.75 + 0.5 * (3 * 1 / 2) = 1.125.
    """
    shapes = {"a/kernel": (1, 1), "output/kernel": (1, 1)}
    options = {"readers": READERS, "key": jax.random.key(0), "rate": 0.0, "decay": 0.5}
    optimizer = continual_backprop(STILL, init=normal_init(shapes), **options)
    params = {"a": {"kernel": jnp.array([[-2.0]])}, "output": {"kernel": jnp.array([[3.0]])}}
    *_, states = drive(optimizer, params, [[[1.0], [3.0]], [[5.0], [5.0]]])
    for state, expected in zip(states, [(1, 1, 0.75), (2, 3, 1.125)], strict=True):
        record = state.units["a"]
        np.testing.assert_allclose([record.ages[0], record.mean_activation[0, 0, 0], record.utility[0]], expected)


def test_continual_backprop_utility_equals_the_published_formula():
    init, params = one_layer(4)
    batches = jax.random.normal(jax.random.key(1), (6, 3, 4))
    optimizer = continual_backprop(STILL, readers=READERS, init=init, key=jax.random.key(0), rate=0.0, maturity=0)
    gone, _, (*_, state) = drive(optimizer, params, batches)
    assert not any(gone)  # at rate 0
    mean, utility, _ = published_utilities(batches, params["a"]["kernel"], params["output"]["kernel"], 0.99)
    np.testing.assert_allclose(state.units["a"].mean_activation[0, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(state.units["a"].utility, utility, rtol=1e-5)


def test_continual_backprop_utility_is_of_the_weights_after_the_step():
    init, params = one_layer(1)
    optimizer = continual_backprop(optax.sgd(1.0), readers=READERS, init=init, key=jax.random.key(0), decay=0.0)
    into, out = (np.abs(params[layer]["kernel"]).mean() for layer in ("a", "output"))
    gradients = jax.tree.map(jnp.zeros_like, params)
    gradients["output"]["kernel"] = -9 * params["output"]["kernel"]  # a step to ten times the outgoing weights
    *_, (*_, state) = drive(optimizer, params, [[[-1.0], [1.0]]], gradients)
    np.testing.assert_allclose(state.units["a"].utility, 10 * out / into, rtol=1e-5)


def utilities(shapes, params, hidden, readers=READERS):
    """After one update, with decay 0."""
    options = {"readers": readers, "key": jax.random.key(0), "rate": 0.0, "decay": 0.0}
    optimizer = continual_backprop(STILL, init=normal_init(shapes), **options)
    zero = jax.tree.map(jnp.zeros_like, params)
    _, state = optimizer.update(zero, optimizer.init(params), params, activations={"a": jnp.array(hidden)})
    return state.units["a"].utility


PLACES = [[[[1.0, 0.0], [0.0, 2.0]]], [[[1.0, 0.0], [4.0, 4.0]]]]
"""Two examples of a map of 1 x 2 positions with two channels; both have the mean 1.5.

Mean distances from it: 0.5 and 2 of channel 0 at the two positions, 1.5 and 1.5 of channel 1.
"""
ROWS = [[4.0], [1.0], [0.0], [1.0]]
"""For channels 0 and 1 at the first position, and at the second."""


def test_continual_backprop_utility_through_a_flatten_is_of_each_position():
    """(4 x 0.5 + 0 x 2) / 2 and (1 x 1.5 + 1 x 1.5) / 2; means apart, channel 0 would have 2 x 1.25 and stay."""
    shapes = {"a/kernel": (1, 1, 1, 2), "output/kernel": (4, 1)}
    params = {"a": {"kernel": jnp.ones((1, 1, 1, 2))}, "output": {"kernel": jnp.array(ROWS)}}
    np.testing.assert_allclose(utilities(shapes, params, PLACES), [1.0, 1.5])
    twice = {**params, "also": {"kernel": jnp.array(ROWS[::-1])}}  # 1 x 0.5 + 1 x 2; 0 x 1.5 + 4 x 1.5
    found = utilities({**shapes, "also/kernel": (4, 1)}, twice, PLACES, {"a": ("output", "also")})
    np.testing.assert_allclose(found, [(1 + 1.25) / 2, (1.5 + 3) / 2])


def test_continual_backprop_hands_over_what_each_position_gave():
    """Channel 0 goes; its means at the two positions are 1 and 2, and its weights there 4 and 0."""
    shapes = {"a/kernel": (1, 1, 1, 2), "output/kernel": (4, 1), "output/bias": (1,)}
    params = {
        "a": {"kernel": jnp.ones((1, 1, 1, 2))},
        "output": {"kernel": jnp.array(ROWS), "bias": jnp.zeros(1)},
    }
    options = {"rate": 0.5, "decay": 0.5, "maturity": 0, "key": jax.random.key(0)}
    optimizer = continual_backprop(STILL, readers=READERS, init=normal_init(shapes), **options)
    gone, (after,), (state,) = drive(optimizer, params, [PLACES])
    assert gone == [[0]]
    np.testing.assert_allclose(after["output"]["bias"], 4)
    np.testing.assert_allclose(state.units["a"].mean_activation[:, 0], [[0, 0], [0, 1.5]])  # halves of 0 and 3


def test_continual_backprop_utility_where_positions_share_their_weights():
    """In a convolution's window, and in a dense layer behind pooling, the weights' mean meets the positions' mean."""
    window = {"a": {"kernel": jnp.ones((1, 1, 1, 2))}, "output": {"kernel": jnp.array(ROWS).reshape(1, 2, 2, 1)}}
    shapes = {"a/kernel": (1, 1, 1, 2), "output/kernel": (1, 2, 2, 1)}
    np.testing.assert_allclose(utilities(shapes, window, PLACES), [2 * 1.25, 1 * 1.5])
    pooled = {**window, "output": {"kernel": jnp.array(ROWS[:2])}}
    np.testing.assert_allclose(utilities({**shapes, "output/kernel": (2, 1)}, pooled, PLACES), [4 * 1.25, 1 * 1.5])


def varied(updates: int, units: int = 5):
    """Batches whose activations differ, in size too: unit 0 varies least, the last one most."""
    return jax.random.normal(jax.random.key(9), (updates, 64, units)) * 4.0 ** jnp.arange(units)


def even(params):
    """All weights of size 1, so that activations alone decide."""
    return jax.tree.map(lambda p: jnp.where(p < 0, -1.0, 1.0), params)


def test_continual_backprop_accumulates_fractions_and_replaces_the_least_useful_unit():
    """0.1 of 5 units older than 2 updates: from update 3 on half a unit more is due at each, so one at update 4.

    The unit replaced there is mature again 3 updates later; until then there are 4.
    """
    init, params = one_layer(5)
    options = {"readers": READERS, "init": init, "key": jax.random.key(0), "rate": 0.1, "maturity": 2}
    gone, _, states = drive(continual_backprop(STILL, **options), even(params), varied(7))
    assert gone[:4] == [[], [], [], [0]]
    record = states[3].units["a"]
    np.testing.assert_array_equal(record.ages, [0, 4, 4, 4, 4])
    np.testing.assert_allclose(record.due, 0, atol=1e-6)
    assert record.utility[0] == record.mean_activation[0, 0, 0] == 0
    assert np.all(record.utility[1:] > 0)
    # 0.4 at updates 5 and 6, 0.5 at 7: 1.3, and of the mature units 0 is the one without outgoing weights
    assert gone[4:] == [[], [], [0]]
    np.testing.assert_allclose(states[-1].units["a"].due, 0.3, rtol=1e-5)


def test_continual_backprop_leaves_young_units_alone():
    init, params = one_layer(5)
    options = {"readers": READERS, "init": init, "key": jax.random.key(0), "rate": 1.0}
    gone, *_ = drive(continual_backprop(STILL, maturity=3, **options), params, varied(4))
    assert gone == [[], [], [], [0, 1, 2, 3, 4]]


def test_continual_backprop_hands_the_mean_over_to_the_bias():
    """For the mean input the next layer's pre-activations stay as they were."""
    init, params = one_layer(5)
    options = {"readers": READERS, "init": init, "key": jax.random.key(0), "rate": 0.2, "maturity": 2}
    batches = varied(3) + 2.0
    gone, (*_, after), _ = drive(continual_backprop(STILL, **options), params, batches)
    assert [len(units) for units in gone] == [0, 0, 1]
    weights = 0.99 ** np.arange(2, -1, -1) * 0.01  # the running mean's weights of the three batches, bias corrected
    mean = np.einsum("t,tbu->u", weights / weights.sum(), np.asarray(batches)) / 64
    before_after = [mean @ p["output"]["kernel"] + p["output"]["bias"] for p in (params, after)]
    np.testing.assert_allclose(*before_after, rtol=1e-4, atol=1e-4)
    assert jnp.all(jnp.abs(after["output"]["bias"] - params["output"]["bias"]) > 1e-3)


def test_continual_backprop_hands_over_what_the_authors_code_has_cleared():
    """Activations (1, 4), (3, 0): unit 0, with the least utility, gave 2 x 2 = 4; published code adds 0 instead."""
    shapes = {"a/kernel": (1, 2), "output/kernel": (2, 1), "output/bias": (1,)}
    params = {
        "a": {"kernel": jnp.ones((1, 2))},
        "output": {"kernel": jnp.array([[2.0], [5.0]]), "bias": jnp.zeros(1)},
    }
    options = {"rate": 0.5, "decay": 0.5, "maturity": 0, "key": jax.random.key(0)}
    optimizer = continual_backprop(STILL, readers=READERS, init=normal_init(shapes), **options)
    gone, (after,), _ = drive(optimizer, params, [[[1.0, 4.0], [3.0, 0.0]]])
    assert gone == [[0]]
    np.testing.assert_allclose(after["output"]["bias"], 4)


def test_continual_backprop_with_two_features_through_a_flatten():
    """2 units x 2 features at 3 places. Unit 1's features never move, so it goes; its means are 5 and 7."""
    shapes = {"a/kernel": (1, 1, 1, 2), "output/kernel": (12, 2), "output/bias": (2,)}
    init = normal_init(shapes)
    optimizer = continual_backprop(
        STILL, readers=READERS, init=init, key=jax.random.key(0), rate=0.5, maturity=0, features=2
    )
    params = init(jax.random.key(4))
    moving = jax.random.normal(jax.random.key(5), (4, 1, 3, 2))
    hidden = jnp.stack([moving[..., 0], jnp.full((4, 1, 3), 5.0), moving[..., 1], jnp.full((4, 1, 3), 7.0)], -1)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, state = optimizer.update(zero, optimizer.init(params), params, activations={"a": hidden})
    after = optax.apply_updates(params, updates)
    kernel = params["output"]["kernel"].reshape(3, 2, 2, 2)  # place, feature, unit, output
    np.testing.assert_array_equal(after["output"]["kernel"], kernel.at[:, :, 1].set(0).reshape(12, 2))
    given = 5 * kernel[:, 0, 1].sum(0) + 7 * kernel[:, 1, 1].sum(0)
    np.testing.assert_allclose(after["output"]["bias"], params["output"]["bias"] + given, rtol=1e-5)
    swings = jnp.abs(moving - moving.mean((0, 1, 2))).mean((0, 1))  # place, feature
    out = jnp.abs(kernel).mean(3)[:, :, 0]
    utility = 0.01 * (out * swings).mean(0).sum() / jnp.abs(params["a"]["kernel"][0, 0, 0, 0])
    np.testing.assert_allclose(state.units["a"].utility, [utility, 0], rtol=1e-5)
    np.testing.assert_array_equal(state.units["a"].ages, [1, 0])


def test_continual_backprop_says_how_many_features_a_unit_has():
    init, params = one_layer(4)
    optimizer = continual_backprop(STILL, readers=READERS, init=init, key=jax.random.key(0))
    with pytest.raises(ValueError, match="a unit of a has 2 features, but features=1"):
        drive(optimizer, params, [np.ones((2, 8))])
    wrong = continual_backprop(STILL, readers=READERS, init=init, key=jax.random.key(0), features=3)
    with pytest.raises(ValueError, match="output takes 4 inputs, no multiple of the 4 units of a with 3 features each"):
        wrong.init(params)
