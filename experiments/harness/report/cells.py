"""Runs on streams of tasks as numbers: a cell of a study's grid, task by task, seed by seed."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from experiments.harness.read import LoadedRun, method_order
from experiments.harness.statistics import Interval, paired_difference, stratified_bootstrap

_LEARNING_RATE = "optimizer.lr"
_ENDS = 0.1  # the first and the last tenth of the tasks


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a stream is scored by.

    Attributes:
        online: its record, averaged over a task's updates.
        end: its record at the end of a task.
        words: what it is called.
        higher_is_better: True for an accuracy, False for a loss.
    """

    online: str
    end: str
    words: str
    higher_is_better: bool


ACCURACY = Metric("online_accuracy", "accuracy", "online accuracy", True)
LOSS = Metric("online_loss", "loss", "online loss", False)


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """All seeds of one method at one learning rate on one stream.

    Attributes:
        problem: the stream.
        label: the method, with its variant but without the learning rate.
        lr: the learning rate; NaN where the configuration has none.
        runs: one for each seed.
        task_updates: the length of a whole task, as far as the runs on the stream tell; NaN where they do not.
    """

    problem: str
    label: str
    lr: float
    runs: tuple[LoadedRun, ...]
    task_updates: float

    @functools.cached_property
    def tables(self) -> dict[int, pl.DataFrame]:
        """For each seed a row for each whole task: `online_*` averaged over its stretches, the rest from the last."""
        return {run.seed: _tasks(run.records, self.task_updates) for run in self.runs}

    @property
    def tasks(self) -> int:
        """How many tasks the seed that got furthest has completed."""
        return max((int(_column(table, "task").max()) for table in self.tables.values() if table.height), default=0)

    @property
    def planned(self) -> int | None:
        """How many tasks there are to be."""
        return self.runs[0].setting("protocol.tasks", int, None)

    @property
    def diverged(self) -> list[int]:
        """The seeds whose loss was not finite at the end of some task, or by which their run ended."""
        ended = {run.seed for run in self.runs if run.diverged_at is not None}
        lost = {seed for seed, table in self.tables.items() if np.isnan(_column(table, "loss")).any()}
        return sorted(ended | lost)

    def scores(self, name: str) -> dict[int, Float[np.ndarray, " tasks"]]:
        """For each seed the values of the scored tasks; empty where nothing was recorded under `name`."""
        return {seed: _column(_scored(table), name) for seed, table in self.tables.items()}

    def averages(self, name: str) -> dict[int, float]:
        """For each seed the average over the scored tasks; seeds that diverged or have no value are left out."""
        averages = {seed: float(values.mean()) for seed, values in self.scores(name).items() if values.size}
        return {seed: value for seed, value in averages.items() if np.isfinite(value)}

    def ends(self, name: str) -> tuple[float, float] | None:
        """The averages over the first and over the last tenth of the scored tasks, at least one; None without any."""
        firsts, lasts = [], []
        for values in self.scores(name).values():
            if values.size and np.isfinite(values).all():
                count = max(1, round(_ENDS * values.size))
                firsts.append(values[:count].mean())
                lasts.append(values[-count:].mean())
        return (float(np.mean(firsts)), float(np.mean(lasts))) if firsts else None

    def matrix(
        self, name: str, *, scored: bool = False
    ) -> tuple[Float[np.ndarray, " tasks"], Float[np.ndarray, "seeds tasks"]]:
        """The numbers of the tasks that any seed has completed, and their values; NaN where a seed has none."""
        tables = [_scored(table) if scored else table for table in self.tables.values()]
        columns = [(_column(table, "task"), _column(table, name)) for table in tables]
        places = np.unique(np.concatenate([tasks[: values.size] for tasks, values in columns]))
        matrix = np.full((len(columns), places.size), np.nan)
        for row, (tasks, values) in zip(matrix, columns, strict=True):
            row[np.searchsorted(places, tasks[: values.size])] = values
        return places, matrix


def make_cells(runs: Sequence[LoadedRun]) -> list[Cell]:
    """The cells, in the methods' order. A seed that lies in several folders counts once: the run that got furthest."""
    groups: dict[tuple[str, str, float], dict[int, LoadedRun]] = {}
    for run in runs:
        lr = run.setting(_LEARNING_RATE, float, np.nan)
        seeds = groups.setdefault((run.problem, run.label_without(_LEARNING_RATE), lr), {})
        if run.seed not in seeds or seeds[run.seed].reached < run.reached:
            seeds[run.seed] = run
    lengths: dict[str, float] = {}
    for run in runs:
        longest = max(_column(run.records, "task_updates"), default=np.nan)
        lengths[run.problem] = float(np.fmax(lengths.get(run.problem, np.nan), longest))
    cells = [Cell(*key, tuple(seeds[seed] for seed in sorted(seeds)), lengths[key[0]]) for key, seeds in groups.items()]
    return sorted(cells, key=lambda cell: (cell.problem, method_order(cell.label), cell.lr))


