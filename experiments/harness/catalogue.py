"""Which experiments there are, found by reading their files: listing them imports none of them, and no JAX."""

import ast
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.harness.command_line import exit_code_of
from experiments.harness.environment import check_environment
from experiments.harness.errors import unknown

_FOLDER = Path(__file__).resolve().parents[1]
_USAGE = "usage: python -m experiments NAME [options]    (--help after a NAME shows its options)"


class Entry(NamedTuple):
    """One command of `python -m experiments`."""

    name: str  # as it is typed: dashes for the module's underscores
    module: str
    description: str  # the first line of the module's docstring
    plans: bool  # whether it has a function `plan`: a sweep can run it


def catalogue(folder: Path = _FOLDER, package: str = "experiments") -> dict[str, Entry]:
    """The modules and packages in `folder` that define a function `main`, by the name that is typed for them."""
    entries = (_entry(path, package) for path in _sources(folder))
    return {entry.name: entry for entry in entries if entry is not None}


def listing(entries: dict[str, Entry]) -> str:
    """The text that `python -m experiments` prints: a line each."""
    width = max(map(len, entries), default=0)
    lines = [f"  {name:<{width}}  {entries[name].description}" for name in sorted(entries)]
    return "\n".join([_USAGE, "", *lines])


def dispatch(argv: Sequence[str]) -> int:
    """`python -m experiments ARGV...`: lists the experiments, or runs one.

    Args:
        argv: the arguments after `python -m experiments`.

    Returns:
        The exit code; 2 for a name that is no experiment's.
    """
    entries = catalogue()
    if not argv or argv[0] in ("--help", "-h"):
        print(listing(entries))
        return 0

    def run() -> int:
        if argv[0] not in entries:
            raise unknown("an experiment", argv[0], entries)
        check_environment(argv)
        main: Callable[[list[str]], int] = importlib.import_module(entries[argv[0]].module).main
        return main(list(argv[1:]))

    return exit_code_of(run)


def _sources(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    yield from sorted(folder.glob("*/__init__.py"))


def _entry(path: Path, package: str) -> Entry | None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if "main" not in functions:
        return None
    module = path.parent.name if path.name == "__init__.py" else path.stem
    description = (ast.get_docstring(tree) or "").partition("\n")[0]
    return Entry(module.replace("_", "-"), f"{package}.{module}", description, "plan" in functions)
