"""A grid in one command: every option that is given more than once is an axis of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def cells(argv: Sequence[str]) -> list[list[str]]:
    """The command lines that a command line with repeated options stands for.

    `--method a --method b --lr 1e-3 --lr 3e-4 --seeds 10` stands for four: a 1e-3, a 3e-4, b 1e-3, b 3e-4.

    Args:
        argv: the arguments after the experiment's name: options with their values, `--name value` or `--name=value`.

    Returns:
        One list of arguments for each cell; a single one where no option is repeated. A value given twice counts once.
    """
    options: dict[str, list[tuple[str, ...]]] = {}
    for words in _grouped(argv):
        name = words[0].partition("=")[0]
        given = options.setdefault(name, [])
        if words not in given:
            given.append(words)
    return [list(itertools.chain(*choice)) for choice in itertools.product(*options.values())]


def _grouped(argv: Sequence[str]) -> list[tuple[str, ...]]:
    """The arguments, each option together with the values that follow it."""
    groups: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    return [tuple(group) for group in groups]
