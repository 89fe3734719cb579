"""What the visits of a sequence came to, beside fresh agents: scores on one scale, plasticity, transfer, forgetting."""

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from envs.sequence import Task, Visit
from experiments.harness.curves import Curve
from experiments.harness.report.sequences_studies import BySeed, Method, Study, ends_of
from experiments.harness.statistics import Interval, stratified_bootstrap

Items = Mapping[Hashable, BySeed]  # a number of each seed for each visit, or for each task


class Scale(NamedTuple):
    """What makes the scores of different games comparable.

    Attributes:
        zero: the mean return that is 0 %.
        hundred: the mean return that is 100 %.
        human: whether that is a human tester's, and 0 % random play; otherwise both are fresh agents'.
    """

    zero: float
    hundred: float
    human: bool

    def of(self, score: Float[np.ndarray, "*n"] | float) -> np.ndarray:
        """Mean returns in percent."""
        return 100 * (np.asarray(score) - self.zero) / (self.hundred - self.zero)


class Summary(NamedTuple):
    """An average over visits or tasks, with its interval over seeds.

    Attributes:
        interval: of the average.
        items: how many visits or tasks it is over.
        planned: how many there are to be.
        seeds: how many seeds.
    """

    interval: Interval
    items: int
    planned: int
    seeds: int


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a study's methods.

    Attributes:
        study: the study.
        counts_diverged: whether a seed that has diverged scores 0 %, as at random play, from that visit on; otherwise
            it has no score there, and averages are over the others.
    """

    study: Study
    counts_diverged: bool = False

    @functools.cached_property
    def scales(self) -> Mapping[Task, Scale]:
        """The scale of each task that has one.

        A task with human scores has those. Of another, 0 % is what the fresh agents of all methods scored at their
        first record, which is of almost random play, and 100 % is the best method's fresh agents at the end of their
        training. It has none before there are such agents, or where these have not learned for certain: where the
        interval over seeds of the mean of all their evaluations - their first record does not lie above 0.
        """
        found = {task: self._scale(task) for task in self.study.tasks}
        return {task: scale for task, scale in found.items() if scale is not None}

    @property
    def has_all_scales(self) -> bool:
        """Whether every task has a scale."""
        return all(task in self.scales for task in self.study.tasks)

    def fresh(self, method: Method) -> Items:
        """The normalised score of a fresh agent on each task."""
        return {task: self._fresh(method, task) for task in self.study.tasks}

    def scores(self, method: Method, visits: Iterable[Visit]) -> Items:
        """The normalised score at the end of each visit."""
        return {visit: self._score(method, visit) for visit in visits}

    def against_fresh(self, method: Method, visits: Iterable[Visit]) -> Items:
        """The score at the end of each visit - a fresh agent's, seed by seed."""
        return {visit: _minus(self._score(method, visit), self._fresh(method, visit.task)) for visit in visits}

    def plasticity(self, method: Method) -> Items:
        """The score at the end of each task's last visit - at the end of its first; of tasks visited once, none."""
        return {
            task: _minus(self._score(method, of[-1]), self._score(method, of[0]))
            for task, of in self.study.visits.items()
            if len(of) > 1
        }

    def transfer(self, method: Method) -> Items:
        """The mean over the evaluations of each task's first visit - over a fresh agent's; not of the very first."""
        firsts = [visit for visit in self.study.nth(0) if visit.number > 0]
        areas = {visit.task: self._counted(method, visit, _areas(method.curves(visit), visit.task)) for visit in firsts}
        return {
            task: _minus(of, self._fresh_counted(method, task, _areas(method.fresh_curves(task), task)))
            for task, of in areas.items()
        }

    def forgetting(self, method: Method) -> Items:
        """For each visit the score in its task at its end - just before the next visit of that task, or at the end."""
        visits = self.study.sequence.visits
        lost: dict[Hashable, BySeed] = {}
        for of in self.study.visits.values():
            nexts = [*(visit.number for visit in of[1:]), len(visits)]
            for visit, following in zip(of, nexts, strict=True):
                if following > visit.number + 1:
                    then = method.remembered(visit.task, visit)
                    kept = method.remembered(visit.task, visits[following - 1])
                    lost[visit] = _minus(self._normalised(visit.task, then), self._normalised(visit.task, kept))
        return lost

    def _score(self, method: Method, visit: Visit) -> BySeed:
        return self._counted(method, visit, ends_of(method.curves(visit), visit.task.frames))

    def _fresh(self, method: Method, task: Task) -> BySeed:
        return self._fresh_counted(method, task, ends_of(method.fresh_curves(task), task.frames))

    def _counted(self, method: Method, visit: Visit, returns: BySeed) -> BySeed:
        """Returns of a visit in percent, and 0 for the seeds that had diverged by its end, if they count."""
        lost = method.lost(visit, len(self.study.sequence.visits)) if self.counts_diverged else ()
        return self._with_zeros(visit.task, returns, lost)

    def _fresh_counted(self, method: Method, task: Task, returns: BySeed) -> BySeed:
        return self._with_zeros(task, returns, method.fresh_diverged(task) if self.counts_diverged else ())

    def _with_zeros(self, task: Task, returns: BySeed, seeds: Iterable[int]) -> BySeed:
        if task not in self.scales:
            return {}
        return {**dict.fromkeys(seeds, 0.0), **self._normalised(task, returns)}

    def _normalised(self, task: Task, scores: BySeed) -> BySeed:
        """Scores in percent; empty without a scale."""
        if task not in self.scales:
            return {}
        scale = self.scales[task]
        return {seed: float(scale.of(score)) for seed, score in scores.items()}

    def _scale(self, task: Task) -> Scale | None:
        if task.reference is not None:
            return Scale(*task.reference, human=True)
        methods = self.study.methods
        zeros = [start for method in methods for start in method.fresh_starts(task).values()]
        learned = []
        for method in methods:
            ends = ends_of(method.fresh_curves(task), task.frames)
            progress = _minus(_areas(method.fresh_curves(task), task), method.fresh_starts(task))
            if progress and stratified_bootstrap(np.array(list(progress.values()))).low > 0:
                learned.append(float(np.mean(list(ends.values()))))
        if not learned or max(learned) <= np.mean(zeros):
            return None
        return Scale(float(np.mean(zeros)), max(learned), human=False)


