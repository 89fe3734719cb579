"""Final scores of runs as a table: a row for each setting, the mean over seeds with its interval."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from experiments.harness.errors import UserError, unknown
from experiments.harness.finals import Score, over_seeds
from experiments.harness.identity import flatten
from experiments.harness.read import LoadedRun, method_order, option
from experiments.harness.statistics import Interval, caution
from nap.tables import format_table

WIDTH = 80
_NARROWEST = 12
"""Characters that the cells of settings are cut to at most, where a table would be wider than a terminal."""


class Row(NamedTuple):
    """The runs of one setting.

    Attributes:
        problem: the game, stream or data.
        settings: what they have in common, in the order of the table's columns.
        scores: each with its interval, and how many runs have it.
        runs: how many runs there are, of a seed each.
        mixed: the names of settings in which they differ, beside the seed.
    """

    problem: str
    settings: tuple[str, ...]
    scores: Mapping[Score, tuple[Interval, int]]
    runs: int
    mixed: tuple[str, ...]


class Table(NamedTuple):
    """The columns' names and the rows, by problem and then by setting."""

    by: tuple[str, ...]
    rows: tuple[Row, ...]


def make_table(runs: Sequence[LoadedRun], by: Sequence[str] = ()) -> Table:
    """Groups runs by some of their settings.

    Args:
        runs: from `load_runs`.
        by: names of settings, as they are typed or with their place in the configuration; none: the method, and all in
            which runs of one method differ.

    Raises:
        UserError: no run has such a setting.
    """
    settings = [_settings(run) for run in runs]
    telling = dict.fromkeys(["method", *(name for run in runs for name, _ in run.differences)])
    names = list(dict.fromkeys(_resolve(name, settings) for name in by)) or list(telling)
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for i, run in enumerate(runs):
        key = f"{run.experiment}: {run.problem}", tuple(settings[i].get(name, "–") for name in names)
        groups.setdefault(key, []).append(i)
    rows = []
    for (problem, values), members in groups.items():
        mixed = [name for name in telling if len({settings[i].get(name) for i in members}) > 1 and name not in names]
        rows.append(Row(problem, values, over_seeds([runs[i] for i in members]), len(members), tuple(mixed)))
    rows.sort(key=lambda row: (row.problem, *map(_order, names, row.settings)))
    return Table(tuple(map(option, names)), tuple(rows))


def as_frame(table: Table) -> pl.DataFrame:
    """The table with every number: for each score its mean, the interval's ends and how many seeds have it."""
    scores = _scores(table.rows)
    rows = []
    for row in table.rows:
        cells: dict[str, Any] = {"problem": row.problem, **dict(zip(table.by, row.settings, strict=True))}
        for score in scores:
            interval, seeds = row.scores.get(score, ((None, None, None), 0))
            cells |= dict(zip((score.name, f"{score.name}/low", f"{score.name}/high"), interval, strict=True))
            cells[f"{score.name}/seeds"] = seeds
        rows.append(cells)
    return pl.DataFrame(rows, infer_schema_length=None)


def in_terminal(table: Table) -> str:
    """The table as text, no wider than 80 columns: what has no room is left to `as_frame`."""
    parts, left_out = [], False
    for problem in dict.fromkeys(row.problem for row in table.rows):
        rows = [row for row in table.rows if row.problem == problem]
        scores = _scores(rows)
        text = _formatted(table.by, rows, scores)
        while len(scores) > 1 and _width(text) > WIDTH:
            scores, left_out = scores[:-1], True
            text = _formatted(table.by, rows, scores)
        if _width(text) > WIDTH:
            text = _formatted(table.by, rows, scores, _width(text) - WIDTH)
        parts.append(f"{problem}\n{text}")
    notes = ["Means over seeds with 95 % bootstrap intervals.", caution(min(row.runs for row in table.rows))]
    if mixed := dict.fromkeys(option(name).replace("_", "-") for row in table.rows for name in row.mixed):
        notes.append(f"Rows hold several values of {', '.join(mixed)}; {' '.join(f'--by {name}' for name in mixed)}")
        notes[-1] += " tells them apart."
    notes += ["--csv has more columns."] if left_out else []
    return "\n\n".join([*parts, textwrap.fill(" ".join(filter(None, notes)), WIDTH)])


def _formatted(by: Sequence[str], rows: Sequence[Row], scores: Sequence[Score], too_wide: int = 0) -> str:
    cells = [list(row.settings) for row in rows]
    for column in range(len(by)):
        longest = max(len(of_row[column]) for of_row in cells)
        width = max(_NARROWEST, longest - too_wide)
        if width < longest:
            too_wide -= longest - width
            for of_row in cells:
                of_row[column] = of_row[column] if len(of_row[column]) <= width else f"{of_row[column][: width - 1]}…"
    for row, of_row in zip(rows, cells, strict=True):
        of_row += [score.with_interval(row.scores[score][0]) if score in row.scores else "–" for score in scores]
        scored = min((seeds for _, seeds in row.scores.values()), default=0)
        of_row.append(str(row.runs) if scored == row.runs else f"{scored} of {row.runs}")
    header = [*(name.replace("_", " ") for name in by), *(score.words for score in scores)]
    header.append("runs" if any(row.mixed for row in rows) else "seeds")
    return format_table(header or ["–"], cells, right=range(len(by), len(header)))


def _settings(run: LoadedRun) -> dict[str, str]:
    """By their places in the configuration, as text."""
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in flatten(run.config)} | {
        "method": run.method
    }


def _resolve(name: str, settings: Sequence[Mapping[str, str]]) -> str:
    """A setting's place in the configuration, from its name as it is typed. Raises UserError."""
    there = dict.fromkeys(place for of_run in settings for place in of_run)
    wanted = name.removeprefix("--").replace("-", "_")
    if wanted in there:
        return wanted
    found = [place for place in there if option(place) == wanted]
    if not found:
        raise unknown("a setting of these runs", name, dict.fromkeys(map(option, there)), option="--by")
    if len(found) > 1:
        raise UserError(f"--by {name}: it may be {' or '.join(found)}")
    return found[0]


def _order(name: str, value: str) -> tuple[float, str, int, str]:
    """Sorts numbers by their size, methods from plain to projected, and texts by their letters."""
    if name == "method":
        return (0.0, *method_order(value))
    try:
        return float(value), "", 0, value
    except ValueError:
        return float("inf"), "", 0, value


def _scores(rows: Sequence[Row]) -> list[Score]:
    return list(dict.fromkeys(score for row in rows for score in row.scores))


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))
