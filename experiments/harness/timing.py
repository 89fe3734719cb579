"""Timing two things against each other, and the table that says whether a goal is met.

The speed of a shared machine drifts by more than the differences that matter. So the sides of a comparison are timed in
turns, each repeat gives one ratio of neighbours in time, and the median of those is what counts.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.harness.cores import cores_here


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a ratio should be.

    Attributes:
      limit: the last value that is good.
      at_least: whether larger is better.
    """

    limit: float
    at_least: bool = False

    def met_by(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        """Such as "<= 1.03"."""
        return f"{'>=' if self.at_least else '<='} {self.limit:.2f}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      what: what was measured.
      unit: of `ours` and `reference`.
      ours: our figure in each repeat.
      reference: what it is held against, in the same repeats; empty where the figure stands alone.
      goal: what ours / reference should be; None where the row is for information.
    """

    what: str
    unit: str
    ours: tuple[float, ...]
    reference: tuple[float, ...] = ()
    goal: Goal | None = None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over the reference, a repeat each."""
        return tuple(ours / reference for ours, reference in zip(self.ours, self.reference, strict=True))

    @property
    def ratio(self) -> float | None:
        """The median of the repeats' ratios (not the ratio of the medians: a repeat's two sides share its noise)."""
        return statistics.median(self.ratios) if self.reference else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        return None if self.goal is None or self.ratio is None else self.goal.met_by(self.ratio)

    def as_json(self) -> dict[str, Any]:
        """All of it, and what follows from it."""
        goal = None if self.goal is None else str(self.goal)
        return {**dataclasses.asdict(self), "goal": goal, "ratio": self.ratio, "met": self.met}


def interleaved(
    sides: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Times the sides in turns.

    Args:
      sides: what to time, by name; the arrays it returns are waited for.
      repeats: rounds over all sides; every other one runs backwards, so that no side always goes first.
      calls: calls in a row within a round, of which the median counts.
      clock: seconds.

    Returns:
      For each side, the seconds of a call in each round. One call of each beforehand, which may compile, is not timed.
    """

    def seconds(call: Callable[[], Any]) -> float:
        started = clock()
        jax.block_until_ready(call())
        return clock() - started

    for call in sides.values():
        seconds(call)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            times[name].append(statistics.median(seconds(sides[name]) for _ in range(calls)))
    return {name: tuple(values) for name, values in times.items()}


def machine_facts() -> dict[str, str]:
    """What every figure depends on, and the load, which tells whether other work spoils them."""
    return {
        "cpu": _cpu_model(),
        "cores": str(len(cores_here())),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "load average": f"{os.getloadavg()[0]:.2f} before we began",
    }


class MatrixProduct:
    """JAX's product of two square float32 matrices: the most that a machine can be asked for.

    Attributes:
        flops: of one.
    """

    def __init__(self, size: int = 2048) -> None:
        self._multiply, self._matrix, self.flops = jax.jit(jnp.matmul), jnp.ones((size, size)), 2 * size**3

    def __call__(self) -> jax.Array:
        """One of them."""
        return self._multiply(self._matrix, self._matrix)


def matmul_peak(repeats: int) -> float:
    """The best FLOP/s that JAX reaches in multiplying two square float32 matrices."""
    product = MatrixProduct()
    return product.flops / min(interleaved({"multiply": product}, repeats=3 * repeats)["multiply"])


def left_out(benchmark: str, why: str) -> None:
    """Says on standard error that a benchmark's rows are left out, and what would bring them."""
    print(f"[{benchmark}] left out: {why}", file=sys.stderr)


def scaled(values: Sequence[float], factor: float) -> tuple[float, ...]:
    """The values in another unit."""
    return tuple(factor * value for value in values)


def rates(seconds: Sequence[float], amount: float) -> tuple[float, ...]:
    """An amount a second, where each repeat did that amount in its seconds."""
    return tuple(amount / value for value in seconds)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text. Figures are medians; `from - to` are the least and the largest ratio of a repeat."""
    header = ("what", "ours", "reference", "unit", "ratio", "from - to", "goal", "met")
    lines = [header, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(_aligned(line, widths) for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    spread = f"{min(row.ratios):.3f} - {max(row.ratios):.3f}" if row.reference else ""
    return (
        row.what,
        _figure(statistics.median(row.ours)),
        _figure(statistics.median(row.reference)) if row.reference else "",
        row.unit,
        "" if row.ratio is None else f"{row.ratio:.3f}",
        spread,
        "" if row.goal is None else str(row.goal),
        {None: "", True: "yes", False: "NO"}[row.met],
    )


def _figure(value: float) -> str:
    """At least three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Text to the left, figures to the right."""
    left = (0, 3, 6, 7)
    aligned = (
        f"{cell:<{width}}" if column in left else f"{cell:>{width}}"
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(aligned).rstrip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
