"""Profiles against their formulas by hand, published values and properties; bad numbers in a line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nap.schedules import profiles

QUARTERS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
HALF = 0.5**0.5


@pytest.mark.parametrize(
    ("profile", "values"),
    [
        (profiles.constant(), [1, 1, 1, 1, 1]),
        (profiles.warmup(), [0, 0.25, 0.5, 0.75, 1]),
        (profiles.warmup(0.2), [0.2, 0.4, 0.6, 0.8, 1]),
        (profiles.linear(), [1, 0.75, 0.5, 0.25, 0]),
        (profiles.linear(0.2), [1, 0.8, 0.6, 0.4, 0.2]),
        (profiles.cosine(), [1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2, 0]),
        (profiles.cosine(0.5), [1, (3 + HALF) / 4, 0.75, (3 - HALF) / 4, 0.5]),
        (profiles.exponential(1 / 16), [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]),
        (profiles.polynomial(), [1, 9 / 16, 1 / 4, 1 / 16, 0]),
        (profiles.polynomial(3, 0.5), [1, 0.5 + 27 / 128, 0.5 + 1 / 16, 0.5 + 1 / 128, 0.5]),
        (profiles.one_minus_sqrt(), [1, 0.5, 1 - HALF, 1 - 0.75**0.5, 0]),
        # h goes 1, 1/sqrt(1.75), ... 1/2: rescaled to 1, ..., 0 it is 2 h - 1, and to 1/2 it is h itself
        (profiles.inverse_sqrt(rate=3.0), [1, 2 / 1.75**0.5 - 1, 2 / 2.5**0.5 - 1, 2 / 3.25**0.5 - 1, 0]),
        (profiles.inverse_sqrt(0.5, rate=3.0), [1, 1 / 1.75**0.5, 1 / 2.5**0.5, 1 / 3.25**0.5, 0.5]),
        (profiles.reciprocal(), [1, 0.3077, 0.1818, 0.1290, 0.1]),  # as Levanter has it
        (profiles.rex(), [1, 0.8571, 0.6667, 0.4, 0]),  # as the REX paper has it
        (profiles.rex(hold=0.0), [1, 0.75, 0.5, 0.25, 0]),
        (profiles.rex(0.1), [1, 0.1 + 0.9 * 6 / 7, 0.1 + 0.9 * 2 / 3, 0.1 + 0.9 * 0.4, 0.1]),
        (profiles.step(), [1, 1, 0.1, 0.01, 0.001]),
        (profiles.step((0.25, 0.75), 0.5), [1, 0.5, 0.5, 0.25, 0.25]),
        (profiles.one_cycle(0.25, 0.75, 0.2, 0.02), [0.2, 1, 0.6, 0.2, 0.02]),
        (profiles.slow_start_fast_decay(8, 4, 0.5), [0.25, 0.75, 1, 0.25, 1 / 16]),
        (profiles.table([1, 3, 2]), [1, 2, 3, 2.5, 2]),
    ],
)
def test_by_hand(profile, values):
    np.testing.assert_allclose(profile(QUARTERS), values, atol=1e-4)
    np.testing.assert_allclose([float(profile(float(z))) for z in QUARTERS], values, atol=1e-4)
    np.testing.assert_allclose(jax.jit(profile)(QUARTERS.reshape(5, 1)), np.reshape(values, (5, 1)), atol=1e-4)


def test_rex_lies_between_the_linear_profile_and_the_constant_one_and_holds_the_longer_the_more_it_is_told_to():
    z = np.linspace(0.01, 0.99, 99)
    rising = [profiles.rex(hold=hold)(z) for hold in (0.0, 0.5, 0.9, 0.99)]
    np.testing.assert_allclose(rising[0], profiles.linear()(z), atol=1e-6)
    for lower, higher in zip(rising, [*rising[1:], np.ones(99)], strict=True):
        assert np.all(lower < higher)
    np.testing.assert_allclose(profiles.rex()(np.array([0.9, 0.99])), [0.182, 0.0198], rtol=2e-3)  # the paper's


FALLING = [
    profiles.linear, profiles.cosine, profiles.exponential, profiles.one_minus_sqrt, profiles.inverse_sqrt,
    profiles.reciprocal, profiles.rex, lambda end: profiles.polynomial(2.0, end),
]  # fmt: skip


@pytest.mark.parametrize("make", FALLING)
def test_a_decay_goes_from_1_to_its_end_without_a_jump_or_a_rise_and_its_end_may_be_traced(make):
    z = np.linspace(0, 1, 10_001)
    values = np.asarray(make(0.2)(z))
    assert values[0] == pytest.approx(1, rel=1e-6) and values[-1] == pytest.approx(0.2, rel=1e-5)
    assert np.all(np.diff(values) <= 1e-7) and np.max(-np.diff(values)) < 0.01
    ends = jax.jit(jax.vmap(lambda end: make(end)(jnp.linspace(0, 1, 5))))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(ends[1], make(0.2)(QUARTERS), rtol=1e-5)
    np.testing.assert_allclose(ends[0], make(0.1)(QUARTERS), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: profiles.linear(-0.1), "end must be a finite number of at least 0, got -0.1"),
        (lambda: profiles.cosine(float("nan")), "end must be a finite number of at least 0, got nan"),
        (lambda: profiles.exponential(0.0), "end must be a finite number above 0, got 0.0"),
        (lambda: profiles.reciprocal(0), "end must be a finite number above 0, got 0"),
        (lambda: profiles.polynomial(0.0), "power must be a finite number above 0, got 0.0"),
        (lambda: profiles.inverse_sqrt(rate=-1.0), "rate must be a finite number above 0, got -1.0"),
        (lambda: profiles.rex(hold=1.0), r"hold must be in \[0, 1\), got 1.0"),
        (lambda: profiles.step((0.6, 0.3)), r"at must be increasing shares of the run between 0 and 1, got \(0.6, 0.3"),
        (lambda: profiles.step((0.3, 1.0)), "at must be increasing shares"),
        (lambda: profiles.one_cycle(0.9, 0.5), "0 < rise < fall < 1 must hold, got rise=0.9 and fall=0.5"),
        (lambda: profiles.slow_start_fast_decay(3, 4), "rising must lie in 1 to epochs=3, got 4"),
        (lambda: profiles.table([1.0]), r"multipliers must be a sequence of at least 2 numbers, got shape \(1,\)"),
        (lambda: profiles.table([1.0, -1.0]), "multipliers must be a finite number of at least 0"),
    ],
)
def test_a_bad_number_is_told_in_a_line(make, words):
    with pytest.raises(ValueError, match=words) as told:
        make()
    assert "\n" not in str(told.value)
