"""CIFAR-10 and CIFAR-100 as their author publishes them for Python: pickles, in an archive or unpacked.

A pickle is a program. Here it is read by an interpreter of its own that knows numbers, texts, lists, dictionaries and
arrays of whole numbers: nothing is imported and nothing is called, whatever a file says.
"""

from __future__ import annotations

import gzip
import hashlib
import pickletools
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from envs.reading import content, opened, reading


class Cifar(NamedTuple):
    """One of the two data sets.

    Attributes:
        archive: the file that is published.
        sha256: of that file.
        folder: what it unpacks to.
        train: the files to train on, with the MD5 of each.
        test: the one to evaluate on, likewise.
        labels: under which key a file has them.
        classes: how many there are.
    """

    archive: str
    sha256: str
    folder: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    labels: bytes
    classes: int


# The sums are those that Keras (SHA-256) and torchvision (MD5) compare.
CIFARS: Mapping[str, Cifar] = MappingProxyType(
    {
        "cifar10": Cifar(
            "cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            "cifar-10-batches-py",
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            {"test_batch": "40351d587109b95175f43aff81a1287e"},
            b"labels",
            10,
        ),
        "cifar100": Cifar(
            "cifar-100-python.tar.gz",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            "cifar-100-python",
            {"train": "16019d7e3df5f24257cddd939b257f8d"},
            {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
            b"fine_labels",
            100,
        ),
    }
)
_LARGEST_FILE, _LARGEST_ARCHIVE = 200_000_000, 1_000_000_000
"""Bytes, unpacked; published are 155,249,918 and 186 million."""
_RECONSTRUCT = (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"))
_NDARRAY, _DTYPE = ("numpy", "ndarray"), ("numpy", "dtype")
_NUMBERS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


def read_cifar(path: Path, kind: Cifar) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads one of the data sets.

    Args:
        path: the archive, or the folder that it unpacks to. Under its published name it must be what was published,
            byte for byte; one that is called otherwise may hold other images.
        kind: one of `CIFARS`.

    Returns:
        Images uint8 [n, 32, 32, 3] and labels [n] to train on, then those held out.

    Raises:
        BadFile: it is damaged, not what was published, or has something else in it.
    """
    wanted = {**kind.train, **kind.test}
    files = _from_folder(path, kind, wanted) if path.is_dir() else _from_archive(path, kind, wanted)
    read = {name: _examples(path, name, files[name], kind) for name in wanted}
    parts = [zip(*(read[name] for name in part), strict=True) for part in (kind.train, kind.test)]
    images, labels, test_images, test_labels = (np.concatenate(some) for part in parts for some in part)
    return images, labels, test_images, test_labels


def _from_folder(path: Path, kind: Cifar, wanted: Mapping[str, str]) -> dict[str, bytes]:
    files = {}
    for name, md5 in wanted.items():
        files[name] = content(path / name)
        found = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
        with reading(path / name, "not the published file"):
            if path.name == kind.folder and found != md5:
                raise ValueError(f"its MD5 is {found}, published is {md5}; {_remedy(kind)}")
    return files


def _from_archive(path: Path, kind: Cifar, wanted: Mapping[str, str]) -> dict[str, bytes]:
    files = {}
    with opened(path) as file:
        if path.name == kind.archive:
            with reading(path, "not the published archive"):
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != kind.sha256:
                    raise ValueError(f"its SHA-256 is {found}, published is {kind.sha256}; {_remedy(kind)}")
        with reading(path, "damaged, not a whole tar archive"):
            file.seek(0)
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with tarfile.open(fileobj=_Bounded(fileobj=file) if packed else file, mode="r:") as archive:
                for member in archive:
                    if member.offset_data + member.size > _LARGEST_ARCHIVE:
                        raise ValueError(f"it unpacks to more than {_LARGEST_ARCHIVE:,} bytes")
                    folder, _, name = member.name.removeprefix("./").rpartition("/")
                    if folder != kind.folder or name not in wanted or not member.isreg():
                        continue
                    if member.size > _LARGEST_FILE:
                        raise ValueError(f"member {name} has {member.size:,} bytes, more than was published")
                    stream = archive.extractfile(member)
                    files[name] = b"" if stream is None else stream.read()
    with reading(path, "not the whole archive"):
        if missing := [name for name in wanted if name not in files]:
            raise ValueError(f"member {missing[0]} is missing")
    return files


def _remedy(kind: Cifar) -> str:
    return f"get {kind.archive} anew, or give what is your own another name"


class _Bounded(gzip.GzipFile):
    """What is packed, where the archive may not ask for a part that is larger than any that was published."""

    def read(self, size: int | None = -1) -> bytes:
        """Reads so many bytes."""
        if size is None or not 0 <= size <= _LARGEST_FILE:
            raise ValueError(f"a part of {size} bytes, more than was published")
        return super().read(size)


def _examples(path: Path, name: str, pickled: bytes, kind: Cifar) -> tuple[np.ndarray, np.ndarray]:
    with reading(path, f"member {name} is damaged"):
        batch = unpickled(pickled)
        images, labels = (_plain(batch[key]) for key in (b"data", kind.labels))
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
            raise ValueError("its data are no bytes [n, 3072]")
        labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
        if not isinstance(labels, list) or len(labels) != len(images):
            raise ValueError(f"it has no list of labels, one for each of {len(images)} images")
        if wrong := [label for label in labels if type(label) is not int or not 0 <= label < kind.classes]:
            raise ValueError(f"a label is {wrong[0]!r}, must be 0 to {kind.classes - 1}")
        return images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int32)


class _DType:
    """A kind of whole numbers: its code, and the order of its bytes once that is known."""

    def __init__(self, code: Any) -> None:
        self.code, self.order = _text(code), "|"
        if self.code not in _NUMBERS:
            raise ValueError(f"numbers of the kind {self.code!r}: known are {', '.join(_NUMBERS)}")

    def build(self, state: Any) -> None:
        self.order = _text(state[1])
        if self.order not in ("|", "<", ">"):
            raise ValueError(f"bytes in the order {self.order!r}")


class _Array:
    """An array, empty until its contents come."""

    def __init__(self) -> None:
        self.values: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, values = state
        if not isinstance(dtype, _DType) or not isinstance(values, bytes):
            raise ValueError("an array of something else than numbers")
        flat = np.frombuffer(values, np.dtype(dtype.order + dtype.code))
        self.values = flat.reshape(shape, order="F" if fortran else "C")


def unpickled(pickled: bytes) -> Any:
    """What a pickle of numbers, texts (bytes), lists, tuples, dictionaries and arrays of whole numbers says.

    Raises:
        Exception: of nearly any kind, for what is damaged or says anything else.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def above_mark() -> list[Any]:
        above = stack[marks[-1] :]
        del stack[marks.pop() :]
        return above

    for opcode, argument, _ in pickletools.genops(pickled):
        value: Any = argument
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(value)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(value)
            case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2
                stack.append(value.encode("latin-1"))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "APPEND" | "APPENDS":
                more = above_mark() if opcode.name == "APPENDS" else [stack.pop()]
                _of_type(list, stack[-1]).extend(more)
            case "SETITEM" | "SETITEMS":
                pairs = above_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _of_type(dict, stack[-1]).update(zip(pairs[::2], pairs[1::2], strict=True))
            case "GLOBAL":
                stack.append(_known(*value.split(" ", 1)))
            case "STACK_GLOBAL":
                name = stack.pop()
                stack.append(_known(stack.pop(), name))
            case "REDUCE":
                arguments = stack.pop()
                stack[-1] = _made(stack[-1], arguments)
            case "BUILD":
                state = stack.pop()
                _of_type((_DType, _Array), stack[-1]).build(state)
            case other:
                raise ValueError(f"the instruction {other} has no place in a data set")
    raise ValueError("it has no end")


def _known(module: str, name: str) -> tuple[str, str]:
    """What numpy's own pickles name, as words."""
    if (module, name) not in (*_RECONSTRUCT, _NDARRAY, _DTYPE):
        raise ValueError(f"{module}.{name} has no place in a data set")
    return module, name


def _made(what: Any, arguments: Any) -> _Array | _DType:
    if what in _RECONSTRUCT and arguments[0] == _NDARRAY:
        return _Array()
    if what == _DTYPE:
        return _DType(arguments[0])
    raise ValueError("it calls what has no place in a data set")


def _of_type(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where it can't be")
    return value


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, _Array) else value
