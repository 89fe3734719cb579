"""Text as documents: the sources of Python's own library, or files of one's own; some documents are held out.

Files: .jsonl or .json (a line, an object; its "text" is a document), .parquet (the column "text"), and plain text in
UTF-8, where a file is a document. JSON and plain text can be packed by gzip (.gz).
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

COLUMN = "text"
STANDARD_LIBRARY = "stdlib"
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class Corpus(NamedTuple):
    """Documents; none is there twice.

    Attributes:
        documents: to train on.
        held_out: to evaluate on.
    """

    documents: tuple[str, ...]
    held_out: tuple[str, ...]


def load_text(source: str = STANDARD_LIBRARY, *, held_out: str | None = None) -> Corpus:
    """Reads a corpus into memory. The same files give the same documents in the same order.

    Args:
        source: "stdlib", the .py files of this Python's standard library without its tests (12 MB; they differ from one
            version of Python to the next, so log `fingerprint`); or a file; or a folder, of which all files of the
            known kinds are read, in the order of their names, those in its folders as well.
        held_out: a file or a folder to evaluate on. Without it every tenth document is held out, or the last one of
            fewer than ten, or the last tenth of a single one. A document that is also in `source` is left out of it.

    Raises:
        ValueError: nothing there; a file that is damaged or has no such texts; or less than two documents' worth.
    """
    # A dictionary keeps the first of equal documents, and the order.
    documents = list(dict.fromkeys(text for text in _read(source) if text))
    if held_out is not None:
        known = set(documents)
        others = tuple(text for text in dict.fromkeys(_read(held_out)) if text and text not in known)
        parts = Corpus(tuple(documents), others)
    elif len(documents) == 1:
        cut = len(documents[0]) * 9 // 10
        parts = Corpus((documents[0][:cut],), (documents[0][cut:],))
    else:
        every = min(10, len(documents))
        kept = tuple(text for i, text in enumerate(documents) if i % every != every - 1)
        parts = Corpus(kept, tuple(documents[every - 1 :: every] if every else ()))
    for part, texts in (("to train on", parts.documents), ("held out", parts.held_out)):
        if not any(texts):
            raise ValueError(f"{held_out or source}: there is no text {part}: more than a few letters are needed")
    return parts


def fingerprint(documents: Iterable[str]) -> str:
    """SHA-256 of the documents, each with its length before it."""
    digest = hashlib.sha256()
    for document in documents:
        content = document.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def text_files(source: str) -> list[Path]:
    """The files that `load_text` reads, in their order.

    Raises:
        ValueError: there are none.
    """
    if source == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        return sorted(path for path in root.rglob("*.py") if not _NOT_LIBRARY & set(path.relative_to(root).parts))
    path = Path(source)
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) in _READERS)
    if not found:
        there = f"no file {', '.join(_READERS)} in it" if path.is_dir() else "no such file or folder"
        raise ValueError(f"{source}: {there}; or take {STANDARD_LIBRARY}")
    return found


def json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """The objects of a file of JSON lines, packed by gzip or not, with the number of the line, from 1.

    Raises:
        ValueError: a line that is not an object.
    """
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}: line {number} is a {type(value).__name__}, must be an object")
        yield number, value


def _read(source: str) -> Iterator[str]:
    return itertools.chain.from_iterable(_READERS.get(_kind(file), _plain)(file) for file in text_files(source))


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix.lower() == ".gz" else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: can't be read ({error})") from error


def _plain(path: Path) -> Sequence[str]:
    return [_decoded(path)]


def _json_texts(path: Path) -> Iterator[str]:
    for number, value in json_lines(path):
        text = value.get(COLUMN, ...)
        if text is None:
            continue  # as in Parquet
        if not isinstance(text, str):
            raise ValueError(f"{path}: line {number} has no text {COLUMN!r}; it has {', '.join(value) or 'nothing'}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}: line {number} has half of a surrogate pair ({error})") from None
        yield text


def _parquet(path: Path) -> Sequence[str]:
    import polars as pl

    try:
        schema = pl.read_parquet_schema(path)
        if schema.get(COLUMN) != pl.String:
            raise ValueError(f"its columns are {dict(schema)}, one must be {COLUMN}: String")
        return pl.read_parquet(path, columns=[COLUMN])[COLUMN].drop_nulls().to_list()
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not Parquet with texts ({error})") from error


_READERS: dict[str, Callable[[Path], Iterable[str]]] = {
    ".jsonl": _json_texts,
    ".json": _json_texts,
    ".parquet": _parquet,
    ".txt": _plain,
    ".md": _plain,
    ".py": _plain,
}
