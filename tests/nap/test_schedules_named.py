"""Named schedules: against optax where it has the same, and in all the ways optax calls one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nap
from nap import schedules
from nap.schedules import profiles

STEPS = 100
COUNTS = np.arange(STEPS + 20, dtype=np.int32)

# Every named schedule as a function of its peak, over a hundred updates or so.
ALL = {
    "constant": schedules.constant,
    "linear": lambda peak: schedules.linear(peak, STEPS),
    "cosine": lambda peak: schedules.cosine(peak, STEPS),
    "rex": lambda peak: schedules.rex(peak, STEPS),
    "step": lambda peak: schedules.step(peak, STEPS),
    "one_cycle": lambda peak: schedules.one_cycle(peak, STEPS),
    "inverse_sqrt": lambda peak: schedules.inverse_sqrt(peak, 10),
    "warmup_cosine": lambda peak: schedules.warmup_cosine(peak, STEPS, warmup=10),
    "cosine_restarts": lambda peak: schedules.cosine_restarts(peak, [10, 20, 40]),
    "wsd": lambda peak: schedules.wsd(peak, STEPS),
    "wsd_s": lambda peak: schedules.wsd_s(peak, [20, 50, STEPS]),
    "wsdc": lambda peak: schedules.wsdc(peak, STEPS),
    "infinite": lambda peak: schedules.infinite(peak, STEPS),
    "rewarmed": lambda peak: schedules.rewarmed(peak, [STEPS // 2, STEPS // 2]),
    "stable_then_decay": lambda peak: schedules.stable_then_decay(peak, 80),
    "slow_start_fast_decay": lambda peak: schedules.slow_start_fast_decay(peak, STEPS),
}
CONTINUOUS = {
    "linear": schedules.linear(1.0, 1000),
    "cosine": schedules.cosine(1.0, 1000),
    "rex": schedules.rex(1.0, 1000),
    "one_cycle": schedules.one_cycle(1.0, 1000),
    "inverse_sqrt": schedules.inverse_sqrt(1.0, 10),
    "warmup_cosine": schedules.warmup_cosine(1.0, 1000, warmup=10),
    "wsd": schedules.wsd(1.0, 1000),
    "wsdc": schedules.wsdc(1.0, 1000),
    "infinite": schedules.infinite(1.0, 1000),
    "rewarmed": schedules.rewarmed(1.0, [400, 600], warmup=10),
    "stable_then_decay": schedules.stable_then_decay(1.0, 800),
}


def at(schedule: optax.Schedule, *counts: int) -> list[float]:
    return [float(schedule(count)) for count in counts]


def test_all_that_is_named_is_tested():
    parts = {"branch", "consecutive", "follow", "phases", "profiles", "refine", "refine_by_bound", "restarted"}
    assert ALL.keys() == set(nap.schedules.__all__) - parts


@pytest.mark.parametrize("name", ALL)
def test_a_schedule_is_called_in_every_way(name):
    schedule = ALL[name](0.5)
    expected = np.array([float(schedule(count)) for count in COUNTS[::17].tolist()])  # Python ints
    assert np.all(np.isfinite(expected)) and expected.min() >= 0 and 0 < expected.max() <= 0.5 + 1e-7
    np.testing.assert_allclose(schedule(COUNTS[::17]), expected, rtol=1e-5, atol=1e-7)
    assert schedule(COUNTS.reshape(2, -1)).shape == (2, len(COUNTS) // 2)
    jitted = jax.jit(schedule)
    np.testing.assert_allclose([float(jitted(count)) for count in COUNTS[::17]], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(schedule)(COUNTS[::17]), expected, rtol=1e-5, atol=1e-7)
    _, scanned = jax.lax.scan(lambda count, _: (count + 17, schedule(count)), jnp.int32(0), length=len(expected))
    np.testing.assert_allclose(scanned, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_peaks_may_be_traced(name):
    peaks = jnp.array([0.5, 2.0])
    found = jax.jit(jax.vmap(lambda peak: ALL[name](peak)(COUNTS)))(peaks)
    # The absolute ends of warmup_cosine do not scale.
    np.testing.assert_allclose(
        found, np.stack([ALL[name](float(peak))(COUNTS) for peak in peaks]), rtol=2e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", CONTINUOUS)
def test_no_jumps_but_where_they_are_meant(name):
    """Between two updates of a thousand, a value moves by no more than a warm-up over the shortest length does."""
    values = np.asarray(CONTINUOUS[name](np.arange(1200)))
    assert np.max(np.abs(np.diff(values))) < 0.11


def test_an_optimizer_reads_its_schedule_from_its_state_and_from_its_first_update_on():
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=schedules.wsd(1.0, 10, warmup=2, decay=4))
    params = {"w": jnp.zeros(())}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    rates, moved = [], []
    for _ in range(11):
        steps, state = update({"w": jnp.ones(())}, state, params)
        rates.append(float(state.hyperparams["learning_rate"]))
        moved.append(-float(steps["w"]))
    expected = [0, 0.5, 1, 1, 1, 1, 1, 0.1**0.25, 0.1**0.5, 0.1**0.75, 0.1]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_seeds_with_different_peaks_and_lengths_train_under_one_vmap():
    def train(peak, steps):
        optimizer = optax.sgd(schedules.rex(peak, steps))
        params = {"w": jnp.zeros(())}
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update({"w": jnp.ones(())}, state)
            params = optax.apply_updates(params, updates)
        return -params["w"]

    found = jax.vmap(train)(jnp.array([1.0, 2.0]), jnp.array([2, 4]))
    np.testing.assert_allclose(found, [1 + 2 / 3, 2 * (1 + 0.75 / 0.875 + 2 / 3)], rtol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.constant(0.3), optax.constant_schedule(0.3)),
        (schedules.linear(0.3, 70, end=0.1), optax.linear_schedule(0.3, 0.03, 70)),
        (schedules.cosine(0.3, 70, end=0.1), optax.cosine_decay_schedule(0.3, 70, alpha=0.1)),
        (schedules.follow(0.3, 70, profiles.polynomial(3.0, 0.1)), optax.polynomial_schedule(0.3, 0.03, 3, 70)),
        (schedules.follow(0.3, 70, profiles.exponential(0.2)), optax.exponential_decay(0.3, 70, 0.2, end_value=0.06)),
        (schedules.step(0.3, 70), optax.piecewise_constant_schedule(0.3, {21: 0.1, 42: 0.1, 63: 0.1})),
        (schedules.one_cycle(0.3, 100), optax.linear_onecycle_schedule(100, 0.3, final_div_factor=1e4)),
        (schedules.warmup_cosine(0.3, 70, warmup=10), optax.warmup_cosine_decay_schedule(1e-8, 0.3, 10, 70, 1e-6)),
        (
            schedules.cosine_restarts(0.3, [10, 20, 40]),
            optax.sgdr_schedule(
                [{"init_value": 0.3, "peak_value": 0.3, "warmup_steps": 0, "decay_steps": n} for n in (10, 20, 40)]
            ),
        ),
    ],
)
def test_as_optax_has_it(ours, theirs):
    expected = [float(theirs(count)) for count in COUNTS.tolist()]
    np.testing.assert_allclose(ours(COUNTS), expected, rtol=2e-5, atol=1e-7)


def test_thirty_sixty_ninety_steps_at_whole_updates():
    for steps in (10, 97, 1000):
        schedule = schedules.step(1.0, steps)
        for tenths, before in ((3, 1.0), (6, 0.1), (9, 0.01)):
            place = -(-tenths * steps // 10)
            expected = [before, before / 10, before / 10]
            np.testing.assert_allclose(at(schedule, place - 1, place, place + 1), expected, rtol=1e-5)


def test_naps_sequential_schedule_at_the_first_the_thousandth_and_the_last_update_of_each_task():
    """2407.01800: 1e-8 to 6.25e-4 over 1,000 updates (not frames), a cosine to 1e-6, and again in every task."""
    updates, peak = 4000, 6.25e-4
    schedule = schedules.restarted(schedules.warmup_cosine(peak, updates), updates)
    last = 1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * 2999 / 3000)) / 2
    for task in range(3):
        first = task * updates
        found = at(schedule, *(first + count for count in (0, 999, 1000, 1001, updates - 1)))
        cosine = 1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi / 3000)) / 2
        np.testing.assert_allclose(found, [1e-8, 1e-8 + (peak - 1e-8) * 0.999, peak, cosine, last], rtol=1e-4)
        if task:
            np.testing.assert_allclose(at(schedule, first - 1), last, rtol=1e-4)


def test_inverse_sqrt_warms_up_and_has_no_horizon():
    schedule = schedules.inverse_sqrt(1.0, 100)
    np.testing.assert_allclose(
        at(schedule, 0, 99, 100, 101, 400, 10**6), [0, 0.99, 1, 10 / 101**0.5, 0.5, 0.01], rtol=1e-5
    )


def test_wsd_with_a_half_life_as_minicpm_has_it():
    schedule = schedules.wsd(1.0, 1000, decay=200, profile=profiles.exponential(0.5 ** (200 / 50)))
    np.testing.assert_allclose(at(schedule, 800, 850, 900, 1000), [1, 0.5, 0.25, 0.0625], rtol=1e-5)


def test_wsd_s_decays_before_each_budget_and_is_back_at_the_peak_right_after_it():
    schedule = schedules.wsd_s(1.0, [100, 200, 400], warmup=10)  # decays of 10, 20 and 40 updates
    almost = [1 / (1 + 9 * (n - 1) / n) for n in (10, 20, 40)]
    np.testing.assert_allclose(at(schedule, 0, 9, 10, 11, 90, 91), [0, 0.9, 1, 1, 1, 1 / 1.9], rtol=1e-5)
    np.testing.assert_allclose(at(schedule, 95), [1 / 5.5], rtol=1e-5)
    np.testing.assert_allclose(at(schedule, 99, 100, 101, 180), [almost[0], 1, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(at(schedule, 190, 199, 200, 201), [1 / 5.5, almost[1], 1, 1], rtol=1e-5)
    np.testing.assert_allclose(at(schedule, 360, 380, 399, 400, 500), [1, 1 / 5.5, almost[2], 0.1, 0.1], rtol=1e-5)
    same = schedules.wsd_s(1.0, [100, 200, 400], warmup=10, decay=[10, 20, 40])
    np.testing.assert_array_equal(same(np.arange(401)), schedule(np.arange(401)))


def test_infinite_cools_down_stays_and_is_annealed_on_a_branch():
    trunk = schedules.infinite(3e-4, 1000)  # warm-up 10, cooldown until 700, 1.65e-4 from then on
    half = (3e-4 + 1.65e-4) / 2
    np.testing.assert_allclose(
        at(trunk, 0, 9, 10, 355, 700, 701, 10**6), [0, 2.7e-4, 3e-4, half, 1.65e-4, 1.65e-4, 1.65e-4], rtol=1e-4
    )
    annealed = schedules.branch(trunk, at=800, steps=200, profile=profiles.exponential(0.1 / 0.55))
    expected = [1.65e-4, 1.65e-4, (1.65e-4 * 3e-5) ** 0.5, 3e-5, 3e-5]
    np.testing.assert_allclose(at(annealed, 799, 800, 900, 1000, 1001), expected, rtol=1e-4)


def test_rewarmed_rises_from_where_the_last_stage_ended():
    schedule = schedules.rewarmed(1.0, [100, 200], warmup=[10, 20])
    np.testing.assert_allclose(at(schedule, 0, 5, 10, 55, 99), [0, 0.5, 1, 0.55, 0.1003], rtol=1e-3)
    np.testing.assert_allclose(at(schedule, 100, 110, 120, 210, 300, 301), [0.1, 0.55, 1, 0.55, 0.1, 0.1], rtol=1e-5)


def test_stable_then_decay_leaves_the_trunk_as_it_was():
    schedule = schedules.stable_then_decay(2e-5, 1000)
    np.testing.assert_allclose(
        at(schedule, 0, 999, 1000, 1050, 1100, 1200), [2e-5] * 3 + [1.1e-5, 2e-6, 2e-6], rtol=1e-5
    )


def test_slow_start_fast_decay_is_constant_in_each_epoch():
    schedule = schedules.slow_start_fast_decay(1.0, 50)
    by_epoch = [0.25, 0.5, 0.75, 1, 1, 0.4, 0.16, 0.064, 0.0256, 0.01024]
    np.testing.assert_allclose(schedule(np.arange(50)), np.repeat(by_epoch, 5), rtol=1e-4)


def test_cosine_restarts_without_an_end():
    schedule = schedules.cosine_restarts(1.0, 10, end=0.2)
    np.testing.assert_allclose(at(schedule, 0, 5, 10, 15, 10**6), [1, 0.6, 1, 0.6, 1], rtol=1e-6)


def test_lengths_may_be_traced():
    def of(steps):
        return jnp.stack([
            schedules.wsd(1.0, steps)(COUNTS),
            schedules.wsdc(1.0, steps)(COUNTS),
            schedules.wsd_s(1.0, [steps // 2, steps])(COUNTS),
            schedules.infinite(1.0, steps)(COUNTS),
            schedules.rewarmed(1.0, [steps // 2, steps])(COUNTS),
            schedules.stable_then_decay(1.0, steps)(COUNTS),
            schedules.warmup_cosine(1.0, steps, warmup=steps // 5)(COUNTS),
            schedules.cosine_restarts(1.0, [steps, steps])(COUNTS),
            schedules.inverse_sqrt(1.0, steps)(COUNTS),
            schedules.step(1.0, steps)(COUNTS),
            schedules.slow_start_fast_decay(1.0, steps)(COUNTS),
        ])  # fmt: skip

    found = jax.jit(jax.vmap(of))(jnp.array([50, 100]))
    np.testing.assert_allclose(found, np.stack([of(50), of(100)]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.rex(-1.0, 10), "peak must be a finite number of at least 0, got -1.0"),
        (lambda: schedules.rex(1.0, 10.5), "steps must be a whole number of updates"),
        (
            lambda: schedules.wsd(1.0, 10, warmup=5, decay=6),
            "warmup [+] decay is 11 updates, more than the 10",
        ),
        (lambda: schedules.wsd(1.0, 10, warmup=-1), "warmup must be a whole number of updates"),
        (lambda: schedules.wsd_s(1.0, []), "budgets must be increasing numbers of updates, at least one"),
        (lambda: schedules.wsd_s(1.0, [20, 10]), r"budgets must be increasing .*, got \[20, 10\]"),
        (lambda: schedules.wsd_s(1.0, [100, 105]), "warmup [+] decay is 10 updates, more than the 5 there are"),
        (
            lambda: schedules.wsd_s(1.0, [10, 20], decay=[1]),
            "one number or one for each budget, got 1 for 2",
        ),
        (lambda: schedules.wsdc(1.0, 10, tail=11), "tail is 11 updates, more than the 10 there are"),
        (lambda: schedules.infinite(1.0, 10, warmup=8), "warmup is 8 updates, more than the 7 there are"),
        (lambda: schedules.infinite(1.0, 10, cooldown=-8), "the updates of a phase must be a whole number"),
        (lambda: schedules.rewarmed(1.0, []), "at least one task"),
        (lambda: schedules.rewarmed(1.0, [10, 10], warmup=[1]), "warmup must be one number or one for each stage"),
        (lambda: schedules.rewarmed(1.0, [10], warmup=11), "warmup is 11 updates, more than the 10"),
        (lambda: schedules.warmup_cosine(0.0, 10_000), "peak must be a finite number above 0, got 0.0"),
        (lambda: schedules.warmup_cosine(1e-9, 10_000), "peak must be at least 1e-06, as .*, got 1e-09"),
        (lambda: schedules.warmup_cosine(0.1, 10_000, init_value=0.2), "peak must be at least 0.2, as .*, got 0.1"),
        (lambda: schedules.warmup_cosine(1.0, 500), "warmup is 1000 updates, more than the 500 there are"),
        (lambda: schedules.inverse_sqrt(1.0, 0), "warmup must be a whole number of updates from 1"),
        (lambda: schedules.cosine_restarts(1.0, 0), "steps must be a whole number of updates from 1"),
    ],
)
def test_a_bad_number_is_told_in_a_line(make, words):
    with pytest.raises(ValueError, match=words) as told:
        make()
    assert "\n" not in str(told.value)
