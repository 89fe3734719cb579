"""Scores of Atari runs, raw and human-normalised: those of each game, and what they come to over all games."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from envs.scores import REFERENCES
from experiments.harness.curves import Curve
from experiments.harness.read import LoadedRun, method_order
from experiments.harness.statistics import (
    Interval,
    Samples,
    Values,
    improvement,
    iqm,
    mean,
    median,
    profile_intervals,
    stratified_bootstrap,
)

PHASES = MappingProxyType({"eval": "in evaluation", "train": "while training"})
STATISTICS: Mapping[str, Callable[[Samples], Values]] = MappingProxyType({"median": median, "IQM": iqm, "mean": mean})

_RESAMPLES_OF_CURVES = 500
_MOST_POINTS = 40  # of a curve over all games: each is a bootstrap
_HIGHEST_THRESHOLD = 8.0  # of a profile, as the literature draws them; a few games have scores of 100 times a human's
_THRESHOLDS = 161

DIVERGED = "diverged"
"""Why a run has no score: its loss was no finite number any more."""

BySeed = Mapping[int, float]


class Estimate(NamedTuple):
    """A statistic over games and seeds, with its interval; None where a game has a single seed."""

    value: float
    interval: Interval | None


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The scores of some runs in evaluation, or those while training.

    Attributes:
        phase: one of `PHASES`.
        curves: {game: {label: {seed: frames and mean return at the end of each iteration}}}; what has none is absent.
        unscored: {(game, label, seed): why it has no curve}.
    """

    phase: str
    curves: Mapping[str, Mapping[str, Mapping[int, Curve]]]
    unscored: Mapping[tuple[str, str, int], str]

    @functools.cached_property
    def labels(self) -> list[str]:
        """The methods that have a score in any game with human scores, in the legend's order."""
        scored = {label for game, of_game in self.curves.items() if game in REFERENCES for label in of_game}
        return sorted(scored, key=method_order)

    @functools.cached_property
    def frames(self) -> Mapping[str, float]:
        """Where a game's scores are taken, so that methods are compared alike.

        It is the end of the last iteration in which all its runs have a score; where no iteration of theirs ends at the
        same place, it is where the shortest run has come to, and each run's nearest score is taken.
        """
        return {game: _compared_at([x for x, _ in _each(of_game)]) for game, of_game in self.curves.items()}

    @functools.cached_property
    def with_random_play(self) -> "Scores":
        """The same, with random play's score for each run that has diverged, in games that have one.

        A game in which all runs of a method have diverged has no score of it, and so is left out for every method: what
        is left is what that method is good at. Here it counts, and so does each seed that has diverged.
        """
        curves = {
            game: {label: dict(seeds) for label, seeds in of_game.items()} for game, of_game in self.curves.items()
        }
        unscored = dict(self.unscored)
        for (game, label, seed), reason in self.unscored.items():
            if reason == DIVERGED and game in REFERENCES:
                places = [x for x, _ in _each(self.curves.get(game, {}))]
                x = functools.reduce(np.union1d, places) if places else np.ones(1)
                curve = x, np.full(x.shape, REFERENCES[game].random)
                curves.setdefault(game, {}).setdefault(label, {})[seed] = curve
                del unscored[game, label, seed]
        return Scores(self.phase, curves, unscored)

    @property
    def has_diverged(self) -> bool:
        """Whether a run has diverged in a game that has a score of random play."""
        return any(reason == DIVERGED and game in REFERENCES for (game, _, _), reason in self.unscored.items())

    def shortest(self, game: str) -> list[str]:
        """The runs that have come no further on a game than all have: "nap, seed 2"."""
        least = min(x[-1] for x, _ in _each(self.curves[game]))
        return [
            f"{label}, seed {seed}"
            for label, seeds in self.curves[game].items()
            for seed, (x, _) in seeds.items()
            if x[-1] == least
        ]

    def raw(self, game: str, label: str) -> BySeed:
        """The game's own score of each seed; empty where there is none."""
        end = self.frames.get(game, 0.0)
        scores = {}
        for seed, (x, y) in self.curves.get(game, {}).get(label, {}).items():
            apart = np.abs(x - end)
            if apart.min() <= x[0] / 2:  # half an iteration, where iterations are of different lengths
                scores[seed] = float(y[apart.argmin()])
        return scores

    def normalised(self, game: str, label: str) -> BySeed:
        """The human-normalised score of each seed; empty for a game without human scores."""
        reference = REFERENCES.get(game)
        if reference is None:
            return {}
        return {seed: reference.normalised(score) for seed, score in self.raw(game, label).items()}

    @functools.cached_property
    def games(self) -> tuple[str, ...]:
        """The games that aggregates are over: those with human scores in which every method has been scored."""
        return tuple(game for game in self.curves if game not in self.left_out)

    @functools.cached_property
    def left_out(self) -> Mapping[str, str]:
        """The other games, each with the reason."""
        reasons = {game: "no human score" for game in self.curves if game not in REFERENCES}
        for game in self.curves:
            missing = [label for label in self.labels if not self.raw(game, label)]
            if missing:
                reasons.setdefault(game, f"not scored with {', '.join(missing)}")
        return reasons

    @property
    def has_aggregates(self) -> bool:
        """Whether there is more than one game to aggregate over."""
        return len(self.games) > 1

    def matrix(self, label: str) -> dict[str, list[float]]:
        """The human-normalised scores of a method in the games of the aggregates, seed by seed."""
        return {game: list(self.normalised(game, label).values()) for game in self.games}

    def seeds(self, label: str) -> tuple[int, int]:
        """The fewest and the most seeds that a game of the aggregates has with a method."""
        counts = [len(self.raw(game, label)) for game in self.games]
        return min(counts), max(counts)

    def aggregate(self, label: str, statistic: str) -> Estimate:
        """One of `STATISTICS` of a method's human-normalised scores."""
        found = stratified_bootstrap(self.matrix(label), STATISTICS[statistic])
        return Estimate(found.value, found if self.seeds(label)[0] > 1 else None)

    def improvement(self, label: str, baseline: str) -> Estimate:
        """The probability of improvement of a method over another, averaged over the games of the aggregates."""
        found = improvement(self.matrix(label), self.matrix(baseline))
        known = min(self.seeds(label)[0], self.seeds(baseline)[0]) > 1
        return Estimate(found.value, found if known else None)

    def aggregate_curve(
        self, label: str, statistic: str
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 3"] | None]:
        """An aggregate over the frames that all runs of its games have been through.

        Returns:
            The frames, and value, low and high there, the interval NaN where `aggregate` has none; the latter is None
            without such frames.
        """
        spans = [x for game in self.games for x, _ in _each(self.curves[game])]
        places = np.unique(np.concatenate(spans))
        places = places[(places >= max(x[0] for x in spans)) & (places <= min(x[-1] for x in spans))]
        if not places.size:
            return places, None
        places = places[np.unique(np.linspace(0, places.size - 1, _MOST_POINTS).round().astype(int))]
        at_places = {
            game: [REFERENCES[game].normalised(np.interp(places, x, y)) for x, y in self.curves[game][label].values()]
            for game in self.games
        }
        certain = self.seeds(label)[0] > 1
        resamples = _RESAMPLES_OF_CURVES if certain else 1
        found = [
            stratified_bootstrap(
                {game: [run[place] for run in of_game] for game, of_game in at_places.items()},
                STATISTICS[statistic],
                resamples=resamples,
            )
            for place in range(places.size)
        ]
        return places, np.array([point if certain else (point.value, np.nan, np.nan) for point in found])

    @functools.cached_property
    def thresholds(self) -> Float[np.ndarray, " thresholds"]:
        """Human-normalised scores from 0 to the highest there is, but at most 8."""
        highest = max(score for label in self.labels for of_game in self.matrix(label).values() for score in of_game)
        highest = min(highest, _HIGHEST_THRESHOLD) if highest > 0 else 1.0
        return np.linspace(0, highest, _THRESHOLDS)

    def profile(self, label: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """The share of runs above each threshold, averaged over games; its interval is None as in `aggregate`."""
        certain = self.seeds(label)[0] > 1
        profile, low, high = profile_intervals(
            self.matrix(label), self.thresholds, resamples=_RESAMPLES_OF_CURVES if certain else 1
        )
        return (profile, low, high) if certain else (profile, None, None)


def scores_of(runs: Sequence[LoadedRun], phase: str) -> Scores:
    """The scores of all runs in a phase."""
    curves: dict[str, dict[str, dict[int, Curve]]] = {}
    unscored = {}
    for run in runs:
        curve = by_iteration(run, phase)
        if has_diverged(run):
            unscored[run.problem, run.label, run.seed] = DIVERGED
        elif curve[0].size:
            curves.setdefault(run.problem, {}).setdefault(run.label, {})[run.seed] = curve
        else:
            unscored[run.problem, run.label, run.seed] = "no score yet"
    return Scores(phase, curves, unscored)


def has_diverged(run: LoadedRun) -> bool:
    """Whether the loss was no finite number any more: the last evaluation has no return, or the run ended by it."""
    if run.diverged_at is not None:
        return True
    if not {"phase", "eval/return"} <= set(run.records.columns):
        return False
    returns = run.records.filter(pl.col("phase") == "eval")["eval/return"]
    return returns.len() > 0 and returns[-1] is None


def by_iteration(run: LoadedRun, phase: str) -> Curve:
    """Frames and mean return of an episode, a point for each iteration that is over and in which an episode ended.

    An evaluation is one record already. In training, records tell the mean of the episodes that ended since the record
    before; they are averaged with the number of these episodes as weights. The point lies at the iteration's last
    record, whether or not an episode ended there: runs of the same iterations have points at the same places.
    """
    name, records = f"{phase}/return", run.records
    if phase == "eval" or not {"phase", "iteration", name, run.axis} <= set(records.columns):
        return run.series(name)
    episodes = pl.col("train/episodes") if "train/episodes" in records.columns else pl.lit(1)
    rows = records.select("iteration", "phase", x=pl.col(run.axis).cast(pl.Float64), y=pl.col(name).cast(pl.Float64),
                          weight=pl.when(pl.col(name).is_not_null()).then(episodes))  # fmt: skip
    iterations = rows.group_by("iteration", maintain_order=True).agg(
        pl.col("x").max(),
        (pl.col("y") * pl.col("weight")).sum() / pl.col("weight").sum(),
        is_evaluated=(pl.col("phase") == "eval").any(),
    )
    is_over = pl.lit(run.done) | pl.col("is_evaluated") | (pl.col("iteration") < pl.col("iteration").max())
    means = iterations.filter(is_over & pl.col("y").is_finite())
    return means["x"].to_numpy(), means["y"].to_numpy()


def labels(runs: Sequence[LoadedRun]) -> list[str]:
    """The methods, in the legend's order."""
    return sorted({run.label for run in runs}, key=method_order)


def baselines(names: Sequence[str]) -> dict[str, str]:
    """For each method the one it is compared with: the plainest of the same variant, or else of all; none for itself.

    Args:
        names: the labels in the legend's order, which begins with the plainest.
    """
    plainest: dict[str, str] = {}
    for name in names:
        plainest.setdefault(name.partition(" ")[2], name)
    pairs = {}
    for name in names:
        of_variant = plainest[name.partition(" ")[2]]
        pairs[name] = names[0] if of_variant == name else of_variant
    return {name: baseline for name, baseline in pairs.items() if name != baseline}


def with_agents(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """The runs, the agent in their labels where there are several: then what merely follows from it is not.

    An experiment without a choice of agents is one itself.
    """
    agents = {_agent(run) for run in runs}
    if len(agents) < 2:
        return list(runs)
    groups: dict[tuple[str, str, str, str], set[str]] = {}
    for run in runs:
        for name, value in run.differences:
            groups.setdefault((run.problem, run.method, _agent(run), name), set()).add(value)
    telling = {name for (*_, name), values in groups.items() if len(values) > 1} - {"agent"}
    named = [
        dataclasses.replace(
            run,
            differences=(
                ("agent", _agent(run)),
                *((name, value) for name, value in run.differences if name in telling),
            ),
        )
        for run in runs
    ]
    return sorted(named, key=lambda run: (run.problem, method_order(run.label), run.seed))


def grouped(runs: Sequence[LoadedRun]) -> list[list[LoadedRun]]:
    """The seeds of each method in each game, in order."""
    return [list(group) for _, group in itertools.groupby(runs, key=lambda run: (run.problem, run.label))]


def _agent(run: LoadedRun) -> str:
    return str(run.config.get("agent", run.experiment))


def _each(of_game: Mapping[str, Mapping[int, Curve]]) -> list[Curve]:
    return [curve for of_label in of_game.values() for curve in of_label.values()]


def _compared_at(places: Sequence[Float[np.ndarray, "..."]]) -> float:
    shared = functools.reduce(np.intersect1d, places)
    return float(shared[-1] if shared.size else min(x[-1] for x in places))
