"""What some runs say about a method, and how sure that is: interquartile means, bootstrap intervals, comparisons.

Scores are [runs, strata]: a stratum is a game, a task or whatever else all runs are divided by. Where the strata have
different numbers of runs they are given by name, {stratum: its runs' scores}. The recommendations are those of Agarwal
et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Samples = Float[np.ndarray, "*resamples runs strata"]  # NaN where a stratum has fewer runs than another
Values = Float[np.ndarray, "*resamples"]
Scores = Float[np.ndarray, "runs strata"] | Float[np.ndarray, " runs"] | Mapping[str, Sequence[float] | np.ndarray]

RESAMPLES = 2000
CONFIDENCE = 0.95


# How often such an interval of the mean of so many normally distributed differences leaves out 0, their true mean: the
# percentile bootstrap of a few runs is too narrow. tests/experiments/test_harness_statistics.py draws them anew.
_MISSED = {2: 0.50, 3: 0.25, 4: 0.20, 5: 0.17, 6: 0.14, 7: 0.13, 8: 0.11, 9: 0.10}


class Interval(NamedTuple):
    """A statistic with its confidence interval; `low` = `high` = `value` where one run says nothing of the spread."""

    value: float
    low: float
    high: float


def caution(seeds: int) -> str:
    """What to bear in mind of a 95 % bootstrap interval over so few seeds, as a sentence; "" from ten on."""
    if seeds == 1:
        return "One seed has no interval: what looks like a difference there may be chance."
    if seeds not in _MISSED:
        return ""
    return (
        f"Intervals from {seeds} seeds are too narrow: without any difference, about {100 * _MISSED[seeds]:.0f} % of "
        "them leave 0 out, not 5 %."
    )


def iqm(scores: Samples) -> Values:
    """The interquartile mean over runs and strata together: of the middle half, the outer quarters left out.

    The number left out at each end is rounded down, as in `scipy.stats.trim_mean(scores, 0.25, axis=None)`.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)  # NaN goes to the end
    count = np.sum(~np.isnan(flat), axis=-1, keepdims=True)
    cut = count // 4
    place = np.arange(flat.shape[-1])
    middle = np.where((place >= cut) & (place < count - cut), flat, 0.0)
    return np.sum(middle, axis=-1) / (count - 2 * cut)[..., 0]


def mean(scores: Samples) -> Values:
    """The mean over strata of the mean over runs."""
    return np.mean(np.nanmean(scores, axis=-2), axis=-1)


def median(scores: Samples) -> Values:
    """The median over strata of the mean over runs."""
    return np.median(np.nanmean(scores, axis=-2), axis=-1)


