"""Self-normalized resets: thresholds, which units are recycled, and when; numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recycled_networks import READERS, STILL, drive, normal_init, one_layer

from nap.interventions.self_normalized_resets import self_normalized_resets


def firing(updates: int, *periods: int | None):
    """One example an update; a unit fires at the multiples of its period, or never."""
    return [[[1.0 if period and t % period == 0 else -1.0 for period in periods]] for t in range(1, updates + 1)]


def resets(init, **options):
    options = {"percentile": 0.9, "threshold": 64, "every": 40, "shortest": 1, "longest": 100, **options}
    return self_normalized_resets(STILL, readers=READERS, init=init, key=jax.random.key(0), **options)


def run(optimizer, params, batches):
    """The state after all batches, the thresholds after each, and how often each unit was recycled, in one scan."""
    zero = jax.tree.map(jnp.zeros_like, params)

    def step(carry, hidden):
        params, state = carry
        updates, state = optimizer.update(zero, state, params, activations={"a": hidden})
        after = optax.apply_updates(params, updates)
        recycled = jnp.any(after["a"]["kernel"] != params["a"]["kernel"], axis=0)
        return (after, state), (state.units["a"].threshold, recycled)

    batches = jnp.asarray(batches)
    (_, state), (thresholds, gone) = jax.jit(lambda c: jax.lax.scan(step, c, batches))((params, optimizer.init(params)))
    return state, np.asarray(thresholds), np.asarray(gone)


def test_thresholds_and_resets_are_those_of_the_authors_code():
    """Six units over two periods of 120 updates; the numbers are what the published code gives."""
    t = np.arange(240)
    always, never = np.ones(240, bool), np.zeros(240, bool)
    fires = [always, t % 60 >= 20, t % 4 == 3, never, t % 50 != 49, t % 2 == 1]
    init, params = one_layer(6)
    optimizer = resets(init, percentile=0.99, every=120, longest=128)
    _, thresholds, gone = run(optimizer, params, np.where(fires, 1.0, -1.0).T[:, None])
    assert thresholds[119].tolist() == [1, 20, 3, 128, 1, 1]
    assert thresholds[239].tolist() == [1, 40, 6, 128, 2, 2]
    assert gone.sum(0).tolist() == [0, 2, 30, 2, 2, 60]
    assert np.flatnonzero(gone[:, 3]).tolist() == [63, 191]


@pytest.mark.parametrize(
    ("silence", "threshold", "expected"), [(900, 1000, 900), (900, 1024, 900), (700, 1000, 700), (900, 900, 1800)]
)
def test_a_usual_silence_below_the_threshold_becomes_the_threshold(silence, threshold, expected):
    """Also where the threshold is no edge of a bin, and is in the same one as the silence."""
    init, params = one_layer(1)
    options = {"readers": READERS, "init": init, "key": jax.random.key(0)}
    optimizer = self_normalized_resets(STILL, threshold=threshold, every=4000, **options)
    state, *_ = run(optimizer, params, firing(4000, silence + 1))
    assert state.units["a"].threshold.tolist() == [expected]


def test_a_rare_silence_of_a_unit_that_always_fires_is_its_usual_one():
    """20 silent updates in 250: firings in a row are no silences. Recycled in one period, not in the next."""
    fires = np.arange(3000) % 250 < 230
    init, params = one_layer(1)
    optimizer = self_normalized_resets(STILL, readers=READERS, init=init, key=jax.random.key(0))
    _, thresholds, gone = run(optimizer, params, np.where(fires, 1.0, -1.0)[:, None, None])
    assert thresholds[[999, 1999, 2999], 0].tolist() == [20, 40, 20]
    assert [period.sum() for period in np.split(gone[:, 0], 3)] == [0, 4, 0]


def test_a_threshold_is_the_longest_silence_in_the_bin_of_the_usual_one():
    """Silences 4 and 5 share a bin, and 6 and 7 do: half of the silences are 5 or shorter."""
    init, params = one_layer(1)
    fires = np.concatenate([[False] * silence + [True] for silence in (4, 6, 5, 7)])  # 26 updates
    optimizer = resets(init, percentile=0.5, every=26)
    state, *_ = run(optimizer, params, np.where(fires, 1.0, -1.0)[:, None, None])
    np.testing.assert_array_equal(state.units["a"].threshold, [5])
    np.testing.assert_array_equal(state.units["a"].histogram, 0)
    np.testing.assert_array_equal(state.units["a"].greatest, 0)


def test_silences_are_counted_in_their_bins():
    """Not those of 0 updates, between two firings in a row."""
    init, params = one_layer(3)
    state, *_ = run(resets(init, every=1000), params, firing(12, 1, 2, 5))
    counts = state.units["a"].histogram
    np.testing.assert_array_equal(counts.sum(1), [0, 6, 2])
    np.testing.assert_array_equal(jnp.argmax(counts, axis=1)[1:], [0, 4])
    np.testing.assert_array_equal(state.units["a"].greatest.max(1), [0, 1, 4])
    np.testing.assert_array_equal(state.units["a"].silence, [0, 0, 2])


def test_every_silence_is_in_the_bin_that_ends_above_it():
    """Also where sqrt(2)'s powers pass close to a whole number: 11585.2 and 11585."""
    init, params = one_layer(1)
    optimizer = resets(init, threshold=20_000, longest=20_000, every=1000)
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)

    def histogram_after(silence):
        waited = state.units["a"]._replace(silence=jnp.array([silence]))
        _, new = optimizer.update(
            zero, state._replace(units={"a": waited}), params, activations={"a": jnp.ones((1, 1))}
        )
        return new.units["a"].histogram[0]

    silences = np.array([1, 2, 3, 4, 5, 6, 181, 182, 255, 256, 5792, 5793, 8191, 8192, 11585, 11586, 14142])
    found = jax.vmap(histogram_after)(jnp.array(silences))
    np.testing.assert_array_equal(found.sum(1), 1)
    np.testing.assert_array_equal(jnp.argmax(found, axis=1), [int(2 * np.log2(float(n))) for n in silences])


