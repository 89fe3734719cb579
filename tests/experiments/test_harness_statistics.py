"""Statistics of runs: numbers worked by hand, SciPy's, and those that rliable's own tests publish."""

import csv
import pathlib
import re

import numpy as np
import pytest
import scipy.stats

from experiments.harness.statistics import (
    Interval,
    caution,
    improvement,
    iqm,
    mean,
    median,
    paired_difference,
    performance_profile,
    pointwise_intervals,
    probability_of_improvement,
    profile_intervals,
    stratified_bootstrap,
)

# From rliable's tests/rliable/metrics_test.py: [runs, tasks].
X = np.array([[1.0, 2], [2, 2], [1, 1], [2, 1]])
Y = np.array([[1.0, 1], [2, 2], [3, 3]])


def test_the_published_values():
    assert (median(X), mean(X), iqm(X)) == (1.5, 1.5, 1.5)
    assert (median(Y), mean(Y), iqm(Y)) == (2, 2, 2)
    assert probability_of_improvement(X, Y) == pytest.approx(1 / 3)


def test_published_aggregates_over_57_games():
    """The median and the mean of the human-normalised scores in CleanRL's documentation (MIT), as quoted there."""
    published = pathlib.Path(__file__).parents[1] / "data" / "ppo_returns_and_hns.csv"
    with published.open(encoding="utf-8") as lines:
        scores = np.array([[float(row["human_normalised_score"]) for row in csv.DictReader(lines)]])
    assert scores.shape == (1, 57)
    assert median(scores) == pytest.approx(1.041, abs=5e-4)
    assert mean(scores) == pytest.approx(7.18, abs=5e-3)
    assert stratified_bootstrap(scores, median) == Interval(*[float(median(scores))] * 3), "one run: no spread"


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 2), (4, 7), (2, 3, 5)])
def test_iqm_is_scipys_trimmed_mean(shape):
    scores = np.random.default_rng(0).normal(size=shape) ** 3
    expected = [scipy.stats.trim_mean(part, 0.25, axis=None) for part in scores.reshape(-1, *shape[-2:])]
    np.testing.assert_allclose(iqm(scores).reshape(-1), expected, rtol=1e-12)


def test_improvement_counts_ties_half_and_stops_at_0_and_1():
    assert probability_of_improvement(X, X) == pytest.approx(0.5)
    assert probability_of_improvement(X + 5, X) == 1 and probability_of_improvement(X - 5, X) == 0
    one = np.array([[1.0], [2.0]])
    assert probability_of_improvement(one, np.array([[2.0], [0.0], [5.0]])) == pytest.approx((1 + 1.5) / 6)
    expected = scipy.stats.mannwhitneyu(X[:, 0], Y[:, 0]).statistic / 12
    assert probability_of_improvement(X[:, :1], Y[:, :1]) == pytest.approx(expected)


def test_the_profile_is_the_share_of_runs_above():
    np.testing.assert_allclose(performance_profile(Y, np.array([0.0, 1, 2, 2.5, 3])), [1, 2 / 3, 1 / 3, 1 / 3, 0])


def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says():
    scores = np.random.default_rng(1).normal(3, 2, size=400)
    found = stratified_bootstrap(scores)
    half = 1.96 * scores.std() / np.sqrt(scores.size)
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.1 * half)


