"""Runs read back from their folders, for reports: finished ones, running ones, and ones that were cut short."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from experiments.harness import storage
from experiments.harness.errors import Unreadable, UserError
from experiments.harness.folder import CONFIG, DIVERGED, DONE, METRICS
from experiments.harness.folder import records as records_of
from experiments.harness.identity import flatten
from experiments.harness.parse import is_number, parse_about, parse_diverged, parse_records, words_for, words_of
from experiments.harness.records import STEP_NAMES

BASES = ("none", "layernorm", "rmsnorm", "nap")  # from plain to projected; a method is one of them, or is joined with +
# What makes a stream of tasks another problem, and what a sequence of games.
_PROBLEM = {
    "stream": ("data", "network", "channels", "hidden", "reset_head", "protocol"),
    "tasks": ("frames", "passes"),
}
_SCHEDULE = "optimizer.schedule"
_NAMES = ("method", "game", "stream", "agent")  # settings that are texts in every experiment that has them
_REQUIRED: Any = object()


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """One seed of a run as it lies on disk; the folders of some experiments hold many seeds."""

    folder: Path
    about: dict[str, Any]  # config.json
    seed: int
    records: pl.DataFrame  # a row a record, a column a name; null where a record has no such name
    done: bool
    diverged_at: int | None = None  # the update by which all seeds of its folder had diverged, and the run ended
    problem: str = ""  # the game; or the stream or sequence of tasks, with the settings in which runs of it differ
    differences: tuple[tuple[str, str], ...] = ()  # settings in which runs of one method differ, beside the seed

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self.about["config"]

    def setting(self, name: str, kind: type, otherwise: Any = _REQUIRED) -> Any:
        """A setting of the configuration, of the type that it must have.

        Args:
            name: its place, such as "optimizer.lr".
            kind: `float` takes whole numbers, too, and `int` and `float` only what a float can hold.
            otherwise: what it is where it is absent or null.

        Raises:
            UserError: it is of another type; or it is absent, and must not be.
        """
        value: Any = self.config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None and otherwise is not _REQUIRED:
            return otherwise
        if kind in (int, float):
            fits = is_number(value) and (kind is float or isinstance(value, int))
        else:
            fits = isinstance(value, kind)
        if not fits:
            what = f"config.json: {name} is {words_of(value)}, and must be {words_for(kind)}"
            raise UserError(f"the run in {self.folder} is damaged: {what}")
        return float(value) if kind is float and value is not None else value

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return self.about["experiment"]

    @property
    def method(self) -> str:
        """The method's name, "none" for an experiment without methods."""
        return self.setting("method", str, "none")

    @property
    def label(self) -> str:
        """What the run is called beside others: its method, and what must not be averaged where that is not enough."""
        return self.label_without()

    def label_without(self, *settings: str) -> str:
        """The label, some settings left out of it."""
        variant = ", ".join(f"{option(name)} {value}" for name, value in self.differences if name not in settings)
        return f"{self.method} ({variant})" if variant else self.method

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
        """The places on the axis and the values of all records that hold a number under `name`.

        Raises:
            UserError: one holds a text there, or on the axis.
        """
        if name not in self.records.columns or self.axis not in self.records.columns:
            return np.zeros(0), np.zeros(0)
        try:
            rows = self.records.select(pl.col(self.axis, name).cast(pl.Float64)).drop_nulls()
        except pl.exceptions.InvalidOperationError:
            which = f"a record of {self.axis} or {name}"
            raise UserError(f"the run in {self.folder} is damaged: {which} is no number") from None
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
    """All runs under some folders, one for each seed, sorted by experiment, problem, method and seed.

    Args:
        paths: run folders, or folders that hold some, at any depth.

    A folder counts once, however it is named. Of copies of a run, that which got furthest counts; other programs'
    folders are passed over.

    Raises:
        UserError: a path holds no run, or no run has a record yet, or a config.json or a record is damaged.
    """
    paths = list(paths)
    if not paths:
        raise UserError("no run folder is given: python -m experiments report runs/...")
    folders: dict[Path, Path] = {}
    for path in paths:
        found = sorted(_run_folders(path))
        if not found:
            raise UserError(f"there is no run in {path}: no folder with {CONFIG} and {METRICS}")
        folders = {folder.resolve(): folder for folder in found} | folders
    runs = _without_copies(run for folder in folders.values() for run in _load(folder))
    if not runs:
        raise UserError(f"no run in {', '.join(map(str, paths))} has a record yet")
    return sorted(_with_differences(_with_problems(runs)), key=_place)


def method_order(label: str) -> tuple[str, int, str]:
    """Sorts methods: the bases from plain to projected, then what they are joined with, each beside its joined form."""
    base, rest = split_method(label)
    return rest, BASES.index(base), label


