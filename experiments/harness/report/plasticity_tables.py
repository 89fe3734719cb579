"""The tables of a report on streams of tasks."""

from collections.abc import Sequence

import numpy as np

from experiments.harness.report.cells import (
    ACCURACY,
    Cell,
    Metric,
    average,
    baseline_of,
    choose,
    counting_diverged,
    difference,
    least_of,
    metric_of,
)
from experiments.harness.report.page import bold_if_apart, bracketed, diverged_by, row, signed, table, text
from experiments.harness.report.plasticity_figures import by_problem
from experiments.harness.statistics import Interval, paired_difference, stratified_bootstrap


def results(chosen: Sequence[Cell]) -> list[str]:
    """Methods by streams, if there are several streams; then a table a stream with all that sums it up."""
    streams = by_problem(chosen)
    parts = ["<h2>Results</h2>", _streams(chosen)] if len(streams) > 1 else []
    for problem, cells in streams.items():
        parts.append(f"<h3>{text(problem) if len(streams) > 1 else 'Results'}</h3>{_stream(cells)}")
    return parts


def rates(cells: Sequence[Cell]) -> list[str]:
    """The online scores at all learning rates; nothing where each method has one."""
    chosen = choose(cells)
    if len(chosen) == len(cells):
        return []
    parts = ["<h3>All learning rates</h3>"]
    for problem, of_problem in by_problem(cells).items():
        metric = metric_of(of_problem)
        numbers = sorted({cell.lr for cell in of_problem})
        head = [("method", False), *((f"lr {number:g}", True) for number in numbers)]
        rows = []
        for label in dict.fromkeys(cell.label for cell in of_problem):
            by_rate = {cell.lr: cell for cell in of_problem if cell.label == label}
            shown = [_rate_cell(by_rate.get(number), metric, chosen) for number in numbers]
            rows.append(row(head, [text(label), *shown]))
        words = f"{text(problem)}: average {_words(metric)}, with its 95 % interval. Bold: chosen."
        parts.append(f"<p>{words}</p>{table(head, rows)}")
    return parts


def _streams(chosen: Sequence[Cell]) -> str:
    """The average online score of every method on every stream."""
    streams = by_problem(chosen)
    metrics = {problem: metric_of(cells) for problem, cells in streams.items()}
    head = [("method", False), *((f"{problem}: {_words(metric)}", True) for problem, metric in metrics.items())]
    rows = []
    for label in dict.fromkeys(cell.label for cell in chosen):
        shown = []
        for problem, cells in streams.items():
            cell = next((cell for cell in cells if cell.label == label), None)
            shown.append(_interval(average(cell, metrics[problem].online), metrics[problem]) if cell else "–")
        rows.append(row(head, [text(label), *shown]))
    return f"<p>The average online score of every method, in short:</p>{table(head, rows)}"


def _stream(cells: Sequence[Cell]) -> str:
    metric, baseline = metric_of(cells), baseline_of(cells)
    has_test = any(cell.averages("test_accuracy") for cell in cells)
    all_done = all(run.done for cell in cells for run in cell.runs)
    counted = _counting_diverged(cells, metric, baseline)
    ends = [(metric.online, _words(metric), metric is ACCURACY)]
    ends += [("accuracy", "accuracy at a task's end (%)", True)] if metric is ACCURACY else []
    ends += [("loss", "loss at a task's end", False)]
    ends += [("test_accuracy", "test accuracy (%)", True)] if has_test else []
    head = [
        ("method", False),
        ("learning rate", True),
        (f"average {_words(metric)}", True),
        (f"difference to {baseline.label}", True),
        *((f"{words}, first → last", True) for _, words, _ in ends),
        ("seeds", True),
        *([] if all_done else [("state", False)]),
    ]
    rows = []
    for cell in cells:
        shown = [
            text(cell.label),
            "–" if np.isnan(cell.lr) else f"{cell.lr:g}",
            _interval(average(cell, metric.online), metric),
            "baseline" if cell is baseline else _difference(difference(cell, baseline, metric.online), metric),
            *(_ends(cell.ends(name), percent) for name, _, percent in ends),
            _seeds(cell),
            *([] if all_done else [_state(cell)]),
        ]
        rows.append(row(head, shown))
    return table(head, rows) + counted


def _counting_diverged(cells: Sequence[Cell], metric: Metric, baseline: Cell) -> str:
    """The average scores of one stream with the seeds that have diverged; "" where none has, or no other has any."""
    least = least_of(cells, metric)
    if least is None or not any(cell.diverged for cell in cells):
        return ""
    head = [("method", False), (f"average {_words(metric)}", True), (f"difference to {baseline.label}", True)]
    head.append(("seeds", True))
    scores = {cell.label: counting_diverged(cell, cells, metric, least) for cell in cells}
    theirs, rows = scores[baseline.label], []
    for cell in cells:
        ours = scores[cell.label]
        found = stratified_bootstrap(np.array(list(ours.values()))) if ours else None
        apart = paired_difference(ours, theirs) if ours.keys() & theirs.keys() else None
        against = "baseline" if cell is baseline else _difference(apart, metric)
        rows.append(row(head, [text(cell.label), _interval(found, metric), against, _seeds(cell)]))
    words = (
        "Above, a seed that diverged is left out, which flatters the method. Here it scores, in each task without a "
        f"value, as badly as any other seed on this stream did in its worst task: {_value(least, metric is ACCURACY)}"
        f"{' %' if metric is ACCURACY else ''}."
    )
    return f"<p>{words}</p>{table(head, rows)}"


def _rate_cell(cell: Cell | None, metric: Metric, chosen: Sequence[Cell]) -> str:
    if cell is None:
        return "–"
    shown = _interval(average(cell, metric.online), metric)
    shown = f"<b>{shown}</b>" if cell in chosen else shown
    notes = [f"{len(cell.diverged)} of {len(cell.runs)} seeds diverged"] if cell.diverged else []
    notes += [] if all(run.done for run in cell.runs) else [_state(cell)]
    return f"{shown} <small>{'; '.join(notes)}</small>" if notes else shown


def _words(metric: Metric) -> str:
    return f"{metric.words} (%)" if metric is ACCURACY else metric.words


def _interval(interval: Interval | None, metric: Metric) -> str:
    return bracketed(interval, lambda value: _value(value, metric is ACCURACY))


def _difference(interval: Interval | None, metric: Metric) -> str:
    shown = bracketed(interval, lambda value: signed(_value(value, metric is ACCURACY)))
    return bold_if_apart(interval, shown)


def _ends(ends: tuple[float, float] | None, percent: bool) -> str:
    if ends is None:
        return "–"
    return " → ".join(_value(value, percent) for value in ends)


def _value(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:#.3g}".rstrip(".")


def _seeds(cell: Cell) -> str:
    return f"{len(cell.runs)} ({len(cell.diverged)} diverged)" if cell.diverged else str(len(cell.runs))


def _state(cell: Cell) -> str:
    if all(run.done for run in cell.runs):
        return "finished"
    return diverged_by(cell.runs) or f"{cell.tasks} of {cell.planned or '?'} tasks"
