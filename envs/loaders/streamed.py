"""Text that is too much to keep: files, or C4 and others by Hugging Face's `datasets`, tokenized on the way.

The stream is a list of shards (files). An epoch goes through all of them, in a random order; documents are packed
without a gap, from one epoch into the next; and what is packed is shuffled within windows of a few batches. A position
is the place in the stream where the window began, so a run that goes on reads that window again and gets the same
batches. Shuffling within a buffer, as `datasets` does it, can't be resumed exactly.

Every process reads the whole stream and keeps its rows. So the batches and the position are the same for any number of
processes; what it costs is each one's own download and tokenizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from envs.fingerprints import of_files, of_parts
from envs.loaders.loader import SHARDS, WHOLE, WINDOW, Loader, Position, Share, extra
from envs.loaders.sequences import cut
from envs.loaders.shards import LocalShards, find_shards
from envs.loaders.text import COLUMN
from envs.loaders.tokens import Tokenizer, encoded
from envs.reading import BadFile, reading

_SHORT = {"c4": "allenai/c4:en"}
_SAVED_SHARDS = 64
_DOCUMENTS_AT_ONCE = 64
_FINGERPRINTED = 16


class Place(NamedTuple):
    """A token of the stream: the epoch, the shard's place in its order, the document, and the token in that."""

    epoch: int = 0
    shard: int = 0
    document: int = 0
    token: int = 0


class StreamPosition(NamedTuple):
    """Batches that were given out, and the `Place` where the window began that has the next one."""

    step: int = 0
    epoch: int = 0
    shard: int = 0
    document: int = 0
    token: int = 0


def open_stream(name: str, split: str = "train") -> Any:
    """Opens a data set with a column "text".

    Args:
        name: "c4"; any other of the Hugging Face Hub, as "owner/name" or "owner/name:configuration"; a folder of files
            of JSON lines or Parquet called train-... and validation-..., which are read here; or one that
            `save_to_disk` of `datasets` made.
        split: "train" or "validation".

    Returns:
        A `datasets.IterableDataset`, or `envs.loaders.shards.LocalShards`, which is used like one.

    Raises:
        ValueError: `datasets` is not installed, or the data set can't be opened, as without a network.
    """
    wrong = f"its split {split} can't be opened"
    path, _, configuration = (name, "", "") if _is_folder(name) else _SHORT.get(name, name).partition(":")
    saved = any((Path(path) / marker).is_file() for marker in ("state.json", "dataset_dict.json"))
    if _is_folder(name) and not saved:
        with reading(name, wrong):
            shards = find_shards(Path(path), split)
        if shards is not None:
            return shards
    library = extra("datasets", f"streaming {name}")
    with reading(name, wrong):
        if saved:
            there = library.load_from_disk(path)
            if isinstance(there, dict):
                there = there[split]
            elif split != "train":
                raise ValueError("it was saved without splits; save a DatasetDict with train and validation")
            if not len(there):
                raise ValueError("it is empty")
            return there.to_iterable_dataset(num_shards=min(_SAVED_SHARDS, len(there)))
        return library.load_dataset(path, configuration or None, split=split, streaming=True)


def stream_fingerprint(stream: Any) -> str:
    """SHA-256 of what can be told of a stream without reading it: its number of shards and its first documents.

    Of files on this machine, their names, sizes and parts of their contents besides; see `envs.fingerprints.of_files`.
    """
    first = [str(stream.num_shards), *first_documents(stream, _FINGERPRINTED)]
    files = [of_files(stream.files[0].parent, stream.files)] if isinstance(stream, LocalShards) else []
    return of_parts(part.encode() for part in (*files, *first))


def first_documents(stream: Any, count: int) -> list[str]:
    """The first documents of a stream, as of a validation split that is too long to be used whole."""
    return [text for text in _texts(stream.take(count), "the stream") if text is not None]