def split_method(label: str) -> tuple[str, str]:
    """A label's base and all the rest of it: ("nap", "redo") of "nap+redo"; without a base it is "none"."""
    method, _, variant = label.partition(" ")
    parts = method.split("+")
    base = next((part for part in parts if part in BASES), BASES[0])
    return base, " ".join(filter(None, ["+".join(part for part in parts if part not in BASES), variant]))


def option(name: str) -> str:
    """A setting's name as it is typed: the last part of its place in the configuration."""
    return name.rpartition(".")[2]


def common_folder(runs: list[LoadedRun]) -> Path:
    """The folder that holds all the runs; a single run's own."""
    folders = [run.folder for run in runs]
    mixed = len({folder.is_absolute() for folder in folders}) > 1
    return Path(os.path.commonpath([folder.absolute() for folder in folders] if mixed else folders))


def _without_copies(runs: Iterable[LoadedRun]) -> list[LoadedRun]:
    """Of runs with the same configuration and seed the one that got furthest."""
    kept: dict[tuple[str, str, int], LoadedRun] = {}
    for run in runs:
        key = run.experiment, json.dumps(run.config, sort_keys=True), run.seed
        if key not in kept or kept[key].reached < run.reached:
            kept[key] = run
    return list(kept.values())


def _with_problems(runs: list[LoadedRun]) -> list[LoadedRun]:
    """The runs with their problems: the game; or the tasks, and whatever else makes the tasks of two runs differ."""
    values: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        for name, value in _of_problem(run):
            values.setdefault(str(run.config[_kind(run.config)]), {}).setdefault(name, set()).add(value)

    def problem(run: LoadedRun) -> str:
        if not _kind(run.config):
            return run.setting("game", str, run.experiment)
        tasks = str(run.config[_kind(run.config)])
        telling = [f"{option(name)} {value}" for name, value in _of_problem(run) if len(values[tasks][name]) > 1]
        return f"{tasks} ({', '.join(telling)})" if telling else tasks

    return [dataclasses.replace(run, problem=problem(run)) for run in runs]


def _of_problem(run: LoadedRun) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in flatten(run.config) if _is_of_problem(run, name)]


def _is_of_problem(run: LoadedRun, name: str) -> bool:
    return name.partition(".")[0] in _PROBLEM.get(_kind(run.config), ())


def _kind(config: Mapping[str, Any]) -> str:
    """The setting that names the tasks of a run: "stream" or "tasks"; "" for a single game."""
    return next((name for name in _PROBLEM if name in config), "")


def _with_differences(runs: list[LoadedRun]) -> list[LoadedRun]:
    """The runs with the settings, beside the seed, in which runs of one experiment, problem and method differ.

    Many settings follow from the method. The schedule does not: a method at another one is another thing to compare.
    """
    settings = [dict(flatten(run.config)) for run in runs]
    alike = ("game", *_PROBLEM, "method", "seed", "seeds")
    names = dict.fromkeys(name for setting in settings for name in setting if name not in alike)
    telling: list[str] = []
    for name in names:
        values: dict[tuple[str, str, str], set[str]] = {}
        for run, setting in zip(runs, settings, strict=True):
            if not _is_of_problem(run, name):
                method = "" if name == _SCHEDULE else run.method
                values.setdefault((run.experiment, run.problem, method), set()).add(str(setting.get(name)))
        if any(len(of_method) > 1 for of_method in values.values()):
            telling.append(name)
    return [
        dataclasses.replace(run, differences=tuple((name, str(setting.get(name))) for name in telling))
        for run, setting in zip(runs, settings, strict=True)
    ]


def _place(run: LoadedRun) -> tuple[str, str, str, int, str, int]:
    return run.experiment, run.problem, *method_order(run.label), run.seed


def _run_folders(path: Path) -> Iterator[Path]:
    for config in path.rglob(CONFIG):
        if (config.parent / METRICS).exists():
            yield config.parent


def _load(folder: Path) -> Iterator[LoadedRun]:
    """A run for each seed of a folder; none where there is no record yet."""
    try:
        found = storage.read(folder / CONFIG)
        about = None if found is None else parse_about(found)
        if about is None:
            return
        records = parse_records(records_of(folder, about), _kind(about["config"]))
        diverged_at = _diverged_at(folder)
    except Unreadable:
        raise
    except ValueError as error:
        raise UserError(f"the run in {folder} is damaged: {error}") from None
    if not records.height:
        return
    run = LoadedRun(folder, about, 0, records, (folder / DONE).exists(), diverged_at)
    for name in _NAMES:
        run.setting(name, str, "")
    if "seed" not in records.columns:
        yield dataclasses.replace(run, seed=run.setting("seed", int, 0))
        return
    for (seed,), of_seed in records.partition_by("seed", as_dict=True, maintain_order=True).items():
        yield dataclasses.replace(run, seed=seed, records=of_seed)


def _diverged_at(folder: Path) -> int | None:
    found = storage.read(folder / DIVERGED)
    return None if found is None else parse_diverged(found)
