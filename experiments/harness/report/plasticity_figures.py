"""The figures of a report on streams of tasks: a line a method, the mean over seeds with its interval."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from experiments.harness.read import LoadedRun
from experiments.harness.report.cells import LOSS, Cell, metric_of
from experiments.harness.report.panels import Line, Panel, Plot
from experiments.harness.statistics import pointwise_intervals

OUTPUT = "output"  # the layer that is no hidden one
_MOST_POINTS = 300
_MOST_POINTS_WITHIN = 1000  # where the rise and fall within tasks is to be seen
_MOST_MARKED_TASKS = 40
_WIDE = 30  # a loss that spans more than this is drawn on a logarithmic axis

Curves = tuple[Float[np.ndarray, " points"], Float[np.ndarray, "seeds points"]]
_EMPTY: Curves = (np.zeros(0), np.zeros((0, 0)))


def online_plot(cells: Sequence[Cell]) -> Plot | None:
    """What each stream is scored by, over its scored tasks; a panel a stream."""
    metrics = {problem: metric_of(of_problem) for problem, of_problem in by_problem(cells).items()}
    panels = []
    for problem, of_problem in by_problem(cells).items():
        metric = metrics[problem]
        factor, unit = (100, " (%)") if metric.higher_is_better else (1, "")
        lines = _lines(of_problem, lambda cell, m=metric, f=factor: _scaled(cell.matrix(m.online, scored=True), f))
        log = metric is LOSS and _is_wide(lines)
        panels.append(Panel(problem, problem, lines, f"{metric.words}{unit}", log=log))
    name = "online-loss" if set(metrics.values()) == {LOSS} else "online-accuracy"
    return _plot(name, panels, height=3.4, columns=2)


def end_plot(cells: Sequence[Cell], name: str, words: str, *, percent: bool = False) -> Plot | None:
    """A record at the end of every task; a panel a stream that has it.

    Args:
        cells: one for each stream and method.
        name: of the record: "loss", "test_accuracy".
        words: the vertical axis.
        percent: whether it is a share.
    """
    panels = []
    for problem, of_problem in by_problem(cells).items():
        lines = _lines(of_problem, lambda cell: _scaled(cell.matrix(name, scored=True), 100 if percent else 1))
        panels.append(Panel(problem, problem, lines, words, log=not percent and _is_wide(lines)))
    return _plot(f"end-{name.replace('_', '-')}", panels, height=3.4, columns=2)


def weights_plot(cells: Sequence[Cell]) -> Plot | None:
    """Norm, effective learning rate and distance to the start of one stream's hidden layers together."""
    panels = [
        _norm_panel(cells),
        _rate_panel(cells),
        _panel(cells, "distance to the initial weights", lambda cell: over_layers(cell, "distance_to_init"),
               "root mean square change"),
    ]  # fmt: skip
    return _plot("weights", panels, height=3.1)


def features_plot(cells: Sequence[Cell]) -> Plot | None:
    """Dormant units, effective rank and srank of one stream."""
    panels = [
        _panel(cells, "dormant units, all hidden layers", lambda cell: _dormant(cell, hidden_layers(cell.runs)),
               "share (%)", from_zero=True),
        _panel(cells, "effective rank, last hidden layer", lambda cell: cell.matrix("effective_rank"), "rank"),
        _panel(cells, "srank, last hidden layer", lambda cell: cell.matrix("srank"), "rank"),
    ]  # fmt: skip
    return _plot("features", panels, height=3.1)


