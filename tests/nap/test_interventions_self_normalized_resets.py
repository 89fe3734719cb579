"""Self-normalized resets: thresholds, which units are recycled, and when; numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from recycled_networks import READERS, STILL, drive, normal_init, one_layer

from nap.interventions.self_normalized_resets import self_normalized_resets


def firing(updates: int, *periods: int | None):
    """One example an update; a unit fires at the multiples of its period, or never."""
    return [[[1.0 if period and t % period == 0 else -1.0 for period in periods]] for t in range(1, updates + 1)]


def resets(init, **options):
    options = {"percentile": 0.9, "threshold": 64, "every": 40, "shortest": 1, "longest": 100, **options}
    return self_normalized_resets(STILL, readers=READERS, init=init, key=jax.random.key(0), **options)


def test_a_threshold_is_the_upper_edge_of_the_bin_of_the_usual_silence():
    """Silences 1, 2, 3, 4 or 5, 6 or 7, 8 to 11 share a bin; each lasts below the next one's first number."""
    init, params = one_layer(7)
    *_, (*_, state) = drive(resets(init), params, firing(40, 1, 2, 3, 4, 5, 6, 8))
    np.testing.assert_array_equal(state.units["a"].threshold, [2, 3, 4, 6, 6, 8, 12])
    np.testing.assert_array_equal(state.units["a"].histogram, 0)
    np.testing.assert_array_equal(state.units["a"].silence, [0, 0, 1, 0, 0, 4, 0])


def test_silences_are_counted_in_their_bins():
    init, params = one_layer(3)
    *_, (*_, state) = drive(resets(init, every=1000), params, firing(12, 1, 2, 5))
    counts = state.units["a"].histogram
    np.testing.assert_array_equal(counts.sum(1), [12, 6, 2])
    np.testing.assert_array_equal(jnp.argmax(counts, axis=1), [0, 2, 4])


def test_every_silence_is_in_the_bin_that_ends_above_it():
    """Also where sqrt(2)'s powers pass close to a whole number: 11585.2 and 11585."""
    init, params = one_layer(1)
    optimizer = resets(init, threshold=20_000, longest=20_000, every=1)
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)

    def threshold_after(silence):
        waited = state.units["a"]._replace(silence=jnp.array([silence - 1]))
        _, new = optimizer.update(
            zero, state._replace(units={"a": waited}), params, activations={"a": jnp.ones((1, 1))}
        )
        return new.units["a"].threshold[0]

    silences = np.array([1, 2, 3, 4, 5, 6, 181, 182, 255, 256, 5792, 5793, 8191, 8192, 11585, 11586, 14142])
    found = jax.vmap(threshold_after)(jnp.array(silences))
    bins = [int(np.floor(2 * np.log2(float(silence)))) for silence in silences]
    np.testing.assert_array_equal(found, np.ceil(2.0 ** ((np.array(bins) + 1) / 2)))
    assert np.all(found > silences)


def test_a_unit_that_falls_silent_is_recycled_after_its_threshold():
    """It fires every 4 updates until 40, which gives a threshold of 6, and then no more: recycled at 46, and at 52."""
    init, params = one_layer(2)
    batches = firing(40, 4, 1) + firing(13, None, 1)
    gone, _, (*_, state) = drive(resets(init, every=40), params, batches)
    assert [t for t, units in enumerate(gone, start=1) if units] == [46, 52]
    assert gone[45] == gone[51] == [0]
    assert state.units["a"].silence[0] == 1
    assert state.units["a"].histogram[0].sum() == 2


def test_a_threshold_that_no_silence_reaches_stays():
    """A steady unit's threshold must not swing between its silence and twice that."""
    init, params = one_layer(2)
    gone, _, states = drive(resets(init, every=20), params, firing(60, 4, 5))
    assert not any(gone)
    for window in (1, 2, 3):
        np.testing.assert_array_equal(states[20 * window - 1].units["a"].threshold, [6, 6])


def test_a_threshold_that_too_many_silences_reach_grows():
    """Threshold 6; the first unit then fires every 9 updates only, the second one no more; the third never did.

    The first unit's silences are cut at 6, 3 updates before it fires again: half are 6, half 3. At the percentile 0.9
    that makes 12, which silences of 9 no longer reach; at 0.5 it makes 4, the edge above 3. The third unit keeps its
    threshold of 64 while no silence has ended, then it reaches 64.
    """
    init, params = one_layer(3)
    batches = firing(36, 4, 4, None) + firing(72, 9, None, None)
    gone, _, states = drive(resets(init, every=36), params, batches)
    assert [t for t, units in enumerate(gone, start=1) if 0 in units] == [36 + t for t in (6, 15, 24, 33)]
    assert [t for t, units in enumerate(gone, start=1) if 2 in units] == [64]
    thresholds = [states[36 * window - 1].units["a"].threshold.tolist() for window in (1, 2, 3)]
    assert thresholds == [[6, 6, 64], [12, 12, 100], [12, 24, 100]]  # no more than `longest`, 100
    *_, states = drive(resets(init, every=36, percentile=0.5, expansion=3.0), params, batches[:72])
    assert states[-1].units["a"].threshold.tolist() == [4, 18, 100]


def test_no_threshold_is_below_shortest():
    init, params = one_layer(2)
    *_, (*_, state) = drive(resets(init, shortest=16), params, firing(40, 1, 20))
    np.testing.assert_array_equal(state.units["a"].threshold, [16, 23])


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
