"""Fingerprints of what is read, by which a run knows its data again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from envs.datasets import Dataset
from envs.reading import opened, reading

_SAMPLED_FILES, _SAMPLED_BYTES = 256, 1 << 16


def of_parts(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of some bytes, each part with its length before it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(memoryview(part).nbytes.to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def of_arrays(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of arrays: their types, shapes and contents."""
    return of_parts(
        part
        for array in arrays
        for part in (f"{array.dtype.str} {array.shape}".encode(), np.ascontiguousarray(array).data)
    )


def of_dataset(dataset: Dataset) -> str:
    """SHA-256 of a data set's images and labels."""
    return of_arrays((dataset.images, dataset.labels, dataset.test_images, dataset.test_labels))


def of_files(folder: Path, files: Sequence[Path]) -> str:
    """SHA-256 of what can be told of many files at once.

    Those are the names of all of them, below the folder; and of at most 256, evenly among them, the sizes, the first
    64 KiB and the last 64 KiB.

    Raises:
        BadFile: one of those can't be read.
    """
    sampled = sorted({i * len(files) // _SAMPLED_FILES for i in range(_SAMPLED_FILES)}) if files else []
    above = len(os.path.join(folder, ""))
    names = "\0".join(str(file)[above:] for file in files)  # of a million, `relative_to` would take long
    return of_parts((os.fsencode(names), *(part for i in sampled for part in _sample(files[i]))))


def _sample(path: Path) -> tuple[bytes, bytes, bytes]:
    with opened(path) as file, reading(path, "can't be read"):
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SAMPLED_BYTES))
        end = file.read(_SAMPLED_BYTES)
        file.seek(0)
        return str(size).encode(), file.read(_SAMPLED_BYTES), end
