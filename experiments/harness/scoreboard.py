"""The table that a grid of runs ends with: what its report says first, in plain text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from experiments.harness.read import load_runs
from experiments.harness.report.cells import ACCURACY, Cell, Metric, average, choose, make_cells, metric_of
from experiments.harness.statistics import Interval
from nap.tables import format_table


def scoreboard(folders: Iterable[Path]) -> str:
    """A row for each cell: the average over its tasks and seeds with a 95 % interval, and its first and last tasks.

    Args:
        folders: run folders.
    """
    cells = make_cells(load_runs(folders))
    chosen = choose(cells)
    parts = []
    for problem in dict.fromkeys(cell.problem for cell in cells):
        of_problem = [cell for cell in cells if cell.problem == problem]
        metric = metric_of(of_problem)
        header = ["method", "learning rate", f"average {metric.words}", "95 % interval", "first tasks", "last tasks"]
        rows = [_row(cell, metric, cell in chosen and len(chosen) < len(cells)) for cell in of_problem]
        parts.append(f"{problem}\n{format_table([*header, 'seeds'], rows, right=(1, 2, 3, 4, 5, 6))}")
    notes = ["first and last tasks: a tenth of them each"]
    notes += ["*: the method's best learning rate"] if len(chosen) < len(cells) else []
    return "\n\n".join([*parts, "; ".join(notes)])


def _row(cell: Cell, metric: Metric, star: bool) -> list[str]:
    interval, ends = average(cell, metric.online), cell.ends(metric.online)
    first, last = ends or (None, None)
    rate = f"{'* ' if star else ''}{cell.lr:g}"
    values = [_number(interval.value if interval else None, metric), _interval(interval, metric)]
    seeds = f"{len(cell.runs)}, {len(cell.diverged)} diverged" if cell.diverged else str(len(cell.runs))
    return [cell.label, rate, *values, _number(first, metric), _number(last, metric), seeds]


def _interval(interval: Interval | None, metric: Metric) -> str:
    if interval is None or interval.low == interval.high:
        return "–"
    return f"{_number(interval.low, metric)} to {_number(interval.high, metric)}"


def _number(value: float | None, metric: Metric) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if metric is ACCURACY else f"{value:.4g}"
