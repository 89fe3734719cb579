"""A study: a grid of an experiment's options, from a file or a command line, as jobs.

    experiment = "atari"

    [fixed]                           # options of all runs
    game = "pong"
    preset = "demo"

    [grid]                            # every list is an axis
    method = ["none", "nap"]
    seed = [0, 1, 2]

    [[cell]]                          # options that go together: each cell is combined with the whole grid
    lr = 1e-3
    n-step = 1

    [[cell]]
    lr = 3e-4
    n-step = 3

The names are those of the experiment's command line, and so are the values: a text or a number, a list where an option
takes several, true where a flag is set. `double = false` is `--no-double`, where there is such a flag. A run is named
by its options, not by the study, so that two studies share it.
"""

import contextlib
import functools
import importlib
import io
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.catalogue import catalogue
from experiments.harness.errors import UserError, unknown
from experiments.harness.grid import Words, axes, product
from experiments.harness.jobs import MOST_JOBS, Job

_KEYS = ("experiment", "fixed", "grid", "cell")


class Study(NamedTuple):
    """What is to be run.

    Attributes:
        experiment: the experiment's name.
        options: by an option's name all that it is to be given; more than one is an axis.
        cells: options that are given together, each a command line by the options' names; at least one, maybe empty.
    """

    experiment: str
    options: dict[str, list[Words]]
    cells: list[dict[str, list[Words]]]


def read_study(path: Path) -> Study:
    """A study from its file.

    Raises:
        UserError: the file is not there, or is no study.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the study {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: {error}") from None
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{path}: {unknown('a part of a study', key, _KEYS)}")
    experiment, cells = content.get("experiment"), content.get("cell", [{}])
    if not isinstance(experiment, str):
        raise UserError(f'{path}: experiment = "NAME" is missing')
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise UserError(f"{path}: cells are written as [[cell]], each with its options below")
    fixed, grid = (_table(path, content, key) for key in ("fixed", "grid"))
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: [grid] {name} = {values!r}: it must be a list; a single value goes to [fixed]")
    plan_of = _plan_of(experiment)
    options = [(name, [_words(path, name, value, plan_of)]) for name, value in fixed.items()]
    options += [(name, [_words(path, name, value, plan_of) for value in values]) for name, values in grid.items()]
    of_cells = [[(name, [_words(path, name, value, plan_of)]) for name, value in cell.items()] for cell in cells]
    for cell in of_cells:
        _named(path, [*options, *cell])  # nothing twice
    return Study(experiment, _named(path, options), [_named(path, cell) for cell in of_cells])


def plan(target: str, argv: Sequence[str]) -> list[Job]:
    """The jobs of a study; all their commands are sound, and nothing has been started.

    Args:
        target: a study's file (.toml), or the name of an experiment.
        argv: options of the experiment; those that are repeated are axes. They replace a study's.

    Returns:
        The jobs, each with the folders that no job before it has.

    Raises:
        UserError: the study or one of its commands makes no sense.
    """
    study = read_study(Path(target)) if target.endswith(".toml") else Study(target, {}, [{}])
    plan_of = _plan_of(study.experiment)
    options = {**study.options, **axes(argv)}
    if "--fresh" in options or any("--fresh" in cell for cell in study.cells):
        raise UserError("--fresh: not for a sweep, whose runs go on where they were left; delete their folders instead")
    for name in axes(argv).keys() & {name for cell in study.cells for name in cell}:
        raise UserError(f"{name}: the study's cells set it")
    grids = [{**options, **cell} for cell in study.cells]
    if (count := sum(math.prod(map(len, grid.values())) for grid in grids)) > MOST_JOBS:
        raise UserError(f"{target}: {count:,} combinations; a sweep has at most {MOST_JOBS:,} runs")
    commands = [command for grid in grids for command in product(grid)]
    jobs: list[Job] = []
    taken: set[Path] = set()
    for command in commands:
        try:
            planned = plan_of(command)
        except UserError as error:
            where = f" (in {study.experiment} {' '.join(command)})" if len(commands) > 1 else ""
            raise UserError(f"{error}{where}") from None
        for job in planned:
            folders = tuple(folder for folder in map(Path.absolute, job.folders) if folder not in taken)
            taken.update(folders)
            if folders:
                jobs.append(Job(job.argv, folders, Path.cwd()))
        if len(jobs) > MOST_JOBS:
            raise UserError(f"{target}: a sweep has at most {MOST_JOBS:,} runs")
    return jobs


def _plan_of(experiment: str) -> Callable[[list[str]], list[Job]]:
    experiments = {name: entry for name, entry in catalogue().items() if entry.plans}
    if experiment not in experiments:
        raise unknown("an experiment that a sweep can run", experiment, experiments)
    plan_of: Callable[[list[str]], list[Job]] = importlib.import_module(experiments[experiment].module).plan
    return plan_of


def _table(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"{path}: {key} must be a table, [{key}], with the options below")
    return table


def _named(path: Path, options: Sequence[tuple[str, list[Words]]]) -> dict[str, list[Words]]:
    """The options by the names that a command line has for them."""
    named: dict[str, list[Words]] = {}
    for name, given in options:
        option = f"--{name.replace('_', '-')}"
        if option in named:
            raise UserError(f"{path}: {name} is given twice")
        named[option] = given
    return named


def _words(path: Path, name: str, value: Any, plan_of: Callable[[list[str]], list[Job]]) -> Words:
    """An option and its value as they would be typed; nothing for a flag that is not set."""
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"{path}: {name!r} is not an option's name")
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return _flag(path, name, value, _options_of(plan_of))
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, (str, int, float)) for one in values):
        raise UserError(f"{path}: {name} = {value!r}: it must be a text, a number, true, false, or a list of these")
    for one in values:
        if isinstance(one, str) and one.startswith("-") and not _is_number(one):
            raise UserError(f"{path}: {name} = {one!r}: a value can't look like an option; give options by their names")
    return (option, *map(str, values))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _flag(path: Path, name: str, value: bool, options: Mapping[str, bool]) -> Words:
    """What true or false is as typed; `options`: whether each takes a value."""
    option, negated = (f"{prefix}{name.replace('_', '-')}" for prefix in ("--", "--no-"))
    if option in options:
        if options[option]:
            return (option, str(value))
        return (option,) if value else ()
    if negated in options:
        return () if value else (negated,)
    raise UserError(f"{path}: {name} = {str(value).lower()}: {unknown('an option', option, options)}")


@functools.cache
def _options_of(plan_of: Callable[[list[str]], list[Job]]) -> dict[str, bool]:
    """The options that an experiment's help shows, and whether each takes a value."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        plan_of(["--help"])
    found = re.findall(r"^\W*(?:-h, )?(--[\w-]+)( \S)?", shown.getvalue(), flags=re.MULTILINE)
    return {option: bool(takes) for option, takes in found}
