"""The picture of refined schedules: a panel for each cell of the grid, a curve for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.harness.drawing import plain_style
from experiments.harness.problems import Method

COLOURS: dict[Method, str] = {"none": "#009E73", "layernorm": "#E69F00", "nap": "#0072B2"}
_DPI, _WIDTH, _HEIGHT = 110, 4.2, 3.2  # inches a panel


class Panel(NamedTuple):
    """One cell.

    Attributes:
        title: of the panel.
        curves: the refined multipliers of each seed, [seeds, updates], by method and by the weights that they are of.
    """

    title: str
    curves: Mapping[tuple[Method, str], Float[np.ndarray, "seeds updates"]]


@plain_style()
def draw(panels: Sequence[Panel], path: Path) -> None:
    """Means over seeds; of all weights solid, of the others dotted; linear decay grey, behind them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH * len(panels), _HEIGHT), layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels, strict=True):
        axes.plot([0, 1], [1, 0], color="#999", linewidth=1, linestyle="--", label="linear")
        first = next(iter(panel.curves))[1]
        for (method, part), multipliers in panel.curves.items():
            style = {"color": COLOURS[method], "linestyle": "-" if part == first else ":"}
            z = np.arange(multipliers.shape[1]) / multipliers.shape[1]
            axes.plot(z, multipliers.mean(axis=0), linewidth=1.6, label=f"{method}, {part}", **style)
        axes.set_title(panel.title, fontsize=9, loc="left")
        axes.set_xlabel("share of the run", fontsize=8)
        axes.set(xlim=(0, 1), ylim=(0, 1.08))
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7.5)
    axes.legend(fontsize=7, frameon=False)
    figure.supylabel("refined multiplier", fontsize=8)
    figure.savefig(path, dpi=_DPI)
