"""The text that a language model learns from: documents in memory or streamed, and a tokenizer of them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from envs.fingerprints import of_parts
from envs.loaders import (
    Loader,
    Share,
    Tokenizer,
    byte_tokenizer,
    fingerprint,
    first_documents,
    load_bpe,
    load_text,
    open_stream,
    stream_fingerprint,
    tokenize,
    train_bpe,
    training_sequences,
    training_stream,
    unread_files,
)
from envs.reading import content
from experiments.harness.data import say_unread
from experiments.harness.errors import UserError
from experiments.harness.processes import in_first

TOKENIZER_DOCUMENTS = 20_000
"""Of a stream: so many of its first documents a tokenizer is trained on."""


class Source(NamedTuple):
    """Documents that were found.

    Attributes:
        documents: what a tokenizer is learned from.
        held_out: what is evaluated on.
        train: (tokenizer, length, batch size, seed, share) -> the batches to train on.
        fingerprints: of what they are read from, by the option that names it.
    """

    documents: Sequence[str]
    held_out: Sequence[str]
    train: Callable[[Tokenizer, int, int, int, Share], Loader]
    fingerprints: Mapping[str, str]


def in_memory(text: str, held_out: str) -> Source:
    """The documents of `--text` and `--held-out`. Raises ValueError as `envs.loaders.load_text` does."""
    corpus = load_text(text, held_out=held_out or None)
    say_unread("--text", text, unread_files(text))
    fingerprints = {"--text": fingerprint((*corpus.documents, *corpus.held_out))}
    if held_out:
        say_unread("--held-out", held_out, unread_files(held_out))
        fingerprints = {"--text": fingerprint(corpus.documents), "--held-out": fingerprint(corpus.held_out)}

    def train(tokenizer: Tokenizer, length: int, batch_size: int, seed: int, share: Share) -> Loader:
        return training_sequences(tokenize(corpus.documents, tokenizer), length, batch_size, seed=seed, share=share)

    return Source(corpus.documents, corpus.held_out, train, fingerprints)


def streamed(name: str, held_out: int, *, learn: bool) -> Source:
    """The documents of `--streamed`. Raises ValueError as `envs.loaders.open_stream` does.

    Args:
        name: of the stream.
        held_out: how many documents are evaluated on.
        learn: whether a tokenizer is learned from its first documents.
    """
    stream = open_stream(name)
    documents = first_documents(stream, TOKENIZER_DOCUMENTS) if learn else ()
    others = first_documents(open_stream(name, "validation"), held_out)
    told = of_parts(part.encode() for part in (stream_fingerprint(stream), fingerprint(others)))

    def train(tokenizer: Tokenizer, length: int, batch_size: int, seed: int, share: Share) -> Loader:
        return training_stream(stream, tokenizer, length, batch_size, seed=seed, share=share)

    return Source(documents, others, train, {"--streamed": told})


def tokenizer_of(
    saved: str, vocabulary: int, documents: Sequence[str], out: Path
) -> tuple[Tokenizer, Mapping[str, str]]:
    """Bytes; a tokenizer from a file; or one that is learned from these documents, and kept for other runs of them.

    Args:
        saved: `--tokenizer`; "" for none.
        vocabulary: `--vocabulary`; 0 for none.
        documents: what it is learned from.
        out: where runs are, and learned tokenizers.

    Returns:
        It, and a fingerprint of its file by the option that asks for it.

    Raises:
        UserError: it can't be had; with the option.
    """
    if saved:
        with told_of("--tokenizer"):
            return load_bpe(Path(saved)), {"--tokenizer": of_parts([content(Path(saved))])}
    if not vocabulary:
        return byte_tokenizer(), {}
    path = out / "tokenizers" / f"{vocabulary}-{fingerprint(documents)[:8]}.json"

    def learned() -> str:
        with told_of("--vocabulary"):
            if path.is_file():
                load_bpe(path)  # so that an error names it, and not its copy
            else:
                train_bpe(documents, vocabulary, path)
            return content(path).decode()  # what processes tell each other is JSON

    found = in_first(learned).encode()
    with told_of("--vocabulary"), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name  # not every process has the file
        copy.write_bytes(found)
        return load_bpe(copy), {"--vocabulary": of_parts([found])}


@contextlib.contextmanager
def told_of(option: str) -> Iterator[None]:
    """Names the option where what it names is at fault: turns a ValueError into a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None
