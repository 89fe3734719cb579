"""Curves of recorded numbers: brought to one scale, thinned out, and averaged over seeds or layers."""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from experiments.harness.read import LoadedRun

Curve = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]  # places on the axis, values

_MOST_POINTS = 300
_STANDS_STILL = 1e-3  # a norm that moves by less than this, relatively, is held by projection


def as_it_is(curve: Curve) -> Curve:
    """The curve."""
    return curve


def relative(curve: Curve) -> Curve:
    """The curve over its first value; empty where that is zero or missing."""
    x, y = curve
    return (x, y / y[0]) if y.size and y[0] else (np.zeros(0), np.zeros(0))


def percent(curve: Curve) -> Curve:
    """A curve of shares, in percent."""
    return curve[0], 100 * curve[1]


def shortened(curve: Curve, weights: Float[np.ndarray, " n"] | None = None) -> Curve:
    """A long curve as means over 300 nearly equal stretches, by `weights` if there are any; a shorter one as it is."""
    points = curve[0].size
    if points <= _MOST_POINTS:
        return curve
    weights = np.ones(points) if weights is None else weights
    parts = np.array_split(np.arange(points), _MOST_POINTS)
    means = np.array([[np.average(of[part], weights=weights[part]) for part in parts] for of in curve])
    return means[0], means[1]


def returns(run: LoadedRun, phase: str) -> Curve:
    """The returns of a phase, shortened: a record is the mean of some episodes, and weighs as many."""
    name, episodes = f"{phase}/return", f"{phase}/episodes"
    if not {name, run.axis, episodes} <= set(run.records.columns):
        return shortened(run.series(name))
    rows = run.records.select(pl.col(run.axis, name, episodes).cast(pl.Float64)).drop_nulls([run.axis, name])
    return shortened((rows[run.axis].to_numpy(), rows[name].to_numpy()), rows[episodes].fill_null(1).to_numpy())


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of one or more curves, each with places of its own, over the stretch that all of them cover."""
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = np.unique(np.concatenate([x for x, _ in curves]))
    places = places[(places >= first) & (places <= last)]
    return places, np.mean([np.interp(places, x, y) for x, y in curves], axis=0)


def over_layers(
    run: LoadedRun, quantity: str, layers: Sequence[str], scale: Callable[[Curve], Curve] = as_it_is
) -> Curve:
    """The geometric mean of `quantity/<layer>` over layers, from where all of them are above zero.

    A warm-up begins with zeros, which are left out, like a layer without anything else. Where one layer falls to zero
    later on, so does the mean.
    """
    curves = [_from_first_positive(scale(run.series(f"{quantity}/{layer}"))) for layer in layers]
    curves = [(x, y) for x, y in curves if y.size]
    if not curves:
        return np.zeros(0), np.zeros(0)
    with np.errstate(divide="ignore"):
        x, logarithms = mean_curve([(x, np.log(y)) for x, y in curves])
    return x, np.exp(logarithms)


def all_layers(runs: Sequence[LoadedRun], quantity: str) -> list[str]:
    """The layers that `quantity/<layer>` was recorded for in any of the runs."""
    return list(dict.fromkeys(layer for run in runs for layer in run.layers(quantity)))


def telling_layers(runs: Sequence[LoadedRun]) -> list[str]:
    """The layers to sum a run up by: those whose norm stands still in every `nap` run, as projection makes it.

    Without a `nap` run among them, or where no norm stands still: all layers.
    """
    layers = all_layers(runs, "weight_norm")
    projected = [run for run in runs if "nap" in run.method.split("+")]
    return [layer for layer in layers if projected and all(_stands_still(run, layer) for run in projected)] or layers


def _from_first_positive(curve: Curve) -> Curve:
    x, y = curve
    positive = np.flatnonzero(y > 0)
    first = positive[0] if positive.size else y.size
    return x[first:], y[first:]


def _stands_still(run: LoadedRun, layer: str) -> bool:
    norms = run.series(f"weight_norm/{layer}")[1]
    return bool(norms.size and norms[0] > 0 and np.abs(norms / norms[0] - 1).max() < _STANDS_STILL)