def test_a_unit_that_falls_silent_is_recycled_after_its_threshold():
    """It fires every 4 updates until 40, which gives a threshold of 3, and then no more: at 43, 46, 49 and 52."""
    init, params = one_layer(2)
    batches = firing(40, 4, 1) + firing(13, None, 1)
    gone, _, (*_, state) = drive(resets(init, every=40), params, batches)
    assert [t for t, units in enumerate(gone, start=1) if units] == [43, 46, 49, 52]
    assert gone[42] == gone[51] == [0]
    assert state.units["a"].silence[0] == 1
    assert state.units["a"].histogram[0].sum() == 4


def test_a_threshold_that_too_many_silences_reach_grows():
    """Threshold 3; the first unit then fires every 9 updates only, the second one no more.

    The first unit's silences of 8 are cut at 3 and at 6, and end at 2: two thirds are 3, one 2. At the percentile 0.9
    the threshold doubles to 6, at 0.3 it is 2.
    """
    init, params = one_layer(2)
    batches = firing(36, 4, 4) + firing(36, 9, None)
    _, thresholds, gone = run(resets(init, every=36), params, batches)
    assert (1 + np.flatnonzero(gone[:, 0]) - 36).tolist() == [3, 6, 12, 15, 21, 24, 30, 33]
    assert thresholds[35].tolist() == [3, 3] and thresholds[71].tolist() == [6, 6]
    _, thresholds, _ = run(resets(init, every=36, percentile=0.3, expansion=3.0), params, batches)
    assert thresholds[71].tolist() == [2, 9]


def test_a_unit_that_is_silent_all_along_keeps_its_threshold_until_it_reaches_it():
    """Here at 64, in the second period of 36; it then doubles, up to `longest`, 100."""
    init, params = one_layer(2)
    _, thresholds, gone = run(resets(init, every=36), params, firing(108, None, 1))
    assert np.flatnonzero(gone[:, 0]).tolist() == [63]
    assert thresholds[[35, 71, 107], 0].tolist() == [64, 100, 100]
    assert thresholds[[35, 71, 107], 1].tolist() == [1, 1, 1]


def test_no_threshold_is_below_shortest():
    init, params = one_layer(3)
    state, *_ = run(resets(init, shortest=16), params, firing(40, 1, 2, 20))
    np.testing.assert_array_equal(state.units["a"].threshold, [16, 16, 19])


def test_percentile_one_recycles_nothing():
    init, params = one_layer(2)
    gone, _, (*_, state) = drive(resets(init, percentile=1.0, threshold=5), params, firing(30, None, 1))
    assert not any(gone)
    assert state.units["a"].silence[0] == 30


def test_a_unit_fires_if_any_feature_does_at_any_place_of_any_example():
    shapes = {"a/kernel": (1, 1, 1, 2), "output/kernel": (8, 2)}
    init = normal_init(shapes)
    params = init(jax.random.key(0))
    optimizer = resets(init)
    zero, silent = jax.tree.map(jnp.zeros_like, params), jnp.zeros((3, 1, 2, 4))
    state = optimizer.init(params)
    _, state = optimizer.update(zero, state, params, activations={"a": silent})
    _, state = optimizer.update(zero, state, params, activations={"a": silent.at[2, 0, 1, 2].set(0.1)})
    np.testing.assert_array_equal(state.units["a"].silence, [0, 2])
