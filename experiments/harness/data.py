"""What is said of the files that data come from: which are at fault, and which are passed over."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.harness.errors import UserError
from experiments.harness.processes import writes

_NAMED = 3


def refused(option: str, given: str, error: ValueError) -> UserError:
    """The error for data that can't be used, with the option; what was given is named once, whether it is a path."""
    return UserError(f"{option} {given}: {str(error).removeprefix(f'{given}: ')}")


def say_unread(option: str, given: str, files: Sequence[Path]) -> None:
    """Says, on standard error, that files in a folder of data are passed over, as they are of kinds that are not read.

    Args:
        option: that names the folder.
        given: the folder.
        files: they; where there are none nothing is said.
    """
    if files and writes():
        names = ", ".join(file.name for file in files[:_NAMED])
        more = ", ..." if len(files) > _NAMED else ""
        line = f"{option} {given}: not read, as of other kinds: {len(files)} files ({names}{more})"
        print(line, file=sys.stderr, flush=True)