def training_stream(
    stream: Any,
    tokenizer: Tokenizer,
    length: int,
    batch_size: int,
    *,
    seed: int,
    share: Share = WHOLE,
    window: int = 16,
) -> Loader:
    """Sequences packed from a stream. Every token of an epoch is a target exactly once.

    Args:
        stream: from `open_stream`.
        tokenizer: of the texts.
        length: targets of a sequence.
        batch_size: sequences of a batch, in all processes together.
        seed: of the orders.
        share: the part of each batch that is wanted.
        window: batches whose sequences are shuffled among each other. Two windows are in memory.

    Returns:
        Batches: `envs.loaders.sequences.TextBatch`. They raise ValueError if the stream has no texts.

    Raises:
        ValueError: a length or a window below 1, or a batch that can't be shared.
    """
    if length < 1 or window < 1:
        raise ValueError(f"sequences of {length} tokens, in windows of {window} batches: must be at least 1")
    rows = share.rows(batch_size)
    sequences = window * batch_size

    def batches(position: Position) -> Generator[tuple[Any, Position], None, None]:
        step, *where = map(int, position)
        windows = _windows(_documents(stream, tokenizer, seed, Place(*where)), sequences * length)
        # The next window is read while batches of this one are trained on.
        reader = ThreadPoolExecutor(1)
        try:
            upcoming = reader.submit(next, windows)
            while True:
                tokens, start, behind = upcoming.result()
                upcoming = reader.submit(next, windows)
                order = np.random.default_rng((WINDOW, seed, step // window)).permutation(sequences)
                for place in range(step % window, window):
                    step += 1
                    chosen = order[place * batch_size : (place + 1) * batch_size][rows]
                    yield cut(tokens, chosen, length), StreamPosition(step, *(start if step % window else behind))
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    return Loader(batches, StreamPosition(), None)


def _documents(stream: Any, tokenizer: Tokenizer, seed: int, start: Place) -> Iterator[tuple[Place, np.ndarray]]:
    """The documents from a place on, without an end: each a separator and its tokens, with the place of the first."""
    place = start
    for epoch in itertools.count(start.epoch):
        order = np.random.default_rng((SHARDS, seed, epoch)).permutation(stream.num_shards)
        found = place != Place(epoch)
        for shard in range(place.shard, len(order)):
            texts = stream.shard(num_shards=len(order), index=int(order[shard]))
            first = place.document
            where = f"the stream: shard {int(order[shard])}"
            every = enumerate(_texts(texts.skip(first) if first else texts, where), first)
            numbered = ((number, text) for number, text in every if text is not None)
            while some := list(itertools.islice(numbered, _DOCUMENTS_AT_ONCE)):
                found = True
                for (number, _), tokens in zip(some, encoded(tokenizer, [text for _, text in some]), strict=True):
                    whole = np.concatenate([[tokenizer.separator], tokens]).astype(np.int32)
                    skipped = place.token if number == first else 0
                    yield Place(epoch, shard, number, skipped), whole[skipped:]
            place = Place(epoch, shard + 1)
        if not found:
            raise BadFile("the stream has no documents")
        place = Place(epoch + 1)


def _windows(
    documents: Iterable[tuple[Place, np.ndarray]], targets: int
) -> Iterator[tuple[Int32[np.ndarray, " tokens"], Place, Place]]:
    """Stretches of so many targets and the token before them; for each, where it and where the next one begins.

    The token before the targets is the last target of the stretch before.
    """
    start, kept, count = None, [], 0
    for place, tokens in documents:
        start = start or place
        # One more than the targets are needed; what is missing of them ends inside this document, or behind it.
        while count + len(tokens) > targets:
            end = targets - count
            behind = place._replace(token=place.token + end)
            yield np.concatenate([*kept, tokens[: end + 1]]), start, behind
            start, place, tokens, kept, count = behind, behind, tokens[end:], [], 0
        kept.append(tokens)
        count += len(tokens)


def _texts(rows: Iterable[dict], where: str) -> Iterator[str | None]:
    """The documents' texts; None for a null, which other readers pass over, too."""
    with reading(where, "it can't be read"):
        remaining = iter(rows)
    while True:
        with reading(where, "a document can't be read"):
            row = next(remaining, None)
        if row is None:
            return
        value = row.get(COLUMN, ...)
        if not isinstance(value, str | None):
            raise BadFile(f"{where}: a document has no text {COLUMN!r}; it has {', '.join(row) or 'nothing'}")
        yield value


def _is_folder(name: str) -> bool:
    return name not in _SHORT and Path(name).is_dir()
