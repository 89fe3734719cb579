"""What a figure shows, as data; drawn by one function and written down by another, so that the two agree."""

import csv
import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from experiments.harness.drawing import plain_style
from experiments.harness.report.looks import Palette, meaning

_WIDTH = 10.8  # inches; one width for all figures, so that one font size is one size on the page
_FEW_POINTS = 15  # so few points are shown as such,
_FEW_LINES = 60  # where there are so few lines
_MANY_METHODS = 6  # more are drawn with finer lines
_MOST_NAMES = 30  # of stretches; there is no room for more
_LETTER = 0.075  # inches that a letter of such a name takes
_FRESH_WORDS = "fresh agents"
FRESH = "fresh"  # how the statistic begins of a line that is drawn dotted, for comparison
_TITLE_WIDTH = {1: 120, 2: 62, 3: 40, 4: 28}  # characters, by the panels in a row
_STANDS_STILL = 1e-3  # a curve that moves by less than this, relatively, is level
_DPI = 160
_NOTE_WIDTH = 150  # characters in a line of a note
_NOTE_LINE = 0.16  # inches

Places = Float[np.ndarray, " points"]


class Line(NamedTuple):
    """A curve: what its points are of, and a shaded range around it where there is one."""

    method: str
    statistic: str  # "mean", "median" or the like; or the single seed that it is, "seed 3"; or "fresh, ...", see FRESH
    x: Places
    y: Places
    low: Places | None = None
    high: Places | None = None


class Stretch(NamedTuple):
    """A part of the horizontal axis, and its name."""

    start: float
    end: float
    name: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """A pair of axes; one without a line says so.

    Attributes:
        problem: the game or the stream.
        title: above the panel.
        lines: what is drawn, from back to front.
        label: of the vertical axis; "" where all panels share the figure's.
        log: a logarithmic vertical axis, if there is a positive number.
        from_zero: the vertical axis begins at 0.
        level: a height with a fine horizontal line.
    """

    problem: str
    title: str
    lines: tuple[Line, ...]
    label: str = ""
    log: bool = False
    from_zero: bool = False
    level: float | None = None


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
        sharey: whether all panels have one vertical axis, or those of a row.
        marks: places on the horizontal axis with a fine vertical line.
        stretches: what the horizontal axis consists of, named above the first panel.
        log_axis: the horizontal axis is logarithmic; the places where there are points are marked on it.
        note: words below all of it, in small letters.
    """

    name: str
    panels: tuple[Panel, ...]
    axis: str
    label: str = ""
    columns: int = 3
    height: float = 2.6
    sharey: bool | Literal["row"] = False
    marks: tuple[float, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    log_axis: bool = False
    note: str = ""

    @property
    def methods(self) -> list[str]:
        """The methods that have a line in it."""
        return list(dict.fromkeys(line.method for panel in self.panels for line in panel.lines))


@plain_style()
def draw(plot: Plot, looks: Palette) -> Figure:
    """The figure: one look a method, thin lines for single seeds, a legend above."""
    figure, panels = _grid(plot)
    shown = set(plot.methods)
    methods = [method for method in looks if method in shown]
    for axes, panel in zip(panels, plot.panels, strict=True):
        for place in plot.marks:
            axes.axvline(place, color="#cfcfcf", linewidth=0.5, zorder=0)
        if panel.level is not None:
            axes.axhline(panel.level, color="#888", linewidth=0.9, zorder=0)
        if not panel.lines:
            axes.text(0.5, 0.5, "nothing yet", color="#777", ha="center", va="center", transform=axes.transAxes)
        for line in panel.lines:
            # The first methods of the legend, which the others are compared with, lie on top.
            depth = 3 - methods.index(line.method) / len(methods)
            few = line.x.size == 1 or (line.x.size <= _FEW_POINTS and len(panel.lines) <= _FEW_LINES)
            _draw_line(axes, line, looks, depth, fine=len(methods) > _MANY_METHODS, few=few)
        columns = min(_shape(plot)[1], max(_TITLE_WIDTH))
        axes.set_title("\n".join(textwrap.wrap(panel.title, _TITLE_WIDTH[columns])), fontsize=10)
        axes.set_ylabel(panel.label, fontsize=10)
        if panel.log and any(np.any(line.y > 0) for line in panel.lines):
            axes.set_yscale("log")
    _finish(figure, panels, plot)
    for axes, panel in zip(panels, plot.panels, strict=True):
        if panel.from_zero:  # once all are drawn: they may share the axis, and a limit stops its growth
            axes.set_ylim(bottom=0)
    if plot.stretches:
        _name(panels[0], plot.stretches)
    words = [meaning(method, len(methods)) for method in methods]
    handles = []
    for method, word in zip(methods, words, strict=True):
        colour, style, marker = looks[method]
        handles.append(
            Line2D([], [], color=colour, linestyle=style, marker=marker, markersize=4, linewidth=2, label=word)
        )
    if any(line.statistic.startswith(FRESH) for panel in plot.panels for line in panel.lines):
        words.append(_FRESH_WORDS)
        handles.append(Line2D([], [], color="#555", linestyle=":", linewidth=1.5, label=words[-1]))
    columns = max(1, min(6, 115 // (max(map(len, words), default=0) + 7)))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9, handlelength=2.6
    )
    return figure


@plain_style()
def save(plot: Plot, looks: Palette, file: Path | BinaryIO, kind: Literal["png", "svg"]) -> None:
    """Writes the figure as PNG or SVG."""
    options: dict[str, Any] = {"dpi": _DPI} if kind == "png" else {"metadata": {"Date": None}}
    draw(plot, looks).savefig(file, format=kind, **options)


@plain_style()
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


def _draw_line(axes: Axes, line: Line, looks: Palette, depth: float, fine: bool, few: bool) -> None:
    look = looks[line.method]
    if line.low is not None and line.high is not None:
        alpha = 0.1 if fine else 0.16
        axes.fill_between(line.x, line.low, line.high, color=look.colour, alpha=alpha, linewidth=0, zorder=depth - 1)
    if line.statistic.startswith("seed "):
        axes.plot(line.x, line.y, color=look.colour, linewidth=0.7, alpha=0.45, zorder=depth - 1)
        return
    if line.statistic.startswith(FRESH):
        axes.plot(line.x, line.y, color=look.colour, linestyle=":", linewidth=1.3, zorder=depth - 1)
        return
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


def _name(axes: Axes, stretches: Sequence[Stretch]) -> None:
    """The stretches' names above the axes, aslant where they are too long."""
    if len(stretches) > _MOST_NAMES:
        return
    width = 0.9 * _WIDTH / (stretches[-1].end - stretches[0].start)
    aslant = any(_LETTER * len(name) > width * (end - start) for start, end, name in stretches)
    above = axes.secondary_xaxis("top")
    above.set_xticks([(start + end) / 2 for start, end, _ in stretches], [name for *_, name in stretches])
    above.tick_params(length=0, pad=1, labelsize=7.5, colors="#333")
    above.spines["top"].set_visible(False)
    if aslant:
        for label in above.get_xticklabels():
            label.set(rotation=25, ha="left", rotation_mode="anchor")


