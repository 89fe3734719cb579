"""Text in files on this machine that are streamed: of each only what is asked for is in memory."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from envs.loaders.text import COLUMN, STREAMED, check_kind, documents_of, kind_of

_NAMES = {"train": "train|training", "validation": "validation|valid|val|dev"}


@dataclasses.dataclass(frozen=True)
class LocalShards:
    """Files of texts, each a shard: as much of Hugging Face's `datasets.IterableDataset` as is used here.

    Only the column "text" is read, so the others may differ from shard to shard.

    Attributes:
        files: the shards.
        first: documents that are left out at the beginning.
        stop: the number of the document before which it ends; None: it goes on to the last.
    """

    files: tuple[Path, ...]
    first: int = 0
    stop: int | None = None

    @property
    def num_shards(self) -> int:
        """How many there are."""
        return len(self.files)

    def shard(self, num_shards: int, index: int) -> LocalShards:
        """One of them, of so many."""
        if num_shards != len(self.files):
            raise ValueError(f"{num_shards} parts of {len(self.files)} files: must be as many")
        return LocalShards((self.files[index],))

    def skip(self, n: int) -> LocalShards:
        """All but the first documents."""
        return dataclasses.replace(self, first=self.first + n)

    def take(self, n: int) -> LocalShards:
        """The first documents."""
        return dataclasses.replace(self, stop=self.first + n)

    def __iter__(self) -> Iterator[dict[str, str | None]]:
        """The documents, in the order of the files."""
        every = itertools.chain.from_iterable(map(documents_of, self.files))
        return ({COLUMN: text} for text in itertools.islice(every, self.first, self.stop))


def find_shards(folder: Path, split: str) -> LocalShards | None:
    """The files of a split: of JSON lines or Parquet, in the folder or in `data` below it, called train-... or so.

    Returns:
        They; None where there are none to train on, whatever split was asked for.

    Raises:
        BadFile: a file of the split is packed in a way that is not read.
        ValueError: there are files to train on, and none of the split.
    """
    for place in (folder, folder / "data"):
        if _files(place, "train"):
            if not (found := _files(place, split)):
                raise ValueError(f"there is no file {split}-... beside those to train on")
            return LocalShards(tuple(found))
    return None


def _files(place: Path, split: str) -> list[Path]:
    named = re.compile(rf"({_NAMES.get(split, re.escape(split))})(?![a-zA-Z])")
    every = sorted(place.iterdir()) if place.is_dir() else []
    files = [path for path in every if named.match(path.name) and path.is_file()]
    found = [path for path in files if kind_of(path) in STREAMED]
    if found:
        for path in files:
            check_kind(path)
    return found