def summary(items: Items) -> Summary | None:
    """The average over visits or tasks with its interval over seeds; None where there is no number.

    It is over the seeds that have most of them, and what all of these have.
    """
    counts = _counts(items)
    if not counts:
        return None
    seeds = [seed for seed, count in counts.items() if count == max(counts.values())]
    shared = [of for of in items.values() if set(seeds) <= of.keys()]
    if not shared:
        return None
    averages = np.array([np.mean([of[seed] for of in shared]) for seed in sorted(seeds)])
    return Summary(stratified_bootstrap(averages), len(shared), len(items), len(seeds))


def difference(method: Items, baseline: Items) -> Summary | None:
    """The average of a method - a baseline's, seed by seed; over seeds and visits as `summary` takes them."""
    return summary({name: _minus(of, baseline.get(name, {})) for name, of in method.items()})


def _counts(items: Items) -> dict[int, int]:
    counts: dict[int, int] = {}
    for of in items.values():
        for seed in of:
            counts[seed] = counts.get(seed, 0) + 1
    return counts


def _minus(left: BySeed, right: BySeed) -> BySeed:
    return {seed: left[seed] - right[seed] for seed in left if seed in right}


def _areas(curves: Mapping[int, Curve], task: Task) -> BySeed:
    """For each seed the mean over all evaluations of a visit that is over."""
    return {seed: float(np.mean(y)) for seed, (x, y) in curves.items() if x[-1] == task.frames}