def _shape(plot: Plot) -> tuple[int, int]:
    count = len(plot.panels)
    columns = min(plot.columns, 2 if count == 4 else count)  # four panels make a square
    return -(-count // columns), columns


def _grid(plot: Plot) -> tuple[Figure, list[Axes]]:
    rows, columns = _shape(plot)
    height = plot.height * rows + 0.8 + _NOTE_LINE * len(_note_lines(plot))
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=plot.sharey, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    for unused in panels[len(plot.panels) :]:
        unused.set_axis_off()
    return figure, panels[: len(plot.panels)]


def _finish(figure: Figure, panels: Sequence[Axes], plot: Plot) -> None:
    """What all figures share: grid, readable axes with their units."""
    ends = [line.x.max() for panel in plot.panels for line in panel.lines] + [end for _, end, _ in plot.stretches]
    divisor, unit = _scale(max(ends, default=0.0))
    for axes in panels:
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors="#333")
        if plot.log_axis:
            axes.set_xscale("log")
            places = sorted({x for panel in plot.panels for line in panel.lines for x in line.x.tolist()})
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=divisor == 1))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / divisor:g}"))
        if plot.stretches:
            first, last = plot.stretches[0].start, plot.stretches[-1].end
            axes.set_xlim(first, last + 0.01 * (last - first))
        if axes.get_yscale() == "log":
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=_multiples(high / low)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.ticklabel_format(axis="y", useOffset=False)
            low, high = axes.get_ylim()
            if high - low < _STANDS_STILL * abs(high):  # rounding errors, which need not be looked at
                axes.set_ylim(0.95 * low, 1.05 * high)
    note = _note_lines(plot)
    figure.supxlabel(f"{plot.axis}{unit}" + "\n" * len(note), fontsize=10)  # empty lines make room for the note
    figure.text(0.5, 0.05 / figure.get_figheight(), "\n".join(note), color="#444", fontsize=8, ha="center", va="bottom")
    if plot.label:
        figure.supylabel(plot.label, fontsize=10)


def _note_lines(plot: Plot) -> list[str]:
    return [line for part in plot.note.splitlines() for line in textwrap.wrap(part, _NOTE_WIDTH)]


def _multiples(span: float) -> Sequence[float]:
    """Which multiples of the powers of ten are marked on a logarithmic axis that spans so much."""
    if span < 3:
        return range(1, 10)
    return (1, 2, 3, 5, 7) if span < 10 else (1, 2, 5) if span < 500 else (1,)


def _scale(largest: float) -> tuple[float, str]:
    if largest >= 2e6:
        return 1e6, " (millions)"
    return (1e3, " (thousands)") if largest >= 5e3 else (1.0, "")
