"""Refinement against the published code's values, and the least bound against a numerical search for it."""

import numpy as np
import pytest
from scipy.optimize import minimize

from nap import schedules
from nap.schedules import profiles

VALLEY = [4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0]


def bound(steps, norms) -> float:
    """The paper's bound on the last iterate, term by term, for a distance of 1."""
    squares = np.square(norms) * np.square(steps)
    total = (1 + squares.sum()) / (2 * steps.sum())
    for k in range(len(steps) - 1):
        total += steps[k] / steps[k:].sum() / steps[k + 1 :].sum() * squares[k:].sum() / 2
    return total


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [2, 6, 1000])
def test_constant_norms_give_linear_decay(order, steps):
    multipliers = schedules.refine(np.full(steps, 3.0), order)
    np.testing.assert_allclose(multipliers, np.linspace(1, 0, steps), atol=1e-12)
    schedule = schedules.follow(0.1, steps, profiles.table(multipliers))
    np.testing.assert_allclose(schedule(np.arange(steps)), schedules.linear(0.1, steps)(np.arange(steps)), atol=1e-6)


@pytest.mark.parametrize(
    ("order", "values"),  # of the published code, find_closed_form_schedule
    [
        (2, [0.086085, 0.325472, 1, 0.698113, 0.396226, 0.094340, 0.004717, 0]),
        (1, [0.350000, 0.633333, 1, 0.733333, 0.466667, 0.200000, 0.033333, 0]),
    ],
)
def test_the_published_values(order, values):
    np.testing.assert_allclose(schedules.refine(VALLEY, order), values, atol=1e-6)


def test_falling_norms_make_a_warm_up_and_rising_ones_a_faster_end():
    decay = np.linspace(1, 0, 100)
    falling = schedules.refine(np.linspace(4, 1, 100))
    assert 10 < falling.argmax() < 90
    rising = schedules.refine(np.append(np.ones(80), np.linspace(1, 3, 20)))
    assert np.all(rising[85:99] < decay[85:99])


def test_the_filter_is_a_running_median_that_mirrors_the_end():
    """With 10 norms and smooth 0.5 it is of 5: the beginning is repeated, the end mirrored without its last value."""
    norms = np.array([9.0, 1.0, 2.0, 8.0, 3.0, 4.0, 5.0, 7.0, 6.0, 1.0])
    medians = [9, 8, 3, 3, 4, 5, 5, 5, 6, 6]  # of 9 9 9 1 2; 9 9 1 2 8; 9 1 2 8 3; ...; 5 7 6 1 6; 7 6 1 6 7
    np.testing.assert_allclose(
        schedules.refine(norms, smooth=0.5), schedules.refine(np.array(medians, float), smooth=0.0), rtol=1e-12
    )
    assert not np.allclose(schedules.refine(norms, smooth=0.0), schedules.refine(norms, smooth=0.5))


def test_an_outlier_is_filtered_away():
    norms = np.ones(100)
    norms[40] = 1e3
    np.testing.assert_allclose(schedules.refine(norms), np.linspace(1, 0, 100), atol=1e-12)


@pytest.mark.parametrize(
    ("norms", "values"),  # of the published code, find_schedule: L-BFGS
    [
        (VALLEY, [0.111429, 0.391702, 1, 0.696771, 0.431668, 0.220187, 0.052925, 0.042817]),
        (np.ones(6), [0.761704, 0.672239, 0.584246, 0.498077, 0.414214, 1]),
        ([1.0, 2.0, 3.0], [1, 0.258239, 0.321682]),
    ],
)
def test_the_least_bound_is_where_the_published_search_finds_it(norms, values):
    np.testing.assert_allclose(schedules.refine_by_bound(norms), values, atol=2e-6)


def test_no_search_finds_less_than_the_least_bound():
    norms = np.random.default_rng(0).uniform(0.5, 2.0, 12)
    multipliers = schedules.refine_by_bound(norms, smooth=0.0)

    def least(multipliers):  # over all peaks
        return minimize(lambda log_peak: bound(np.exp(log_peak) * multipliers, norms), [0.0], tol=1e-12).fun

    found = minimize(lambda logs: bound(np.exp(logs), norms), np.full(12, -1.0), tol=1e-10)
    assert least(multipliers) == pytest.approx(found.fun, rel=1e-6)
    for other in (np.linspace(1, 0.01, 12), np.ones(12), schedules.refine(norms, smooth=0.0) + 1e-3):
        assert least(multipliers) < least(other)


def test_the_scale_of_the_norms_is_of_no_matter():
    norms = np.random.default_rng(1).uniform(0.5, 2.0, 50)
    for refine in (schedules.refine, schedules.refine_by_bound):
        np.testing.assert_allclose(refine(norms * 1e-6), refine(norms), rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0, 2.0], 3), "order is 2 for SGD or 1 for Adam-like optimizers, got 3"),
        (([1.0], 2), r"at least 2 positive numbers, a sequence, got shape \(1,\)"),
        (([1.0, 0.0], 2), "at least 2 positive numbers"),
        (([1.0, np.inf], 2), "at least 2 positive numbers"),
        ((np.ones((1, 2)), 2), r"got shape \(1, 2\)"),
        (([1.0, 2.0], 2, 1.5), "smooth is a share of the run, from 0 to 1, got 1.5"),
    ],
)
def test_bad_input_is_told_in_a_line(arguments, words):
    with pytest.raises(ValueError, match=words):
        schedules.refine(*arguments)
