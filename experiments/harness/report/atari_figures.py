"""The figures of a report on Atari runs: seeds as thin lines, their mean as a thick one."""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.harness.curves import (
    Curve,
    all_layers,
    as_it_is,
    mean_curve,
    over_layers,
    percent,
    relative,
    returns,
    shortened,
    telling_layers,
)
from experiments.harness.read import LoadedRun
from experiments.harness.report.panels import Line, Panel, Plot

_AXIS_WORDS = {"frames": "emulator frames", "agent_steps": "agent steps"}


def axis_words(axis: str) -> str:
    """The horizontal axis in words."""
    return _AXIS_WORDS.get(axis, axis)


def returns_plot(runs: Sequence[LoadedRun]) -> Plot | None:
    """Training returns beside evaluation returns, or None when none was recorded."""
    phases = {"train": "while training", "eval": "in evaluation"}
    panels = tuple(
        Panel(runs[0].problem, title, lines_of(runs, lambda run, phase=phase: returns(run, phase)))
        for phase, title in phases.items()
        if _any(runs, f"{phase}/return")
    )
    return _plot("returns", runs, panels, label="return per episode\n(raw game score)", height=3.4, sharey=True)


def layers_plot(
    runs: Sequence[LoadedRun], name: str, quantity: str, label: str, *, log: bool = False, from_start: bool = False
) -> Plot | None:
    """One panel a layer of `quantity/<layer>`, or None when it was not recorded.

    Args:
        runs: runs of one game.
        name: of the figure's files.
        quantity: the first part of the records' names: "weight_norm".
        label: the vertical axis, with its unit.
        log: a logarithmic vertical axis.
        from_start: divide each curve by its first value; a curve that starts at zero is drawn as it is.
    """
    panels = []
    for layer in all_layers(runs, quantity):
        series = f"{quantity}/{layer}"
        starts = [run.series(series)[1][:1] for run in runs]
        from_zero = from_start and any(start.size and start[0] == 0 for start in starts)
        scale = relative if from_start and not from_zero else as_it_is
        lines = lines_of(runs, lambda run, series=series, scale=scale: scale(run.series(series)))
        panels.append(
            Panel(runs[0].problem, f"{layer} (absolute: it starts at 0)" if from_zero else layer, lines, log=log)
        )
    return _plot(name, runs, tuple(panels), label=label, height=2.2, sharey=not from_start)


def dormant_plot(runs: Sequence[LoadedRun]) -> Plot | None:
    """The share of units that are dormant at 0.025, from that at 0 to that at 0.1, one panel a layer."""
    panels = tuple(
        Panel(runs[0].problem, layer, _dormant_lines(runs, layer), from_zero=True)
        for layer in all_layers(runs, "dormant_fraction_0.025")
    )
    return _plot("dormant-units", runs, panels, label="dormant units (%)", height=2.2, sharey=True)


def training_plot(runs: Sequence[LoadedRun]) -> Plot | None:
    """Loss, learning rate and exploration rate, as far as they were recorded; None when none was."""
    names = {"loss": "loss", "learning_rate": "learning rate, as written", "epsilon": "ε: random actions (share)"}
    panels = tuple(
        Panel(
            runs[0].problem,
            title,
            lines_of(runs, lambda run, name=name: run.series(name)),
            log=name == "loss",
            from_zero=name != "loss",
        )
        for name, title in names.items()
        if _any(runs, name)
    )
    return _plot("training", runs, panels)


def overview_plot(runs: Sequence[LoadedRun]) -> Plot:
    """The idea in one row: returns, weight norms and effective learning rates of the layers that NaP projects."""
    phase = "eval" if _any(runs, "eval/return") else "train"
    layers = telling_layers(runs)
    norms = lines_of(runs, lambda run: over_layers(run, "weight_norm", layers, relative))
    rates = lines_of(runs, lambda run: over_layers(run, "elr", layers))
    panels = (
        Panel(
            runs[0].problem,
            "evaluation return" if phase == "eval" else "training return",
            lines_of(runs, lambda run: returns(run, phase)),
            "return per episode (raw game score)",
        ),
        Panel(runs[0].problem, "weight norm", norms, "norm / norm at the start"),
        Panel(runs[0].problem, "effective learning rate", rates, "‖update‖ / ‖weights‖, per update", log=True),
    )
    return Plot("overview", panels, axis_words(runs[0].axis), height=3.1)


def lines_of(runs: Sequence[LoadedRun], curve: Callable[[LoadedRun], Curve], seeds: bool = True) -> tuple[Line, ...]:
    """One method after another: a line a seed, where there are several and `seeds` says so, and one for their mean."""
    lines = []
    for method in dict.fromkeys(run.label for run in runs):
        curves = {run.seed: shortened(curve(run)) for run in runs if run.label == method}
        curves = {seed: (x, y) for seed, (x, y) in curves.items() if x.size}
        if not curves:
            continue
        if seeds and len(curves) > 1:
            lines += [Line(method, f"seed {seed}", x, y) for seed, (x, y) in curves.items()]
        x, y = mean_curve(list(curves.values()))
        if x.size:
            lines.append(Line(method, "mean", x, y))
    return tuple(lines)


def _dormant_lines(runs: Sequence[LoadedRun], layer: str) -> tuple[Line, ...]:
    """The share at 0.025, with the range from the share at 0 to that at 0.1 where both were recorded."""
    by_threshold = {
        tau: {
            line.method: line
            for line in lines_of(
                runs, lambda run, tau=tau: percent(run.series(f"dormant_fraction_{tau}/{layer}")), seeds=False
            )
        }
        for tau in ("0", "0.025", "0.1")
    }
    lines = []
    for method, line in by_threshold["0.025"].items():
        low, high = by_threshold["0"].get(method), by_threshold["0.1"].get(method)
        if low and high and np.array_equal(low.x, line.x) and np.array_equal(high.x, line.x):
            line = line._replace(low=low.y, high=high.y)
        lines.append(line)
    return tuple(lines)


def _plot(
    name: str,
    runs: Sequence[LoadedRun],
    panels: tuple[Panel, ...],
    *,
    label: str = "",
    height: float = 2.6,
    sharey: bool = False,
) -> Plot | None:
    if not panels:
        return None
    return Plot(name, panels, axis_words(runs[0].axis), label, height=height, sharey=sharey)


def _any(runs: Sequence[LoadedRun], name: str) -> bool:
    return any(run.series(name)[0].size for run in runs)
