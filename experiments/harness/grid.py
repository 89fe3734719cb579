"""A grid in one command: every option that is given more than once is an axis of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

Words = tuple[str, ...]
"""An option with its values, as they are typed: ("--hidden", "100", "50"), ("--lr=1e-3",), ("--fresh",)."""


def cells(argv: Sequence[str]) -> list[list[str]]:
    """The command lines that a command line with repeated options stands for.

    `--method a --method b --lr 1e-3 --lr 3e-4 --seeds 10` stands for four: a 1e-3, a 3e-4, b 1e-3, b 3e-4.

    Args:
        argv: the arguments after the experiment's name: options with their values, `--name value` or `--name=value`.

    Returns:
        One list of arguments for each cell; a single one where no option is repeated. A value given twice counts once.
    """
    return product(axes(argv))


def axes(argv: Sequence[str]) -> dict[str, list[Words]]:
    """Each option of a command line, by its name, with all that is given for it: a single one, or an axis."""
    options: dict[str, list[Words]] = {}
    for words in grouped(argv):
        given = options.setdefault(name_of(words), [])
        if words not in given:
            given.append(words)
    return options


def product(options: Mapping[str, Sequence[Words]]) -> list[list[str]]:
    """The command lines of all combinations; the last option changes first."""
    return [list(itertools.chain(*choice)) for choice in itertools.product(*options.values())]


def grouped(argv: Sequence[str]) -> list[Words]:
    """The arguments, each option together with the values that follow it."""
    groups: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    return [tuple(group) for group in groups]


def name_of(words: Words) -> str:
    """The option's name: "--num-envs" of `--num_envs=8`."""
    return words[0].partition("=")[0].replace("_", "-")


def with_options(argv: Sequence[str], options: Mapping[str, str | int | None]) -> tuple[str, ...]:
    """A command line with some options set anew, at its end; None takes an option out.

    Args:
        argv: the arguments after the experiment's name.
        options: the values by the options' names: {"--seed": 3, "--seeds": None}.
    """
    kept = [words for words in grouped(argv) if name_of(words) not in options]
    new = [(name, str(value)) for name, value in options.items() if value is not None]
    return tuple(itertools.chain(*kept, *new))