def layers_plot(cells: Sequence[Cell], quantity: str) -> Plot | None:
    """A panel a layer of one stream.

    Args:
        cells: of one stream.
        quantity: "weight_norm" (over its first value), "elr" or "dormant_fraction_0.025".
    """
    labels = {
        "weight_norm": "norm / norm at the first record",
        "elr": "‖update‖ / ‖weights‖, per update",
        "dormant_fraction_0.025": "dormant units (%)",
    }
    panels = []
    for layer in _layers([run for cell in cells for run in cell.runs], quantity):
        curves = {
            "weight_norm": lambda cell, layer=layer: over_layers(cell, "weight_norm", [layer], relative=True),
            "elr": lambda cell, layer=layer: over_layers(cell, "elr", [layer]),
            "dormant_fraction_0.025": lambda cell, layer=layer: _dormant(cell, [layer]),
        }
        lines = _lines(cells, curves[quantity])
        panels.append(Panel(cells[0].problem, layer, lines, log=quantity == "elr", from_zero="dormant" in quantity))
    name = f"layers-{quantity.replace('_', '-')}"
    return _plot(name, panels, label=labels[quantity], height=2.2, sharey=quantity != "weight_norm")


def within_plot(cells: Sequence[Cell]) -> Plot | None:
    """Silent and dead units over the updates of one stream; None where tasks have one record each."""
    runs = [run for cell in cells for run in cell.runs]
    if not any("task" in run.records.columns and run.records["task"].is_duplicated().any() for run in runs):
        return None
    names = {
        "dormant_fraction_0": "silent units (dormant at τ = 0)",
        "dead_fraction": "dead units (nonzero on less than 1 % of the examples)",
    }
    panels = [
        _panel(cells, words, lambda cell, name=name: _within(cell, name), "share (%)", from_zero=True,
               most=_MOST_POINTS_WITHIN)
        for name, words in names.items()
    ]  # fmt: skip
    longest = max(runs, key=lambda run: run.reached).records
    ends = longest.group_by("task", maintain_order=True).last()["updates"].to_list()
    marks = tuple(float(end) for end in ends[:-1]) if len(ends) <= _MOST_MARKED_TASKS else ()
    return _plot("units-within-tasks", panels, axis="updates", height=3.1, columns=1, sharey=True, marks=marks)


def overview_plot(cells: Sequence[Cell]) -> Plot:
    """The idea in a row for each stream: the score, weight norms and effective learning rates over tasks."""
    panels: list[Panel] = []
    online = online_plot(cells)
    for problem, of_problem in by_problem(cells).items():
        score = [panel for panel in online.panels if panel.problem == problem] if online else []
        panels += [*score, _norm_panel(of_problem), _rate_panel(of_problem)]
    return Plot("overview", tuple(panels), "task", height=3.1)


