"""Runs read back from their folders, for reports: finished ones, running ones, and ones that were cut short."""

import dataclasses
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from experiments.harness.errors import UserError
from experiments.harness.folder import CONFIG, DONE, METRICS
from experiments.harness.identity import flatten
from experiments.harness.records import STEP_NAMES

_METHOD_ORDER = ("none", "layernorm", "nap")  # from plain to projected; other methods follow by name
_ROWS_WITH_ALL_NAMES = 100


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """One run as it lies on disk."""

    folder: Path
    about: dict[str, Any]  # config.json
    records: pl.DataFrame  # a row a record, a column a name; null where a record has no such name
    done: bool
    variant: str = ""  # settings in which runs of one method differ, beside the seed: those must not be averaged

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self.about["config"]

    @property
    def method(self) -> str:
        """The method's name, "none" for an experiment without methods."""
        return str(self.config.get("method", "none"))

    @property
    def label(self) -> str:
        """What the run is called beside others: its method, with its variant where the method alone is not enough."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def game(self) -> str:
        """The game's name; the experiment's name where there is no game."""
        return str(self.config.get("game", self.about["experiment"]))

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.config.get("seed", 0))

    @property
    def axis(self) -> str:
        """The name of the records' axis: frames, agent_steps, updates or iteration, the first one that there is."""
        return next((name for name in STEP_NAMES if name in self.records.columns), STEP_NAMES[0])

    @property
    def reached(self) -> int:
        """How far the records go on the axis."""
        last = self.records[self.axis].max() if self.axis in self.records.columns else None
        return int(last) if isinstance(last, (int, float)) else 0

    def series(self, name: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The places on the axis and the values of all records that hold a number under `name`."""
        if name not in self.records.columns or self.axis not in self.records.columns:
            return np.zeros(0), np.zeros(0)
        rows = self.records.select(pl.col(self.axis, name).cast(pl.Float64)).drop_nulls()
        return rows[self.axis].to_numpy(), rows[name].to_numpy()

    def last(self, name: str) -> float | None:
        """The last number recorded under `name`, or None."""
        values = self.series(name)[1]
        return float(values[-1]) if len(values) else None

    def layers(self, quantity: str) -> list[str]:
        """The layers that `quantity/<layer>` was recorded for, in the order in which they were recorded."""
        prefix = quantity + "/"
        return [name.removeprefix(prefix) for name in self.records.columns if name.startswith(prefix)]


def load_runs(paths: Iterable[Path]) -> list[LoadedRun]:
    """All runs under some folders, sorted by experiment, game, method and seed.

    Args:
        paths: run folders, or folders that hold some, at any depth.

    Raises:
        UserError: a path holds no run, or no run has a record yet, or a config.json or a record is damaged.
    """
    paths = list(paths)
    if not paths:
        raise UserError("no run folder is given: python -m experiments report runs/...")
    folders: dict[Path, None] = {}
    for path in paths:
        found = sorted(_run_folders(path))
        if not found:
            raise UserError(f"there is no run in {path}: no folder with {CONFIG} and {METRICS}")
        folders.update(dict.fromkeys(found))
    runs = [run for run in map(_load, folders) if run.records.height]
    if not runs:
        raise UserError(f"no run in {', '.join(map(str, paths))} has a record yet")
    return sorted(_with_variants(runs), key=_place)


def _with_variants(runs: list[LoadedRun]) -> list[LoadedRun]:
    """The runs, with a variant where runs of one experiment, game and method differ in more than the seed."""
    settings = [dict(flatten(run.config)) for run in runs]
    names = dict.fromkeys(name for setting in settings for name in setting if name not in ("game", "method", "seed"))
    telling = []
    for name in names:
        values: dict[tuple[str, str, str], set[str]] = {}
        for run, setting in zip(runs, settings, strict=True):
            values.setdefault((run.about["experiment"], run.game, run.method), set()).add(str(setting.get(name)))
        if any(len(of_method) > 1 for of_method in values.values()):
            telling.append(name)
    variants = (", ".join(f"{name} {setting.get(name)}" for name in telling) for setting in settings)
    return [dataclasses.replace(run, variant=variant) for run, variant in zip(runs, variants, strict=True)]


def _place(run: LoadedRun) -> tuple[str, str, int, str, int]:
    order = _METHOD_ORDER.index(run.method) if run.method in _METHOD_ORDER else len(_METHOD_ORDER)
    return run.about["experiment"], run.game, order, run.label, run.seed


def common_folder(runs: list[LoadedRun]) -> Path:
    """The folder that holds all the runs; a single run's own."""
    return Path(os.path.commonpath([run.folder for run in runs]))


def _run_folders(path: Path) -> Iterator[Path]:
    for config in path.rglob(CONFIG):
        if (config.parent / METRICS).exists():
            yield config.parent


def _load(folder: Path) -> LoadedRun:
    try:
        about = json.loads((folder / CONFIG).read_text())
        data = (folder / METRICS).read_bytes()
        data = data[: data.rfind(b"\n") + 1]  # a last line without its end is being written, or was cut short
        records = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None) if data else pl.DataFrame()
        # Polars finds the columns in no fixed order; the run wrote them in the network's.
        first_rows = itertools.islice(io.BytesIO(data), _ROWS_WITH_ALL_NAMES)
        names = dict.fromkeys(name for row in first_rows for name in json.loads(row))
        records = records.select(*names, pl.exclude(*names)) if names else records
    except (ValueError, pl.exceptions.ComputeError) as error:
        raise UserError(f"the run in {folder} is damaged: {error}") from None
    return LoadedRun(folder, about, records, (folder / DONE).exists())
