"""Arguments of schedules that are traced, arrays instead of lists, and runs of very few or very many updates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nap import schedules
from nap.schedules import profiles

COUNTS = np.arange(110)


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda rise: schedules.one_cycle(1.0, 100, rise=rise), [0.2, 0.5]),
        (lambda fall: schedules.one_cycle(1.0, 100, fall=fall), [0.5, 0.8]),
        (lambda rising: schedules.slow_start_fast_decay(1.0, 100, rising=rising), [3, 4]),
        (lambda place: schedules.step(1.0, 100, at=(place, 0.6)), [0.2, 0.55]),
        (lambda places: schedules.step(1.0, 100, at=places), [[0.2, 0.3], [0.55, 0.9]]),
        (lambda place: schedules.follow(1.0, 100, profiles.linear(), readings=[0.1, place]), [0.2, 0.55]),
        (lambda budgets: schedules.wsd_s(1.0, budgets), [[50, 100], [20, 80]]),
        (lambda decays: schedules.wsd_s(1.0, [50, 100], decay=decays), [[5, 10], [20, 8]]),
        (lambda lengths: schedules.cosine_restarts(1.0, lengths), [[50, 30], [20, 80]]),
        (lambda lengths: schedules.rewarmed(1.0, lengths, warmup=lengths // 5), [[50, 30], [20, 80]]),
    ],
)
def test_what_may_be_traced(make, numbers):
    numbers = jnp.array(numbers)
    found = jax.jit(jax.vmap(lambda number: make(number)(COUNTS)))(numbers)
    np.testing.assert_allclose(found, [make(number)(COUNTS) for number in numbers], rtol=1e-4, atol=1e-6)


def test_the_profile_of_epochs_whose_number_is_traced():
    found = jax.vmap(lambda epochs: profiles.slow_start_fast_decay(epochs, 4, 0.5)(0.75))(jnp.array([4, 8]))
    np.testing.assert_allclose(found, [1, 0.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda number: schedules.follow(1.0, 9, profiles.linear(), readings=number), "readings must be known, or be"),
        (lambda number: schedules.slow_start_fast_decay(1.0, 9, epochs=number), "readings must be known, or be"),
        (lambda number: profiles.step((number, 0.6, 0.3)), r"at must be increasing shares .*, got \(0.6, 0.3\)"),
    ],
)
def test_what_may_not_be_traced_and_what_beside_it_is_wrong_is_told_in_a_line(make, words):
    with pytest.raises(ValueError, match=words) as told:
        jax.vmap(lambda number: jnp.asarray(make(number)(1)))(jnp.array([3, 4]))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", [np.array, jnp.array, tuple])
@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda given: schedules.wsd_s(1.0, given), [40, 100]),
        (lambda given: schedules.wsd_s(1.0, [40, 100], decay=given), [2, 3]),
        (lambda given: schedules.cosine_restarts(1.0, given), [30, 40]),
        (lambda given: schedules.restarted(schedules.linear(1.0, 30), given), [30, 40]),
        (lambda given: schedules.consecutive([schedules.linear(1.0, 30)] * 2, given), [30, 40]),
        (lambda given: schedules.rewarmed(1.0, given), [30, 40]),
        (lambda given: schedules.rewarmed(1.0, [30, 40], warmup=given), [3, 4]),
        (lambda given: schedules.step(1.0, 100, at=given), [0.07, 0.5]),
        (lambda given: schedules.follow(1.0, 100, profiles.linear(), readings=given), [0.07, 0.5]),
    ],
)
def test_an_array_with_one_axis_is_as_good_as_a_list(make, numbers, kind):
    np.testing.assert_array_equal(make(kind(numbers))(COUNTS), make(numbers)(COUNTS))


def test_several_numbers_in_more_than_one_axis_are_refused():
    with pytest.raises(ValueError, match=r"one number of updates, got an array of shape \(1, 2\)"):
        schedules.cosine_restarts(1.0, np.array([[3, 4]]))


@pytest.mark.parametrize("steps", [1, 3, 999_983, 1_000_003, 2**24 + 1, 2**31 - 2])
def test_places_are_the_same_updates_whether_the_steps_are_known_or_traced(steps):
    # In whole numbers; (2**20 - 1) / 2**20 is the finest share there is.
    shares = [(3, 10), (6, 10), (9, 10), (2**20 - 1, 2**20)]
    places = [-(-above * steps // below) for above, below in shares]
    assert math.ceil(0.9 * 1_000_003) == 900_003  # which float32 takes for 900,002
    counts = jnp.array([count for place in places for count in (place - 1, place, place + 1)])
    expected = [0.5 ** sum(count >= place for place in [*places]) for count in counts.tolist()]

    def stepped(steps):
        return schedules.step(1.0, steps, at=[above / below for above, below in shares], factor=0.5)(counts)

    np.testing.assert_allclose(stepped(steps), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(stepped)(steps), expected, rtol=1e-6)


@pytest.mark.parametrize("steps", range(1, 16))
def test_a_short_run_has_an_update_below_the_peak(steps):
    """A decay's first update is at the peak: with two of them the second is half-way, and the end follows the run."""

    def of(steps):
        made = schedules.wsd(1.0, steps), schedules.wsdc(1.0, steps, tail=0), schedules.wsd_s(1.0, [steps, 2 * steps])
        return jnp.stack([schedule(np.arange(20)) for schedule in made])

    found = np.asarray(of(steps))
    middles = [0.1**0.5, 0.55, 1 / 5.5]
    if steps == 1:
        np.testing.assert_allclose(found[:, 0], 1)
    else:
        np.testing.assert_allclose(found[:, steps - 2], 1)
        np.testing.assert_allclose(found[:, steps - 1], middles, rtol=1e-5)
    np.testing.assert_allclose(found[:2, steps], 0.1, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(of)(steps), found, rtol=1e-5)


def test_a_decay_by_default_leaves_room_for_the_warm_up():
    np.testing.assert_allclose(schedules.wsd(1.0, 10, warmup=9)(np.arange(8, 12)), [8 / 9, 1, 0.1, 0.1], rtol=1e-5)
