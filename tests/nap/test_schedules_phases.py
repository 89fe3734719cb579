"""How profiles are read, joined, branched and restarted: to the update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nap import schedules
from nap.schedules import profiles


def values(schedule: optax.Schedule, counts) -> list[float]:
    """The values at these counts, having compared those of an int32 array with those of Python ints one by one."""
    together = np.asarray(schedule(jnp.asarray(counts, jnp.int32))).tolist()
    np.testing.assert_allclose([float(schedule(count)) for count in counts[:12]], together[:12], rtol=1e-6, atol=1e-7)
    return together


def test_a_profile_is_followed_over_the_run_and_then_stays():
    schedule = schedules.follow(2.0, 4, profiles.linear(0.5))
    np.testing.assert_allclose(values(schedule, range(7)), [2, 1.75, 1.5, 1.25, 1, 1, 1])


@pytest.mark.parametrize("steps", [1, 41, 83, 1000, 2**31 - 1])  # 41 * float32(1 / 41) is not 1, nor is 83
def test_the_end_is_exact_however_the_division_is_compiled(steps):
    schedule = jax.jit(schedules.follow(1.0, steps, profiles.linear()))
    assert float(schedule(jnp.int32(steps))) == 0
    assert float(schedule(jnp.int32(steps - 1))) == pytest.approx(1 / steps, abs=2e-7)


def test_a_run_of_no_updates_is_over():
    assert values(schedules.follow(2.0, 0, profiles.linear(0.25)), range(3)) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("steps", "readings"), [(10, 5), (10, 3), (100, 7), (1000, 1000), (3, 7)])
def test_readings_k_times_a_run_are_at_the_first_whole_update_of_each_part(steps, readings):
    schedule = schedules.follow(1.0, steps, profiles.linear(), readings=readings)
    counts = np.arange(steps + 2)
    expected = [1 - count * readings // steps / readings for count in counts.tolist()]
    np.testing.assert_allclose(values(schedule, counts.tolist()), np.maximum(expected, 0), atol=1e-6)
    np.testing.assert_allclose(jax.jit(schedule)(counts), np.maximum(expected, 0), atol=1e-6)


@pytest.mark.parametrize("steps", [100, 1000, 12_345])
def test_readings_at_places_are_right_the_update_before_at_and_after(steps):
    schedule = schedules.follow(1.0, steps, profiles.linear(), readings=(0.07, 0.5, 0.75))
    for place, before in ((0.07, 0.0), (0.5, 0.07), (0.75, 0.5), (1.0, 0.75)):
        at = -int(-(round(place * 100) * steps) // 100)  # in whole numbers: floats call 0.07 * 100 more than 7
        np.testing.assert_allclose(
            values(schedule, [at - 1, at, at + 1]), [1 - before, 1 - place, 1 - place], atol=1e-6
        )


def test_a_step_schedule_is_a_profile_that_is_rarely_read():
    """Reading 10 ** -(4 z) at 0, 1/4, 1/2 and 3/4 is a decay by ten at these places: what the REX paper points out."""
    stepped = schedules.step(1.0, 40, at=(0.25, 0.5, 0.75))
    sampled = schedules.follow(1.0, 40, profiles.exponential(1e-4), readings=4)
    np.testing.assert_allclose(stepped(np.arange(40)), sampled(np.arange(40)), rtol=1e-5)


def test_readings_whose_steps_are_traced():
    def at(steps, count):
        return schedules.follow(1.0, steps, profiles.linear(), readings=(0.07, 0.5))(count)

    found = jax.jit(jax.vmap(at, (0, None)))(jnp.array([100, 1000]), jnp.array([6, 7, 49, 50, 69, 70, 499, 500, 1000]))
    np.testing.assert_allclose(found[0], [1, 0.93, 0.93, 0.5, 0.5, 0.5, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[1], [1, 1, 1, 1, 1, 0.93, 0.93, 0.5, 0], atol=1e-6)


def test_phases_go_on_from_where_the_last_one_ended():
    parts = [(profiles.warmup(0.5), 2), (profiles.linear(0.5), 4), (profiles.constant(), 3), (profiles.linear(0.5), 2)]
    schedule = schedules.phases(8.0, parts)
    np.testing.assert_allclose(values(schedule, range(13)), [4, 6, 8, 7, 6, 5, 4, 4, 4, 4, 3, 2, 2], rtol=1e-6)


def test_a_phase_of_no_updates_is_passed_over():
    parts = [(profiles.warmup(), 0), (profiles.linear(0.5), 2), (profiles.linear(0.5), 0), (profiles.linear(0.0), 2)]
    np.testing.assert_allclose(values(schedules.phases(8.0, parts), range(6)), [8, 6, 2, 1, 0, 0], rtol=1e-6)


def test_a_branch_leaves_its_trunk_with_the_same_count():
    trunk = schedules.linear(8.0, 8)
    schedule = schedules.branch(trunk, at=4, steps=2, profile=profiles.linear(0.25))
    np.testing.assert_allclose(values(schedule, range(8)), [8, 7, 6, 5, 4, 2.5, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(schedule(np.arange(5)), trunk(np.arange(5)))


def test_restarted_by_one_number_and_by_a_list_of_lengths():
    schedule = schedules.linear(4.0, 4)
    assert values(schedules.restarted(schedule, 3), range(8)) == [4, 3, 2, 4, 3, 2, 4, 3]
    assert values(schedules.restarted(schedule, [3, 1, 5]), range(12)) == [4, 3, 2, 4, 4, 3, 2, 1, 0, 0, 0, 0]


def test_consecutive_schedules_end_with_their_tasks():
    schedule = schedules.consecutive([schedules.linear(4.0, 4), schedules.linear(2.0, 2)], [4, 2])
    assert values(schedule, range(8)) == [4, 3, 2, 1, 2, 1, 0, 0]


def test_lengths_may_be_traced():
    def at(length, count):
        tasks = schedules.restarted(schedules.linear(1.0, length), [length, 2 * length])
        turns = schedules.consecutive([schedules.linear(1.0, length)] * 2, [length, length])
        joined = schedules.phases(1.0, [(profiles.warmup(), length), (profiles.linear(), length)])
        left = schedules.branch(schedules.constant(1.0), length, length, profiles.linear())
        return jnp.stack([tasks(count), turns(count), joined(count), left(count)])

    found = jax.jit(jax.vmap(at, (0, None)))(jnp.array([2, 4]), jnp.arange(8))
    fixed = np.stack([at(length, np.arange(8)) for length in (2, 4)])
    np.testing.assert_allclose(found, fixed, atol=1e-6)
    np.testing.assert_allclose(
        found[1], [[1, 0.75, 0.5, 0.25] * 2, [1, 0.75, 0.5, 0.25] * 2, [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25],
                   [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]], atol=1e-6
    )  # fmt: skip


LINEAR = schedules.linear(1.0, 5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.follow(-1.0, 5, profiles.linear()), "peak must be a finite number of at least 0, got -1.0"),
        (
            lambda: schedules.follow(1.0, 2.5, profiles.linear()),
            "steps must be a whole number of updates .*, got 2.5",
        ),
        (
            lambda: schedules.follow(1.0, -3, profiles.linear()),
            "steps must be a whole number of updates .*, got -3",
        ),
        (lambda: schedules.follow(1.0, 10**10, profiles.linear()), "from 0 to 2,147,483,647, got 10000000000"),
        (lambda: schedules.follow(1.0, np.array([1, 2]), profiles.linear()), r"one number .* shape \(2,\)"),
        (
            lambda: schedules.follow(1.0, 5, profiles.linear(), readings=0),
            "readings must be a whole number from 1 .*, got 0",
        ),
        (
            lambda: schedules.follow(1.0, 5, profiles.linear(), readings=(0.5, 1.5)),
            "readings must be increasing shares",
        ),
        (lambda: schedules.phases(1.0, []), "at least one phase"),
        (lambda: schedules.phases(1.0, [(profiles.linear(), -1)]), "the updates of a phase must be a whole number"),
        (lambda: schedules.branch(LINEAR, -1, 5, profiles.linear()), "at must be a whole number of updates"),
        (lambda: schedules.restarted(LINEAR, 0), "steps must be a whole number of updates from 1"),
        (lambda: schedules.restarted(LINEAR, [3, 0]), "the steps of a task must be a whole number of updates from 1"),
        (lambda: schedules.restarted(LINEAR, []), "at least one task"),
        (lambda: schedules.consecutive([LINEAR], [3, 3]), "as many as tasks, got 1 for 2 tasks"),
    ],
)
def test_a_bad_number_is_told_in_a_line(make, words):
    with pytest.raises(ValueError, match=words) as told:
        make()
    assert "\n" not in str(told.value)


def test_a_whole_number_may_be_a_float():
    assert float(schedules.follow(1.0, 1e5, profiles.linear())(50_000)) == 0.5
