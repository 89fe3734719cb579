"""Text as documents: the sources of Python's own library, or files of one's own; some documents are held out.

Files: .jsonl, .ndjson, .jsonlines or .json (a line, an object; its "text" is a document), .parquet (the column "text"),
and .txt, .md or .py, plain text in UTF-8, where a file is a document. JSON and plain text can be packed by gzip (.gz).
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from envs.fingerprints import of_parts
from envs.loaders import parquet
from envs.loaders.files import files_below
from envs.reading import BadFile, content, lines, reading

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
            known kinds are read, in the order of their names, those in its folders as well; what is hidden is not,
            and `unread_files` tells what else is not.
        held_out: a file or a folder to evaluate on. Without it every tenth document is held out, or the last one of
            fewer than ten, or the last tenth of a single one. A document that is also in `source` is left out of it.

    Raises:
        ValueError: nothing there; a file that is damaged, of a kind that is not known, or without such texts; or less
            than two documents' worth.
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
    return of_parts(document.encode() for document in documents)


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
        check_kind(path)
        return [path]
    found = [file for file in _inside(path) if kind_of(file) in _READERS]
    if not found:
        there = f"no file {', '.join(_READERS)} in it" if path.is_dir() else "no such file or folder"
        raise ValueError(f"{source}: {there}; or take {STANDARD_LIBRARY}")
    return found


def unread_files(source: str) -> list[Path]:
    """The files in a folder that `load_text` passes over, as they are of other kinds; hidden ones are not counted."""
    if source == STANDARD_LIBRARY:
        return []
    return [file for file in _inside(Path(source)) if kind_of(file) not in _READERS]


def json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """The objects of a file of JSON lines, packed by gzip or not, with the number of the line, from 1.

    Raises:
        BadFile: a line that is not an object, or a file that can't be read.
    """
    for number, line in lines(path):
        with reading(path, f"line {number} is not UTF-8"):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if not text.strip():
            continue
        with reading(path, f"line {number} is not JSON"):
            value = json.loads(text)
        if not isinstance(value, dict):
            raise BadFile(f"{path}: line {number} is a {type(value).__name__}, must be an object")
        yield number, value


def documents_of(path: Path) -> Iterator[str | None]:
    """The documents of one file, of which little is in memory at once; None for a null.

    Raises:
        BadFile: it is damaged, of a kind that is not known, or has no such texts.
    """
    check_kind(path)
    return _READERS.get(kind_of(path), _plain)(path)


def check_kind(path: Path) -> None:
    """Raises BadFile for what is of no known kind, but for a name without a suffix, which is plain text."""
    kind = kind_of(path)
    if kind in ("", *_READERS):
        return
    if _inner_kind(path) is not None:
        raise BadFile(
            f"{path}: packed as {path.suffix.lower()}, which is not read: unpack it, or pack it by gzip (.gz)"
        )
    raise BadFile(
        f"{path}: files {kind} are not read; known are {', '.join(_READERS)}, packed by gzip (.gz) or not: call it "
        ".txt if it is plain text"
    )


def kind_of(path: Path) -> str:
    """The suffix that tells a file's kind: the one before .gz, where there is that."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _read(source: str) -> Iterator[str]:
    for file in text_files(source):
        yield from (text for text in documents_of(file) if text is not None)


def _inside(folder: Path) -> list[Path]:
    """A folder's files. Documents that are packed in a way that is not read would be missed, and are refused."""
    found = [file for file in files_below(folder) if file.is_file()] if folder.is_dir() else []
    for file in found:
        if _inner_kind(file) in _READERS:
            check_kind(file)
    return found


def _inner_kind(path: Path) -> str | None:
    """The kind of what is packed in a file, in a way that is not read; None where nothing is."""
    return kind_of(path.with_suffix("")) if path.suffix.lower() in _PACKED else None


def _plain(path: Path) -> Iterator[str]:
    found = content(path)
    with reading(path, "not UTF-8"):
        text = found.decode("utf-8-sig")
    yield text


def _json_texts(path: Path) -> Iterator[str | None]:
    for number, value in json_lines(path):
        text = value.get(COLUMN, ...)
        if not isinstance(text, str | None):
            raise BadFile(f"{path}: line {number} has no text {COLUMN!r}; it has {', '.join(value) or 'nothing'}")
        with reading(path, f"line {number} has half of a surrogate pair"):
            (text or "").encode()
        yield text


def _parquet(path: Path) -> Iterator[str | None]:
    import polars as pl

    with reading(path, "not Parquet with texts"):
        schema, rows = parquet.schema_of(path), parquet.rows_of(path)
        if schema.get(COLUMN) != pl.String:
            raise ValueError(f"its columns are {schema}, one must be {COLUMN}: String")
    for first in range(0, rows, _ROWS_AT_ONCE):
        with reading(path, f"rows from {first} on can't be read"):
            some = parquet.rows_between(path, pl.col(COLUMN), first, _ROWS_AT_ONCE)
        yield from some


_READERS: dict[str, Callable[[Path], Iterator[str | None]]] = {
    ".jsonl": _json_texts,
    ".ndjson": _json_texts,
    ".jsonlines": _json_texts,
    ".json": _json_texts,
    ".parquet": _parquet,
    ".txt": _plain,
    ".md": _plain,
    ".py": _plain,
}
STREAMED = (".jsonl", ".ndjson", ".jsonlines", ".json", ".parquet")
"""The kinds of files that hold many documents, and need not be in memory whole."""
_PACKED = (".zst", ".zstd", ".xz", ".bz2", ".lz4", ".br", ".zip", ".7z", ".tar", ".tgz")
_ROWS_AT_ONCE = 4096
