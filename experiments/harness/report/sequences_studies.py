"""Sequences of games: which runs play which, by what method, and which fresh agents are trained on their tasks."""

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence

import polars as pl

from envs import sequence
from envs.sequence import Task, Visit
from experiments.harness.curves import Curve
from experiments.harness.errors import UserError
from experiments.harness.identity import flatten
from experiments.harness.read import LoadedRun, method_order, option

# Runs that differ in nothing else are seeds of one method, on a sequence or on one of its tasks alone.
_ON_WHAT = ("tasks", "passes", "frames", "seed", "seeds")

_MOST_PASSES = 10_000  # all of their visits are listed

BySeed = Mapping[int, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """All seeds of one method: on a sequence, and of fresh agents on its tasks.

    Attributes:
        label: the method, with the settings in which it differs from others of its name.
        runs: of the sequence, by seed.
        fresh: of each task alone, by seed; empty where there is none.
    """

    label: str
    runs: Mapping[int, LoadedRun]
    fresh: Mapping[Task, Mapping[int, LoadedRun]]

    @property
    def all_runs(self) -> list[LoadedRun]:
        """Those of the sequence, then those of fresh agents."""
        return [*self.runs.values(), *(run for of_task in self.fresh.values() for run in of_task.values())]

    @property
    def seeds(self) -> set[int]:
        """The seeds of any of its runs."""
        return {run.seed for run in self.all_runs}

    def curves(self, visit: Visit) -> dict[int, Curve]:
        """For each seed that has any, the frames within a visit and the mean returns of its evaluations."""
        return {seed: of[visit.number] for seed, of in self._curves.items() if visit.number in of}

    def fresh_curves(self, task: Task) -> dict[int, Curve]:
        """Likewise of fresh agents."""
        return {seed: of[0] for seed, of in self._fresh_curves[task].items() if 0 in of}

    def fresh_starts(self, task: Task) -> BySeed:
        """What fresh agents score at their first record: the mean return of the episodes while they act at random."""
        firsts = {seed: run.series("train/return")[1][:1] for seed, run in self.fresh[task].items()}
        return {seed: float(first[0]) for seed, first in firsts.items() if first.size}

    def remembered(self, task: Task, visit: Visit) -> BySeed:
        """Each seed's mean return in a task when a visit, of whatever task, is over."""
        name = visit.number, task.name
        return {seed: of[name] for seed, of in self._remembered.items() if name in of}

    def completed(self, visits: Iterable[Visit]) -> dict[int, int]:
        """How many of the visits each seed has completed, with a score or, once it has diverged, without one."""
        whole = {visit.number: visit.task.frames for visit in visits}
        return {
            seed: sum(whole.get(number) == frames for number, frames in _lengths(run).items())
            for seed, run in self.runs.items()
        }

    @functools.cached_property
    def diverged(self) -> dict[int, int]:
        """Of each seed that has diverged, the first visit, from 0, with an evaluation without a return, or its last."""
        return _diverged(self.runs)

    def lost(self, visit: Visit, visits: int) -> list[int]:
        """The seeds that had diverged by the end of a visit, as far as the others have come.

        Args:
            visit: one of the sequence's.
            visits: how many it has; where all seeds have diverged, all of them count.
        """
        done = self.completed([visit])
        alive = [seed for seed in self.runs if seed not in self.diverged]
        counts = any(done[seed] for seed in alive) if alive else visit.number < visits
        return [seed for seed, number in self.diverged.items() if counts and number <= visit.number]

    def fresh_diverged(self, task: Task) -> list[int]:
        """The seeds whose fresh agents have diverged."""
        return list(_diverged(self.fresh[task]))

    @property
    def any_diverged(self) -> set[int]:
        """The seeds that have diverged anywhere."""
        return {*self.diverged, *(seed for task in self.fresh for seed in self.fresh_diverged(task))}

    @functools.cached_property
    def _curves(self) -> dict[int, dict[int, Curve]]:
        return {seed: _evaluations(run) for seed, run in self.runs.items()}

    @functools.cached_property
    def _fresh_curves(self) -> dict[Task, dict[int, dict[int, Curve]]]:
        return {
            task: {seed: _evaluations(run) for seed, run in of_task.items()} for task, of_task in self.fresh.items()
        }

    @functools.cached_property
    def _remembered(self) -> dict[int, dict[tuple[int, str], float]]:
        return {seed: _after_visits(run) for seed, run in self.runs.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """One sequence, and all methods that play it.

    Attributes:
        name: short, its own among the sequences of a report.
        sequence: the sequence; of fresh agents alone, without any visit.
        methods: in the legend's order.
    """

    name: str
    sequence: sequence.Sequence
    methods: tuple[Method, ...]

    @functools.cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, each once."""
        return tuple(dict.fromkeys(self.sequence.tasks))

    @functools.cached_property
    def visits(self) -> Mapping[Task, tuple[Visit, ...]]:
        """The visits of each task."""
        return {task: tuple(visit for visit in self.sequence.visits if visit.task == task) for task in self.tasks}

    @property
    def baseline(self) -> Method:
        """The method that others are compared with: the plainest."""
        return self.methods[0]

    def nth(self, number: int) -> list[Visit]:
        """The visits that are the first (0), second (1), ... or last (-1) of their task."""
        return [of[number] for of in self.visits.values() if -len(of) <= number < len(of)]


def make_studies(runs: Iterable[LoadedRun]) -> list[Study]:
    """The sequences among some runs, each with its methods; last, fresh agents that belong to none of them.

    A seed that lies in several folders counts once: the run that got furthest.

    Raises:
        UserError: a configuration's tasks can't be read.
    """
    played: dict[sequence.Sequence, dict[Hashable, dict[int, LoadedRun]]] = {}
    alone: dict[Hashable, dict[Task, dict[int, LoadedRun]]] = {}
    for run in runs:
        of, settings = _sequence_of(run), _settings(run)
        if len(of.visits) == 1:
            seeds = alone.setdefault(settings, {}).setdefault(of.tasks[0], {})
        else:
            seeds = played.setdefault(of, {}).setdefault(settings, {})
        if run.seed not in seeds or seeds[run.seed].reached < run.reached:
            seeds[run.seed] = run
    names = _names(list(played))
    studies = [_study(names[of], of, methods, alone) for of, methods in played.items()]
    used = {(settings, task) for of, methods in played.items() for settings in methods for task in of.tasks}
    rest = {
        settings: {task: seeds for task, seeds in of_tasks.items() if (settings, task) not in used}
        for settings, of_tasks in alone.items()
    }
    rest = {settings: of_tasks for settings, of_tasks in rest.items() if of_tasks}
    if rest:
        tasks = dict.fromkeys(task for of_tasks in rest.values() for task in of_tasks)
        studies.append(
            _study("fresh agents", sequence.Sequence(tuple(tasks), 0), {settings: {} for settings in rest}, rest)
        )
    return studies


def differing(study: Study) -> dict[str, dict[str, list[str]]]:
    """The settings in which the methods differ: {setting: {value: methods}}."""
    values: dict[str, dict[str, list[str]]] = {}
    for method in study.methods:
        for name, value in _settings(method.all_runs[0]):
            if name not in ("method", "run_updates"):  # the latter follows from it
                values.setdefault(option(name), {}).setdefault(value, []).append(method.label)
    return {name: of for name, of in values.items() if len(of) > 1}


def ends_of(curves: Mapping[int, Curve], frames: int) -> BySeed:
    """For each seed the last evaluation of a visit of so many frames; of a visit that is over."""
    return {seed: float(y[-1]) for seed, (x, y) in curves.items() if x[-1] == frames}


def _study(
    name: str,
    of: sequence.Sequence,
    methods: Mapping[Hashable, Mapping[int, LoadedRun]],
    alone: Mapping[Hashable, Mapping[Task, Mapping[int, LoadedRun]]],
) -> Study:
    fresh = {settings: {task: alone.get(settings, {}).get(task, {}) for task in of.tasks} for settings in methods}
    some = {
        settings: next(run for seeds in (of_sequence, *fresh[settings].values()) for run in seeds.values())
        for settings, of_sequence in methods.items()
    }
    labels = _labels(some)
    found = [
        Method(
            labels[settings],
            dict(sorted(seeds.items())),
            {t: dict(sorted(s.items())) for t, s in fresh[settings].items()},
        )
        for settings, seeds in methods.items()
    ]
    return Study(name, of, tuple(sorted(found, key=lambda method: method_order(method.label))))


def _labels(some: Mapping[Hashable, LoadedRun]) -> dict[Hashable, str]:
    """A label for each method, from one of its runs: its name, and what it differs in from others of that name."""
    settings = {key: dict(_settings(run)) for key, run in some.items()}
    labels = {}
    for key, run in some.items():
        rivals = [settings[other] for other, rival in some.items() if rival.method == run.method]
        names = dict.fromkeys(name for rival in rivals for name in rival)
        telling = [name for name in names if len({rival.get(name) for rival in rivals}) > 1]
        variant = ", ".join(f"{option(name)} {settings[key].get(name)}" for name in telling)
        labels[key] = f"{run.method} ({variant})" if variant else run.method
    return labels


def _names(sequences: Sequence[sequence.Sequence]) -> dict[sequence.Sequence, str]:
    names: dict[sequence.Sequence, str] = {}
    for of in sequences:
        tasks = dict.fromkeys(task.name for task in of.tasks)
        what = " and ".join(tasks) if len(tasks) <= 2 else f"{len(tasks)} games"
        name = f"{what}, {of.passes} pass{'es' * (of.passes > 1)}"
        alike = sum(other == name or other.startswith(f"{name} (") for other in names.values())
        names[of] = f"{name} ({alike + 1})" if alike else name
    return names


def _settings(run: LoadedRun) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in flatten(run.config) if name not in _ON_WHAT)


def _sequence_of(run: LoadedRun) -> sequence.Sequence:
    tasks, frames, passes = run.setting("tasks", str), run.setting("frames", int), run.setting("passes", int)
    try:
        if not 1 <= passes <= _MOST_PASSES:
            raise ValueError(f"passes is {passes}, and must lie in 1 to {_MOST_PASSES:,}")
        found = sequence.Sequence(sequence.parse_tasks(tasks, frames), passes)
        last = run.records["visit"].max() if "visit" in run.records.columns else 1
        if not isinstance(last, int) or not 1 <= last <= len(found.visits):
            raise ValueError(f"a record is of visit {last}, and there are {len(found.visits)}")
    except ValueError as error:
        raise UserError(f"the tasks of {run.folder} can't be read: {error}") from None
    return found


def _evaluations(run: LoadedRun) -> dict[int, Curve]:
    """For each visit, from 0, the frames within it and the mean returns of the evaluations of its task."""
    rows = _rows(run, "eval", "visit_frames")
    parts = rows.partition_by("visit", as_dict=True, maintain_order=True) if rows.height else {}
    return {
        int(visit) - 1: (of["visit_frames"].cast(pl.Float64).to_numpy(), of["eval/return"].to_numpy())
        for (visit,), of in parts.items()
    }


def _lengths(run: LoadedRun) -> dict[int, int]:
    """For each visit, from 0, the frames within it at its last evaluation, whether that has a return or not."""
    if not {"phase", "visit", "visit_frames"} <= set(run.records.columns):
        return {}
    rows = run.records.filter(pl.col("phase") == "eval").group_by("visit").agg(pl.col("visit_frames").max())
    return {int(visit) - 1: int(frames) for visit, frames in rows.iter_rows()}


def _diverged(runs: Mapping[int, LoadedRun]) -> dict[int, int]:
    """For each seed the first visit, from 0, with an evaluation that has no return; or in which the run diverged."""
    found = {}
    for seed, run in runs.items():
        if {"phase", "visit", "eval/return"} <= set(run.records.columns):
            rows = run.records.filter((pl.col("phase") == "eval") & pl.col("eval/return").is_null())
            if rows.height:
                found[seed] = int(rows["visit"][0]) - 1
        if run.diverged_at is not None:
            found.setdefault(seed, int(run.records["visit"][-1]) - 1)
    return found


def _after_visits(run: LoadedRun) -> dict[tuple[int, str], float]:
    """The mean return in each task, by the visit that was just over, from 0, and the task's name."""
    rows = _rows(run, "all", "played")
    return {(visit - 1, played): score for visit, played, score in rows.iter_rows()}


def _rows(run: LoadedRun, phase: str, name: str) -> pl.DataFrame:
    """The columns visit, `name` and eval/return of a phase, where there is a return."""
    if not {"phase", "visit", name, "eval/return"} <= set(run.records.columns):
        return pl.DataFrame()
    rows = run.records.filter(pl.col("phase") == phase)
    return rows.select("visit", name, pl.col("eval/return").cast(pl.Float64)).drop_nulls()
