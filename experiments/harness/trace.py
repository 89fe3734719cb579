"""Arrays that a finished run leaves in its folder, for a run that follows it."""

import io
from pathlib import Path

import numpy as np

from experiments.harness.errors import Damaged, UserError
from experiments.harness.folder import DONE
from experiments.harness.run import Run
from experiments.harness.storage import read

Trace = dict[str, np.ndarray]
"""What was recorded of all seeds, by name: [seeds, updates], or [seeds, stretches, ...] at the end of each stretch."""
_NAME = "trace.npz"


def save_trace(opened: Run, trace: Trace) -> None:
    """Writes the arrays, before the run is finished; a reader finds all of them or none."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **trace)
    opened.leave(_NAME, content.getvalue())


def load_trace(folder: Path) -> Trace:
    """What a finished run left of itself.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        content = read(folder / _NAME)
    except Damaged:
        content = None
    try:
        with np.load(io.BytesIO(content or b""), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # whatever the bytes are
        raise UserError(
            f"{folder / _NAME} is missing or damaged; remove {DONE} beside it, and the same command ends that run again"
        ) from None
