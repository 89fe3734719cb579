"""What a figure shows, as data; drawn by one function and written down by another, so that the two agree."""

import csv
import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.harness.report.looks import Palette, meaning

_WIDTH = 10.8  # inches; one width for all figures, so that one font size is one size on the page
_FEW_POINTS = 15  # so few points are shown as such
_MANY_METHODS = 6  # more are drawn with finer lines
_TITLE_WIDTH = {1: 120, 2: 62, 3: 40, 4: 28}  # characters, by the panels in a row
_DPI = 160

Places = Float[np.ndarray, " points"]


class Line(NamedTuple):
    """A curve: what its points are of, and a shaded range around it where there is one."""

    method: str
    statistic: str  # "mean", "median" or the like; or the single seed that it is: "seed 3"
    x: Places
    y: Places
    low: Places | None = None
    high: Places | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """A pair of axes.

    Attributes:
        problem: the game or the stream.
        title: above the panel.
        lines: what is drawn, from back to front.
        label: of the vertical axis; "" where all panels share the figure's.
        log: a logarithmic vertical axis, if there is a positive number.
        from_zero: the vertical axis begins at 0.
    """

    problem: str
    title: str
    lines: tuple[Line, ...]
    label: str = ""
    log: bool = False
    from_zero: bool = False


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: for its files.
        panels: row by row.
        axis: the horizontal axis in words.
        label: the vertical axis of all panels.
        columns: panels in a row, at most.
        height: of a row, in inches.
        sharey: whether all panels have one vertical axis.
        marks: places on the horizontal axis with a fine vertical line.
    """

    name: str
    panels: tuple[Panel, ...]
    axis: str
    label: str = ""
    columns: int = 3
    height: float = 2.6
    sharey: bool = False
    marks: tuple[float, ...] = ()

    @property
    def methods(self) -> list[str]:
        """The methods that have a line in it."""
        return list(dict.fromkeys(line.method for panel in self.panels for line in panel.lines))


def draw(plot: Plot, looks: Palette) -> Figure:
    """The figure: one look a method, thin lines for single seeds, a legend above."""
    figure, panels = _grid(plot)
    shown = set(plot.methods)
    methods = [method for method in looks if method in shown]
    for axes, panel in zip(panels, plot.panels, strict=True):
        for place in plot.marks:
            axes.axvline(place, color="#cfcfcf", linewidth=0.5, zorder=0)
        for line in panel.lines:
            # The first methods of the legend, which the others are compared with, lie on top.
            depth = 3 - methods.index(line.method) / len(methods)
            _draw_line(axes, line, looks, depth, fine=len(methods) > _MANY_METHODS)
        columns = min(_shape(plot)[1], max(_TITLE_WIDTH))
        axes.set_title("\n".join(textwrap.wrap(panel.title, _TITLE_WIDTH[columns])), fontsize=10)
        axes.set_ylabel(panel.label, fontsize=10)
        if panel.log and any(np.any(line.y > 0) for line in panel.lines):
            axes.set_yscale("log")
    _finish(figure, panels, plot)
    for axes, panel in zip(panels, plot.panels, strict=True):
        if panel.from_zero:  # once all are drawn: they may share the axis, and a limit stops its growth
            axes.set_ylim(bottom=0)
    words = [meaning(method, len(methods)) for method in methods]
    handles = []
    for method, word in zip(methods, words, strict=True):
        colour, style, marker = looks[method]
        handles.append(
            Line2D([], [], color=colour, linestyle=style, marker=marker, markersize=4, linewidth=2, label=word)
        )
    columns = max(1, min(6, 115 // (max(map(len, words), default=0) + 7)))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9, handlelength=2.6
    )
    return figure


def write(plot: Plot, looks: Palette, stem: Path) -> list[Path]:
    """Writes the figure as PNG and PDF and its numbers as CSV; `stem` is their path without the ending."""
    figure = draw(plot, looks)
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf", "csv")]
    figure.savefig(paths[0], dpi=_DPI)
    figure.set_layout_engine("none")  # it is laid out; once is enough
    figure.savefig(paths[1], metadata={"CreationDate": None})
    with open(paths[2], "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("problem", "panel", "method", "statistic", "x", "y"))
        writer.writerows(numbers(plot))
    return paths


def numbers(plot: Plot) -> Iterator[tuple[str, str, str, str, float, float]]:
    """All drawn numbers: (problem, panel, method, statistic, x, y); a range's ends have statistics of their own."""
    for panel in plot.panels:
        for line in panel.lines:
            curves = {line.statistic: line.y, "low": line.low, "high": line.high}
            for statistic, values in curves.items():
                if values is not None:
                    for x, y in zip(line.x.tolist(), values.tolist(), strict=True):
                        yield panel.problem, panel.title, line.method, statistic, x, y


def _draw_line(axes: Axes, line: Line, looks: Palette, depth: float, fine: bool) -> None:
    look = looks[line.method]
    if line.low is not None and line.high is not None:
        alpha = 0.1 if fine else 0.16
        axes.fill_between(line.x, line.low, line.high, color=look.colour, alpha=alpha, linewidth=0, zorder=depth - 1)
    if line.statistic.startswith("seed "):
        axes.plot(line.x, line.y, color=look.colour, linewidth=0.7, alpha=0.45, zorder=depth - 1)
        return
    few = line.x.size <= _FEW_POINTS
    axes.plot(
        line.x,
        line.y,
        color=look.colour,
        linestyle=look.style,
        linewidth=1.5 if fine else 1.9,
        marker=look.marker or ("o" if few else ""),
        markersize=3.5,
        markevery=1 if few else max(1, line.x.size // 10),
        zorder=depth,
    )


def _shape(plot: Plot) -> tuple[int, int]:
    count = len(plot.panels)
    columns = 2 if count == 4 else min(plot.columns, count)  # four panels make a square
    return -(-count // columns), columns


def _grid(plot: Plot) -> tuple[Figure, list[Axes]]:
    rows, columns = _shape(plot)
    figure = Figure(figsize=(_WIDTH, plot.height * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=plot.sharey, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    for unused in panels[len(plot.panels) :]:
        unused.set_axis_off()
    return figure, panels[: len(plot.panels)]


def _finish(figure: Figure, panels: Sequence[Axes], plot: Plot) -> None:
    """What all figures share: grid, readable axes with their units."""
    divisor, unit = _scale(max((line.x.max() for panel in plot.panels for line in panel.lines), default=0.0))
    for axes in panels:
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors="#333")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=divisor == 1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / divisor:g}"))
        if axes.get_yscale() == "log":
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=_multiples(high / low)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
    figure.supxlabel(f"{plot.axis}{unit}", fontsize=10)
    if plot.label:
        figure.supylabel(plot.label, fontsize=10)


def _multiples(span: float) -> Sequence[float]:
    """Which multiples of the powers of ten are marked on a logarithmic axis that spans so much."""
    if span < 3:
        return range(1, 10)
    return (1, 2, 3, 5, 7) if span < 10 else (1, 2, 5) if span < 500 else (1,)


def _scale(largest: float) -> tuple[float, str]:
    if largest >= 2e6:
        return 1e6, " (millions)"
    return (1e3, " (thousands)") if largest >= 5e3 else (1.0, "")