def test_the_bootstrap_agrees_with_scipys():
    scores = np.random.default_rng(2).exponential(size=12)
    theirs = scipy.stats.bootstrap([scores], np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
    ours = stratified_bootstrap(scores, resamples=5000)
    np.testing.assert_allclose(ours[1:], theirs, rtol=0.03)


def test_runs_are_drawn_within_their_stratum():
    # Strata that differ by far, runs that do not differ at all: nothing is left to chance.
    alike = np.array([[0.0, 100.0, 7.0]] * 3)
    assert stratified_bootstrap(alike, mean) == Interval(107 / 3, 107 / 3, 107 / 3)
    spread = np.array([[0.0, 100.0], [1.0, 100.0]])  # the mean can only be 50, 50.25 or 50.5
    assert stratified_bootstrap(spread, mean)[1:] == (50, 50.5)


def test_strata_with_different_numbers_of_runs():
    scores = {"pong": [1.0, 3.0], "breakout": [10.0]}
    assert stratified_bootstrap(scores, mean) == Interval(6, 5.5, 6.5)
    assert stratified_bootstrap(scores, median).value == 6
    assert stratified_bootstrap(scores, iqm).value == pytest.approx(scipy.stats.trim_mean([1.0, 3.0, 10.0], 0.25))


def test_one_run_has_no_interval_and_the_same_seed_gives_the_same_one():
    assert stratified_bootstrap([0.25]) == Interval(0.25, 0.25, 0.25)
    assert stratified_bootstrap(X, iqm, seed=3) == stratified_bootstrap(X, iqm, seed=3)
    scores = np.random.default_rng(0).normal(size=30)
    narrow, wide = (stratified_bootstrap(scores, confidence=confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@pytest.mark.parametrize("scores", [{}, {"pong": []}, [1.0, np.nan], np.zeros((0, 2))])
def test_scores_that_say_nothing_are_refused(scores):
    with pytest.raises(ValueError, match="at least one"):
        stratified_bootstrap(scores)


def test_a_difference_is_taken_seed_by_seed():
    baseline = {0: 10.0, 1: 20.0, 2: 60.0, 7: 1000.0}
    method = {0: 11.0, 1: 21.0, 2: 61.0, 5: -1000.0}  # always 1 more, on the seeds that both have
    assert paired_difference(method, baseline) == Interval(1, 1, 1)
    found = paired_difference({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0})
    assert found == Interval(2, 1, 3)
    with pytest.raises(ValueError, match=r"no seed is in both: one has \[0\], the other \[1\]"):
        paired_difference({0: 1.0}, {1: 1.0})


def test_curves_have_the_same_interval_at_each_point_as_single_numbers():
    values = np.random.default_rng(4).normal(size=(9, 3)) * [1, 10, 100]
    middle, low, high = pointwise_intervals(values, resamples=8000)
    np.testing.assert_allclose(middle, values.mean(axis=0))
    for point in range(3):
        expected = stratified_bootstrap(values[:, point], resamples=8000)
        np.testing.assert_allclose([low[point], high[point]], expected[1:], atol=0.05 * (high - low)[point])


def test_points_that_some_or_all_runs_lack():
    values = np.array([[1.0, 5.0, np.nan], [3.0, np.nan, np.nan]])
    middle, low, high = pointwise_intervals(values)
    np.testing.assert_allclose(middle, [2, 5, np.nan])
    np.testing.assert_allclose(low, [1, 5, np.nan])
    np.testing.assert_allclose(high, [3, 5, np.nan])


def test_improvement_has_the_interval_of_a_binomial_share():
    # Against runs that are all 0, a resample's improvement is the share of its draws above 0.
    above = 9
    runs = np.array([1.0] * above + [-1.0] * 21)
    found = improvement(runs, np.zeros(4), resamples=20_000)
    assert found.value == above / runs.size
    expected = scipy.stats.binom.ppf([0.025, 0.975], runs.size, above / runs.size) / runs.size
    np.testing.assert_allclose(found[1:], expected, atol=1.01 / runs.size)


def test_improvement_over_games_with_different_numbers_of_runs():
    method = {"pong": [1.0, 3.0], "breakout": [5.0]}
    baseline = {"breakout": [5.0, 4.0, 9.0, 9.0], "pong": [2.0]}  # in another order
    found = improvement(method, baseline)
    assert found.value == pytest.approx((0.5 + 1.5 / 4) / 2)
    assert found.low < found.value < found.high
    assert improvement(X, Y).value == pytest.approx(1 / 3)
    assert improvement(X + 5, Y) == Interval(1, 1, 1)
    np.testing.assert_allclose(improvement(Y, X).value, 1 - improvement(X, Y).value)
    with pytest.raises(ValueError, match=r"the strata differ: one has \['breakout', 'pong'\], the other \['pong'\]"):
        improvement(method, {"pong": [1.0]})
    with pytest.raises(ValueError, match="the strata differ: one has 2 of them, the other 1"):
        improvement(X, X[:, :1])


def test_the_band_of_a_profile_is_a_binomial_share_too():
    scores = np.arange(40.0)
    thresholds = np.array([-1.0, 9.5, 29.5, 39.0])
    profile, low, high = profile_intervals(scores, thresholds, resamples=20_000)
    np.testing.assert_allclose(profile, [1, 0.75, 0.25, 0])
    for end, tail in ((low, 0.025), (high, 0.975)):
        expected = scipy.stats.binom.ppf(tail, 40, profile) / 40
        np.testing.assert_allclose(end, expected, atol=1.01 / 40)


def test_every_game_weighs_the_same_in_a_profile():
    profile, low, high = profile_intervals({"pong": [0.0, 1.0, 1.0, 1.0], "breakout": [0.0]}, np.array([0.5]))
    assert profile == pytest.approx([(0.75 + 0) / 2]) and low < profile < high
    assert all(end == 0.5 for end in profile_intervals({"pong": [1.0], "breakout": [0.0]}, np.array([0.5])))


@pytest.mark.parametrize("seeds", [2, 4, 6, 9])
def test_how_often_an_interval_of_few_seeds_errs(seeds):
    random = np.random.default_rng(seeds)
    found = [stratified_bootstrap(random.normal(size=seeds), resamples=400) for _ in range(1500)]
    share = np.mean([of.low > 0 or of.high < 0 for of in found])
    told = float(re.search(r"about (\d+) %", caution(seeds)).group(1)) / 100
    assert share == pytest.approx(told, abs=0.005 + 3 * np.sqrt(told * (1 - told) / 1500))
    assert caution(10) == "" and "may be chance" in caution(1)
