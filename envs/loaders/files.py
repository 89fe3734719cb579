"""What lies below a folder: its files in an order that names alone decide, without what is hidden."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from envs.reading import BadFile


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, in the order of their names.

    What begins with a dot is passed over, and so is what is in such folders: `.ipynb_checkpoints` has old copies, and
    `._picture.jpg` is what a Mac knows of picture.jpg, not a picture.

    Raises:
        BadFile: a folder can't be listed.
    """

    def refuse(error: OSError) -> NoReturn:
        raise BadFile(f"{error.filename}: can't be read ({error.strerror})") from error

    found: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in files if not name.startswith(".")]
    return sorted(found)
