"""The figures of a report: one colour a method everywhere, seeds as thin lines, their mean as a thick one."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.harness.curves import (
    Curve,
    all_layers,
    as_it_is,
    mean_curve,
    over_layers,
    percent,
    relative,
    shortened,
    telling_layers,
)
from experiments.harness.read import LoadedRun

# Okabe and Ito's colours. The three methods that most reports compare have the three that differ most to colour-blind
# readers, of every kind (in simulation); others take the rest in alphabetical order.
_FIXED_COLOURS = {"none": "#111111", "layernorm": "#E69F00", "nap": "#0072B2"}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C564B")
_MEANINGS = {
    "none": "none: the plain network",
    "layernorm": "layernorm: normalized, weights free",
    "nap": "nap: normalized and projected",
}
_AXIS_WORDS = {"frames": "emulator frames", "agent_steps": "agent steps"}
_COLUMNS = 3
_WIDTH = 10.8  # inches; one width for all figures, so that one font size is one size on the page
_FEW_POINTS = 15  # so few points are shown as such

Palette = Mapping[str, str]


def palette(runs: Sequence[LoadedRun]) -> Palette:
    """A colour for each method among all the runs of a report, in the runs' order."""
    methods = list(dict.fromkeys(run.label for run in runs))
    others = sorted(method for method in methods if method not in _FIXED_COLOURS)
    rest = {method: _OTHER_COLOURS[number % len(_OTHER_COLOURS)] for number, method in enumerate(others)}
    return {method: _FIXED_COLOURS.get(method) or rest[method] for method in methods}


def axis_words(axis: str) -> str:
    """The horizontal axis in words."""
    return _AXIS_WORDS.get(axis, axis)


def returns_figure(runs: Sequence[LoadedRun], colours: Palette) -> Figure | None:
    """Training returns beside evaluation returns, or None when none was recorded."""
    names = {"train/return": "while training", "eval/return": "in evaluation"}
    present = {name: title for name, title in names.items() if _any(runs, name)}
    if not present:
        return None
    figure, panels = _panels(len(present), columns=2, height=3.4, sharey=True)
    for panel, (name, title) in zip(panels, present.items(), strict=True):
        _draw(panel, runs, colours, lambda run, name=name: run.series(name))
        panel.set_title(title)
    panels[0].set_ylabel("return per episode\n(raw game score)")
    return _finished(figure, panels, runs, colours)


def layers_figure(
    runs: Sequence[LoadedRun],
    colours: Palette,
    quantity: str,
    label: str,
    *,
    log: bool = False,
    from_start: bool = False,
) -> Figure | None:
    """One panel a layer of `quantity/<layer>`, or None when it was not recorded.

    Args:
        runs: runs of one game.
        colours: a colour for each method; see `palette`.
        quantity: the first part of the records' names: "weight_norm".
        label: the vertical axis, with its unit.
        log: a logarithmic vertical axis.
        from_start: divide each curve by its first value; a curve that starts at zero is drawn as it is.
    """
    layers = all_layers(runs, quantity)
    if not layers:
        return None
    figure, panels = _panels(len(layers), columns=_COLUMNS, height=2.2, sharey=not from_start)
    for panel, layer in zip(panels, layers, strict=True):
        name = f"{quantity}/{layer}"
        starts = [run.series(name)[1][:1] for run in runs]
        from_zero = from_start and any(start.size and start[0] == 0 for start in starts)
        scale = relative if from_start and not from_zero else as_it_is
        _draw(panel, runs, colours, lambda run, name=name, scale=scale: scale(run.series(name)))
        panel.set_title(f"{layer} (absolute: it starts at 0)" if from_zero else layer)
        if log:
            _set_log(panel)
    figure.supylabel(label, fontsize=10)
    return _finished(figure, panels, runs, colours)


def dormant_figure(runs: Sequence[LoadedRun], colours: Palette) -> Figure | None:
    """The share of dormant units, one panel a layer, one line style a threshold; None when it was not recorded."""
    styles = {"0": ":", "0.025": "-", "0.1": "--"}
    present = {tau: style for tau, style in styles.items() if all_layers(runs, f"dormant_fraction_{tau}")}
    if not present:
        return None
    layers = list(dict.fromkeys(layer for tau in present for layer in all_layers(runs, f"dormant_fraction_{tau}")))
    figure, panels = _panels(len(layers), columns=_COLUMNS, height=2.2, sharey=True)
    for panel, layer in zip(panels, layers, strict=True):
        for tau, style in present.items():
            name = f"dormant_fraction_{tau}/{layer}"
            _draw(panel, runs, colours, lambda run, name=name: percent(run.series(name)), style=style, seeds=False)
        panel.set_title(layer)
    panels[0].set_ylim(bottom=0)  # of all, once all are drawn: they share the axis
    figure.supylabel("dormant units (%)", fontsize=10)
    thresholds = [Line2D([], [], color="#888", ls=style, label=f"τ = {tau}") for tau, style in present.items()]
    return _finished(figure, panels, runs, colours, thresholds)