def by_problem(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each stream."""
    problems = dict.fromkeys(cell.problem for cell in cells)
    return {problem: [cell for cell in cells if cell.problem == problem] for problem in problems}


def hidden_layers(runs: Sequence[LoadedRun], quantity: str = "weight_norm") -> list[str]:
    """The layers with `quantity`, without the output; all of them where there is nothing else."""
    layers = _layers(runs, quantity)
    return [layer for layer in layers if layer != OUTPUT] or layers


def over_layers(cell: Cell, quantity: str, layers: Sequence[str] | None = None, *, relative: bool = False) -> Curves:
    """The geometric mean over layers of `quantity/<layer>` at the end of each task.

    Args:
        cell: the runs.
        quantity: the first part of the records' names.
        layers: by default the hidden ones.
        relative: divide by each seed's first record, which may lie within the first task; NaN where that is 0.

    Returns:
        The tasks, and [seeds, tasks]; 0 where a layer's is 0.
    """
    curves = []
    for layer in layers or hidden_layers(cell.runs, quantity):
        x, values = cell.matrix(f"{quantity}/{layer}")
        if relative and values.size:
            firsts = [run.series(f"{quantity}/{layer}")[1][:1] for run in cell.runs]
            starts = np.array([first[0] if first.size and first[0] > 0 else np.nan for first in firsts])
            values = values / starts[:, None]
        if values.size:
            curves.append((x, values))
    if not curves:
        return _EMPTY
    with np.errstate(divide="ignore"):
        return curves[0][0], np.exp(np.mean([np.log(values) for _, values in curves], axis=0))


def _norm_panel(cells: Sequence[Cell]) -> Panel:
    return _panel(cells, "weight norm, hidden layers", lambda cell: over_layers(cell, "weight_norm", relative=True),
                  "norm / norm at the first record")  # fmt: skip


def _rate_panel(cells: Sequence[Cell]) -> Panel:
    return _panel(cells, "effective learning rate, hidden layers", lambda cell: over_layers(cell, "elr"),
                  "‖update‖ / ‖weights‖, per update", log=True)  # fmt: skip


def _dormant(cell: Cell, layers: Sequence[str]) -> Curves:
    """The mean over layers of the share of dormant units, in percent."""
    curves = [cell.matrix(f"dormant_fraction_0.025/{layer}") for layer in layers]
    curves = [(x, values) for x, values in curves if values.size]
    return (curves[0][0], 100 * np.mean([values for _, values in curves], axis=0)) if curves else _EMPTY


def _within(cell: Cell, quantity: str) -> Curves:
    """The mean over layers of a share, in percent, at every record that all seeds have."""
    layers = _layers(cell.runs, quantity)
    seeds = [[run.series(f"{quantity}/{layer}") for layer in layers] for run in cell.runs]
    seeds = [curves for curves in seeds if curves and all(x.size == curves[0][0].size > 0 for x, _ in curves)]
    if not seeds:
        return _EMPTY
    length = min(curves[0][0].size for curves in seeds)
    values = [100 * np.mean([y[:length] for _, y in curves], axis=0) for curves in seeds]
    return seeds[0][0][0][:length], np.array(values)


def _panel(
    cells: Sequence[Cell],
    title: str,
    curves: Callable[[Cell], Curves],
    label: str,
    *,
    log: bool = False,
    from_zero: bool = False,
    most: int = _MOST_POINTS,
) -> Panel:
    return Panel(cells[0].problem, title, _lines(cells, curves, most), label, log, from_zero)


def _lines(cells: Sequence[Cell], curves: Callable[[Cell], Curves], most: int = _MOST_POINTS) -> tuple[Line, ...]:
    """The mean over seeds a method, with its pointwise 95 % interval where there are several seeds."""
    lines = []
    for cell in cells:
        x, values = _thinned(curves(cell), most)
        known = ~np.isnan(values)
        if not known.any():
            continue
        x, values = x[known.any(axis=0)], values[known.any(axis=1)][:, known.any(axis=0)]
        y, low, high = pointwise_intervals(values)
        lines.append(Line(cell.label, "mean", x, y, low, high) if len(values) > 1 else Line(cell.label, "mean", x, y))
    return tuple(lines)


def _thinned(curves: Curves, most: int) -> Curves:
    """Long curves as means over nearly equal stretches."""
    x, values = curves
    if x.size <= most:
        return curves
    starts = np.array([part[0] for part in np.array_split(np.arange(x.size), most)])
    known = np.add.reduceat(~np.isnan(values), starts, axis=1, dtype=float)
    totals = np.add.reduceat(np.nan_to_num(values, nan=0.0), starts, axis=1)
    means = np.divide(totals, known, out=np.full(totals.shape, np.nan), where=known > 0)
    return np.add.reduceat(x, starts) / np.diff(np.append(starts, x.size)), means


def _scaled(curves: Curves, factor: float) -> Curves:
    return curves[0], factor * curves[1]


def _is_wide(lines: Sequence[Line]) -> bool:
    values = np.concatenate([line.y for line in lines]) if lines else np.zeros(0)
    values = values[values > 0]
    return bool(values.size and values.max() > _WIDE * values.min())


def _layers(runs: Sequence[LoadedRun], quantity: str) -> list[str]:
    return list(dict.fromkeys(layer for run in runs for layer in run.layers(quantity)))


def _plot(
    name: str,
    panels: Sequence[Panel],
    *,
    axis: str = "task",
    label: str = "",
    height: float,
    columns: int = 3,
    sharey: bool = False,
    marks: tuple[float, ...] = (),
) -> Plot | None:
    """The figure of the panels that have a line; None where there is none."""
    drawn = tuple(panel for panel in panels if panel.lines)
    return Plot(name, drawn, axis, label, columns, height, sharey, marks) if drawn else None