def stratified_bootstrap(
    scores: Scores,
    statistic: Callable[[Samples], Values] = mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """A statistic with its percentile bootstrap interval: runs are drawn anew, with replacement, in each stratum.

    Args:
        scores: [runs, strata]; [runs] of a single stratum; or the runs of each stratum by name.
        statistic: reduces the last two axes of [..., runs, strata]: `iqm`, `mean`, `median` or one of your own.
        resamples: how many times the runs are drawn.
        seed: of the drawing; the same scores and seed give the same interval.
        confidence: share of the resamples that the interval holds.

    Raises:
        ValueError: no score, a stratum without runs, or a score that is not finite.
    """
    matrix = _matrix(scores)
    low, high = _bounds(statistic(_drawn(matrix, resamples, np.random.default_rng(seed))), confidence)
    return Interval(float(statistic(matrix)), float(low), float(high))


def paired_difference(
    method: Mapping[int, float],
    baseline: Mapping[int, float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The mean over seeds of method - baseline, over the seeds that both have, bootstrapped over these seeds.

    Pairing takes out what the two share: a seed's initial weights, its data and their order.

    Args:
        method: a score for each seed.
        baseline: likewise.
        resamples: as in `stratified_bootstrap`, like what follows.
        seed: of the drawing.
        confidence: of the interval.

    Raises:
        ValueError: no seed is in both.
    """
    shared = sorted(method.keys() & baseline.keys())
    if not shared:
        raise ValueError(f"no seed is in both: one has {sorted(method)}, the other {sorted(baseline)}")
    differences = np.array([method[number] - baseline[number] for number in shared])
    return stratified_bootstrap(differences, resamples=resamples, seed=seed, confidence=confidence)


def pointwise_intervals(
    values: Float[np.ndarray, "runs points"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """The mean over runs at each point of a curve, and its bootstrap interval there.

    Whole runs are drawn, the same ones at all points. A NaN is a run that has nothing at that point.

    Args:
        values: a curve a run.
        resamples: as in `stratified_bootstrap`, like what follows.
        seed: of the drawing.
        confidence: of the interval at each point, not of the whole curve.

    Returns:
        (mean, low, high). NaN where no run has a value.
    """
    runs = len(values)
    known, filled = ~np.isnan(values), np.nan_to_num(values, nan=0.0)
    weights = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples).astype(float)
    weights = np.concatenate([np.ones((1, runs)), weights])
    totals = weights @ known
    means = np.divide(weights @ filled, totals, out=np.full(totals.shape, np.nan), where=totals > 0)
    low, high = np.full(means.shape[1], np.nan), np.full(means.shape[1], np.nan)
    some = known.any(axis=0)
    low[some], high[some] = _bounds(means[1:, some], confidence)
    return means[0], low, high


def probability_of_improvement(x: Samples, y: Samples) -> Values:
    """How likely a run of x scores above a run of y in the same stratum, averaged over strata; a tie counts 1/2.

    Of each stratum it is the Mann-Whitney U statistic over the number of pairs. x and y have the same strata, and may
    have different numbers of runs.
    """
    ours, theirs = x[..., :, None, :], y[..., None, :, :]
    wins = np.where(np.isnan(ours - theirs), np.nan, (ours > theirs) + 0.5 * (ours == theirs))
    return np.mean(np.nanmean(wins, axis=(-3, -2)), axis=-1)


def improvement(
    method: Scores,
    baseline: Scores,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The probability of improvement of a method over a baseline, with its percentile bootstrap interval.

    The runs of both are drawn anew, independently of each other, in each stratum.

    Args:
        method: as in `stratified_bootstrap`, like what follows.
        baseline: of the same strata, with as many runs as there are.
        resamples: how many times the runs are drawn.
        seed: of the drawing.
        confidence: of the interval.

    Raises:
        ValueError: as `stratified_bootstrap`, or the strata are not the same.
    """
    if isinstance(method, Mapping) and isinstance(baseline, Mapping):
        if method.keys() != baseline.keys():
            raise ValueError(f"the strata differ: one has {sorted(method)}, the other {sorted(baseline)}")
        baseline = {name: baseline[name] for name in method}
    x, y = _matrix(method), _matrix(baseline)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"the strata differ: one has {x.shape[1]} of them, the other {y.shape[1]}")
    random = np.random.default_rng(seed)
    drawn = probability_of_improvement(_drawn(x, resamples, random), _drawn(y, resamples, random))
    low, high = _bounds(drawn, confidence)
    return Interval(float(probability_of_improvement(x, y)), float(low), float(high))


def performance_profile(
    scores: Samples, thresholds: Float[np.ndarray, " thresholds"]
) -> Float[np.ndarray, "*resamples thresholds"]:
    """The share of runs that score above each threshold, averaged over strata."""
    runs = np.sum(~np.isnan(scores), axis=-2)
    # One threshold after another: all together would take `thresholds` times the memory of the scores.
    shares = [np.mean(np.sum(scores > threshold, axis=-2) / runs, axis=-1) for threshold in thresholds]
    return np.stack(shares, axis=-1)


def profile_intervals(
    scores: Scores,
    thresholds: Float[np.ndarray, " thresholds"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> tuple[Float[np.ndarray, " thresholds"], Float[np.ndarray, " thresholds"], Float[np.ndarray, " thresholds"]]:
    """The performance profile with its percentile bootstrap interval at each threshold: (profile, low, high).

    Args:
        scores: as in `stratified_bootstrap`.
        thresholds: at which the profile is taken.
        resamples: as in `stratified_bootstrap`, like what follows.
        seed: of the drawing.
        confidence: of the interval at each threshold, not of the whole profile.

    Raises:
        ValueError: as `stratified_bootstrap`.
    """
    matrix = _matrix(scores)
    drawn = performance_profile(_drawn(matrix, resamples, np.random.default_rng(seed)), thresholds)
    low, high = _bounds(drawn, confidence)
    return performance_profile(matrix, thresholds), low, high


def _matrix(scores: Scores) -> Float[np.ndarray, "runs strata"]:
    """Strata as columns, shorter ones filled up with NaN at the end."""
    if isinstance(scores, Mapping):
        columns = [np.asarray(values, float) for values in scores.values()]
        names = list(scores)
    else:
        array = np.asarray(scores, float)
        columns = list(array.T) if array.ndim == 2 else [array]
        names = list(range(len(columns)))
    for name, column in zip(names, columns, strict=True):
        if not column.size or not np.isfinite(column).all():
            raise ValueError(f"stratum {name} needs at least one score, all of them finite; it has {column.tolist()}")
    if not columns:
        raise ValueError("there are no scores: at least one stratum is needed")
    matrix = np.full((max(column.size for column in columns), len(columns)), np.nan)
    for number, column in enumerate(columns):
        matrix[: column.size, number] = column
    return matrix


def _drawn(
    matrix: Float[np.ndarray, "runs strata"], resamples: int, random: np.random.Generator
) -> Float[np.ndarray, "resamples runs strata"]:
    """Each stratum's runs drawn anew, as many as it has."""
    counts = np.sum(~np.isnan(matrix), axis=0)
    # A column's runs come first and its padding last, so that a draw below `counts` is a run of that stratum.
    rows = np.floor(random.random((resamples, *matrix.shape)) * counts).astype(np.intp)
    drawn = matrix[rows, np.arange(matrix.shape[1])]
    return np.where(np.isnan(matrix), np.nan, drawn)


def _bounds(values: Float[np.ndarray, "resamples *rest"], confidence: float) -> Float[np.ndarray, "2 *rest"]:
    """The ends of the interval; NaN, from a resample without any value, is left out."""
    tail = (1 - confidence) / 2
    quantile = np.nanquantile if np.isnan(values).any() else np.quantile  # the former is far slower
    return quantile(values, [tail, 1 - tail], axis=0)
