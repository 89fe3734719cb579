"""Measure what the parts cost, against what they could cost: one table with the goals.

Everything is the product's own code at the default configurations of its experiments, on whatever device JAX has. The
sides of a ratio run in turns in one process; the ratio is the median of the repeats' ratios. Nothing else should run
meanwhile. The packages of others that are compared with are optional; a line says what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from experiments import harness
from experiments.bench import atari, checkpoint, games, in_sb3, plasticity, pqn, training
from experiments.harness.bounds import at_least
from experiments.harness.timing import Row, machine_facts, matmul_peak, table

Name = Literal[
    "flops",
    "projection",
    "normalization",
    "rainbow",
    "products",
    "logging",
    "loop",
    "replay",
    "checkpoint",
    "start-up",
    "games",
    "pqn",
    "plasticity",
    "training",
    "stable-baselines3",
]

BENCHMARKS: Mapping[Name, Callable[[int], Iterator[Row]]] = MappingProxyType(
    {
        "flops": atari.flops,
        "projection": atari.projection,
        "normalization": atari.normalization,
        "rainbow": atari.rainbow,
        "products": atari.products,
        "logging": atari.logging,
        "loop": atari.loop,
        "replay": atari.replay,
        "checkpoint": checkpoint.rows,
        "start-up": atari.start_up,
        "games": games.rows,
        "pqn": pqn.rows,
        "plasticity": plasticity.rows,
        "training": training.rows,
        "stable-baselines3": in_sb3.rows,
    }
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and how often."""

    repeats: Annotated[int, at_least(1)] = 7
    """Repeats of each measurement; at least 5 for figures to be quoted."""
    only: tuple[Name, ...] = ()
    """Measure these only."""
    out: Path = Path("runs")
    """The table and all figures go to bench/ in this folder."""


def main(argv: list[str]) -> int:
    """Measure, print the machine and the table, and write both down; returns the exit code."""
    return harness.exit_code_of(lambda: run(harness.parse_options(Options, argv, name="bench", description=__doc__)))


def run(options: Options) -> None:
    """All the measurements that are asked for."""
    # Two benchmarks start processes of their own, which could get nothing of a GPU that this one has taken whole.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    harness.enable_compilation_cache()
    names = options.only or tuple(BENCHMARKS)
    peak = matmul_peak(options.repeats)
    facts = {**machine_facts(), "float32 matmul peak": f"{peak / 1e9:.0f} GFLOP/s"}
    described = "\n".join(f"{name}: {value}" for name, value in facts.items())
    print(described, end="\n\n", flush=True)
    rows: list[Row] = []
    for name in names:
        for row in BENCHMARKS[name](options.repeats):
            ratio = "" if row.ratio is None else f", ratio {row.ratio:.3f}"
            print(f"[{name}] {row.what}: {statistics.median(row.ours):.4g} {row.unit}{ratio}", file=sys.stderr)
            rows.append(row)
    print(table(rows))
    folder = options.out / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.txt").write_text(f"{described}\n\n{table(rows)}\n", encoding="utf-8")
    figures = {"machine": facts, "rows": [row.as_json() for row in rows]}
    (folder / "bench.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