def least_of(cells: Sequence[Cell], metric: Metric) -> float | None:
    """The worst that a seed of one stream scored in any scored task, of those that have not diverged; None without."""
    sound = [
        values for cell in cells for seed, values in cell.scores(metric.online).items() if seed not in cell.diverged
    ]
    known = np.concatenate([np.zeros(0), *sound])
    known = known[np.isfinite(known)]
    if not known.size:
        return None
    return float(known.min() if metric.higher_is_better else known.max())


def counting_diverged(cell: Cell, cells: Sequence[Cell], metric: Metric, least: float) -> dict[int, float]:
    """For each seed the average over scored tasks, where a seed that has diverged scores `least` without a value.

    Args:
        cell: the seeds.
        cells: all of its stream: the tasks that any of them has completed are those that a diverged seed has, too.
        metric: what is averaged.
        least: see `least_of`.
    """
    places = np.unique(np.concatenate([each.matrix(metric.online, scored=True)[0] for each in cells]))
    averages = cell.averages(metric.online)
    known, values = cell.matrix(metric.online, scored=True)
    for seed, of_seed in zip(cell.tables, values, strict=True):
        if seed in cell.diverged:
            at_places = np.full(places.size, np.nan)
            at_places[np.searchsorted(places, known)] = of_seed
            averages[seed] = float(np.where(np.isfinite(at_places), at_places, least).mean())
    return averages


def metric_of(cells: Iterable[Cell]) -> Metric:
    """Accuracy, or the loss where none of the runs has an accuracy: a regression."""
    return ACCURACY if any(cell.averages(ACCURACY.online) for cell in cells) else LOSS


def choose(cells: Sequence[Cell]) -> list[Cell]:
    """One cell for each stream and method: the learning rate with the best average over scored tasks and seeds.

    Cells that are behind others of their method, lost a seed to divergence that the score does not show, or have fewer
    seeds, are chosen only where there is no other.
    """
    chosen = []
    for problem in dict.fromkeys(cell.problem for cell in cells):
        of_problem = [cell for cell in cells if cell.problem == problem]
        metric = metric_of(of_problem)
        for label in dict.fromkeys(cell.label for cell in of_problem):
            rivals = [cell for cell in of_problem if cell.label == label]
            chosen.append(max(rivals, key=lambda cell, metric=metric: _merit(cell, metric)))
    return chosen


def baseline_of(cells: Sequence[Cell]) -> Cell:
    """The cell of one stream that the others are compared with: "none" if it is there, else the first."""
    return next((cell for cell in cells if cell.runs[0].method == "none"), cells[0])


def average(cell: Cell, name: str) -> Interval | None:
    """The average over scored tasks and seeds, with an interval over seeds; None without any value."""
    scores = list(cell.averages(name).values())
    return stratified_bootstrap(np.array(scores)) if scores else None


def difference(cell: Cell, baseline: Cell, name: str) -> Interval | None:
    """The paired difference to the baseline over the scored tasks that a seed has completed in both; None without."""
    scores: tuple[dict[int, float], dict[int, float]] = {}, {}
    for seed in cell.tables.keys() & baseline.tables.keys():
        values = [_column(_scored(each.tables[seed]), name) for each in (cell, baseline)]
        shared = min(map(len, values))  # scored tasks come in one order in both
        averages = [value[:shared].mean() for value in values] if shared else [np.nan]
        if np.isfinite(averages).all():
            for side, value in zip(scores, averages, strict=True):
                side[seed] = float(value)
    return paired_difference(*scores) if scores[0] else None


def _merit(cell: Cell, metric: Metric) -> tuple[int, int, int, float]:
    averages = cell.averages(metric.online)
    mean = float(np.mean(list(averages.values()))) if averages else -np.inf
    lost = len(cell.runs) - len(averages)
    return cell.tasks, -lost, len(averages), mean if metric.higher_is_better or not averages else -mean


def _tasks(records: pl.DataFrame, whole: float) -> pl.DataFrame:
    """A row for each task of one seed; a task that is still going on is left out."""
    if "task" not in records.columns:
        return pl.DataFrame()
    names = [name for name in records.columns if name != "task"]
    online = [pl.col(name).cast(pl.Float64).fill_null(np.nan).mean() for name in names if name.startswith("online_")]
    others = [pl.col(name).last() for name in names if not name.startswith("online_")]
    tasks = records.group_by("task", maintain_order=True).agg(*online, *others)
    if "task_updates" in names and np.isfinite(whole):
        tasks = tasks.filter(pl.col("task_updates") == int(whole))
    return tasks


def _scored(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("scored").fill_null(True)) if "scored" in table.columns else table


def _column(table: pl.DataFrame, name: str) -> Float[np.ndarray, " rows"]:
    """A column as numbers, NaN for null; empty where the table does not have it."""
    if name not in table.columns:
        return np.zeros(0)
    return table[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