def training_figure(runs: Sequence[LoadedRun], colours: Palette) -> Figure | None:
    """Loss, learning rate and exploration rate, as far as they were recorded; None when none was."""
    names = {"loss": "loss", "learning_rate": "learning rate, as written", "epsilon": "ε: random actions (share)"}
    present = {name: title for name, title in names.items() if _any(runs, name)}
    if not present:
        return None
    figure, panels = _panels(len(present), columns=_COLUMNS, height=2.6, sharey=False)
    for panel, (name, title) in zip(panels, present.items(), strict=True):
        _draw(panel, runs, colours, lambda run, name=name: run.series(name))
        panel.set_title(title)
        if name == "loss":
            _set_log(panel)
        else:
            panel.set_ylim(bottom=0)
    return _finished(figure, panels, runs, colours)


def overview_figure(runs: Sequence[LoadedRun], colours: Palette) -> Figure:
    """The idea in one row: returns, weight norms and effective learning rates of the layers that NaP projects."""
    figure, panels = _panels(3, columns=3, height=3.1, sharey=False)
    returns = "eval/return" if _any(runs, "eval/return") else "train/return"
    _draw(panels[0], runs, colours, lambda run: run.series(returns))
    panels[0].set_title("evaluation return" if returns.startswith("eval") else "training return")
    panels[0].set_ylabel("return per episode (raw game score)")
    layers = telling_layers(runs)
    _draw(panels[1], runs, colours, lambda run: over_layers(run, "weight_norm", layers, relative))
    panels[1].set_title("weight norm")
    panels[1].set_ylabel("norm / norm at the start")
    _draw(panels[2], runs, colours, lambda run: over_layers(run, "elr", layers))
    panels[2].set_title("effective learning rate")
    panels[2].set_ylabel("‖update‖ / ‖weights‖, per update")
    _set_log(panels[2])
    return _finished(figure, panels, runs, colours)


def _draw(
    panel: Axes,
    runs: Sequence[LoadedRun],
    colours: Palette,
    curve: Callable[[LoadedRun], Curve],
    style: str = "-",
    seeds: bool = True,
) -> None:
    """One method after another: a thin line a seed (unless `seeds` is False) and a thick one for their mean."""
    for method, colour in colours.items():
        curves = [shortened(curve(run)) for run in runs if run.label == method]
        curves = [(x, y) for x, y in curves if x.size]
        if not curves:
            continue
        if seeds and len(curves) > 1:
            for x, y in curves:
                panel.plot(x, y, color=colour, linewidth=0.7, alpha=0.45)
        x, y = mean_curve(curves)
        marker = "o" if x.size <= _FEW_POINTS else ""
        width = 1.9 if style == "-" else 1.2
        panel.plot(x, y, color=colour, linewidth=width, linestyle=style, marker=marker, markersize=3.5)


def _set_log(panel: Axes) -> None:
    """A logarithmic vertical axis, where there is anything to show on it."""
    if any(np.any(np.asarray(line.get_ydata()) > 0) for line in panel.lines):
        panel.set_yscale("log")


def _any(runs: Sequence[LoadedRun], name: str) -> bool:
    return any(run.series(name)[0].size for run in runs)


def _panels(count: int, *, columns: int, height: float, sharey: bool) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, row by row; `height` of a row in inches."""
    columns = 2 if count == 4 else min(columns, count)  # four panels make a square
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, height * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _finished(
    figure: Figure, panels: list[Axes], runs: Sequence[LoadedRun], colours: Palette, more: Sequence[Line2D] = ()
) -> Figure:
    """Adds what all figures share: grid, a readable horizontal axis with its unit, and the legend above."""
    divisor, unit = _scale(max(run.reached for run in runs))
    axis = runs[0].axis
    for panel in panels:
        panel.grid(True, color="#e4e4e4", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, colors="#333")
        panel.title.set_fontsize(10)
        panel.yaxis.label.set_fontsize(10)
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / divisor:g}"))
        if panel.get_yscale() == "log":
            low, high = panel.get_ylim()
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
        else:
            panel.yaxis.set_major_locator(MaxNLocator(5))
    figure.supxlabel(f"{axis_words(axis)}{unit}", fontsize=10)
    lines = [
        Line2D([], [], color=colour, linewidth=2.2, label=_MEANINGS.get(method, method))
        for method, colour in colours.items()
    ]
    figure.legend(handles=[*lines, *more], loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _scale(largest: float) -> tuple[float, str]:
    if largest >= 2e6:
        return 1e6, " (millions)"
    return (1e3, " (thousands)") if largest >= 5e3 else (1.0, "")
