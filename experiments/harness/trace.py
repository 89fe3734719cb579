"""Arrays that a finished run leaves in its folder, for a run that follows it."""

import zipfile
from pathlib import Path

import numpy as np

from experiments.harness.errors import UserError

Trace = dict[str, np.ndarray]
"""What was recorded of all seeds, by name: [seeds, updates], or [seeds, stretches, ...] at the end of each stretch."""
_NAME = "trace.npz"


def save_trace(folder: Path, trace: Trace) -> None:
    """Writes the arrays; a reader finds all of them or none."""
    draft = folder / f"{_NAME}.draft"
    with draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **trace)
    draft.replace(folder / _NAME)


def load_trace(folder: Path) -> Trace:
    """What a finished run left of itself.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with (folder / _NAME).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        raise UserError(f"{folder / _NAME} is missing or damaged; --fresh runs everything again") from None
