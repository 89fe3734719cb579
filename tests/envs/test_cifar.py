"""CIFAR's archives: small ones, others under the published names, and pickles that do not mean well."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest

from envs import cifar, datasets
from envs.cifar import CIFARS, unpickled
from envs.datasets import DatasetMissing, load
from envs.reading import BadFile


def pictures(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.delenv("NAP_DATA", raising=False)


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


def published(monkeypatch, name, archive, contents):
    """Makes these the published files."""
    kind = CIFARS[name]
    sums = {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}
    parts = {part: {file: sums[file] for file in getattr(kind, part)} for part in ("train", "test")}
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets, "CIFARS", {name: kind._replace(sha256=sha256, **parts)})


def test_cifar10_from_the_archive_and_from_its_folder(cifar10, no_data, monkeypatch, tmp_path):
    batches, contents = cifar10
    archive = tmp_path / "cifar-10-python.tar.gz"
    cifar_tar(archive, "cifar-10-batches-py", {"readme.html": b"hello", **contents})
    published(monkeypatch, "cifar10", archive, contents)
    dataset = load("cifar10", root=archive)
    assert dataset.images.shape == (20, 32, 32, 3)
    assert dataset.test_images.shape == (4, 32, 32, 3)
    assert dataset.classes == 10
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
    cifar_tar(tmp_path / "mine.tar.gz", "cifar-100-python", {"train": train_content, "test": test_content})
    dataset = load("cifar100", root=tmp_path / "mine.tar.gz")
    np.testing.assert_array_equal(dataset.labels, train[b"fine_labels"])
    assert dataset.classes == 100


def test_other_images_under_cifars_names_are_refused_unseen(cifar10, no_data, monkeypatch, tmp_path):
    monkeypatch.setattr(cifar, "unpickled", lambda content: pytest.fail("it was read"))
    archive, folder = tmp_path / "cifar-10-python.tar.gz", tmp_path / "cifar-10-batches-py"
    cifar_tar(archive, "cifar-10-batches-py", cifar10[1])
    with pytest.raises(BadFile, match=r"cifar-10-python\.tar\.gz: not the published archive \(its SHA-256 is"):
        load("cifar10", root=archive)
    folder.mkdir()
    for name, content in cifar10[1].items():
        (folder / name).write_bytes(content)
    with pytest.raises(BadFile, match=r"data_batch_1: not the published file \(its MD5 is"):
        load("cifar10", root=tmp_path)


def test_cifar_with_something_wrong(cifar10, no_data, tmp_path):
    _, contents = cifar10
    with pytest.raises(DatasetMissing, match=r"curl -O https://.*/cifar-10-python\.tar\.gz"):
        load("cifar10", root=tmp_path)
    path = tmp_path / "mine.tar.gz"
    cifar_tar(path, "cifar-10-batches-py", {name: c for name, c in contents.items() if name != "data_batch_3"})
    with pytest.raises(BadFile, match="member data_batch_3 is missing"):
        load("cifar10", root=path)
    cifar_tar(path, "cifar-10-batches-py", {**contents, "data_batch_2": contents["data_batch_2"][:50]})
    with pytest.raises(BadFile, match="member data_batch_2 is damaged"):
        load("cifar10", root=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadFile, match="not a whole tar archive"):
        load("cifar10", root=path)


def test_links_in_an_archive_are_no_members(cifar10, no_data, tmp_path):
    path = tmp_path / "mine.tar"
    for target in ("nowhere", "data_batch_1"):  # and in a circle
        with tarfile.open(path, "w") as archive:
            link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        with pytest.raises(BadFile, match="member data_batch_1 is missing"):
            load("cifar10", root=path)


def test_an_archive_that_unpacks_to_too_much(cifar10, no_data, monkeypatch, tmp_path):
    path = tmp_path / "mine.tar.gz"
    cifar_tar(path, "cifar-10-batches-py", {"readme.html": bytes(10_000), **cifar10[1]})
    monkeypatch.setattr(cifar, "_LARGEST_FILE", 12_000)
    with pytest.raises(BadFile, match=r"member data_batch_1 has 12,\d+ bytes, more than was published"):
        load("cifar10", root=path)
    monkeypatch.setattr(cifar, "_LARGEST_ARCHIVE", 9_000)
    with pytest.raises(BadFile, match="unpacks to more than 9,000 bytes"):
        load("cifar10", root=path)


@pytest.mark.parametrize("label", [-1, 10, 1 << 32, 1 << 70, True, 1.0])
def test_a_label_that_cifar_has_not(cifar10, no_data, tmp_path, label):
    batch = cifar10[0][1] | {b"labels": [0, 1, label, 2]}
    cifar_tar(tmp_path / "mine.tar", "cifar-10-batches-py", {**cifar10[1], "data_batch_2": pickle.dumps(batch, 3)})
    with pytest.raises(BadFile, match="member data_batch_2 is damaged"):
        load("cifar10", root=tmp_path / "mine.tar")


class Malice:
    def __reduce__(self):
        return exec, ("import sys; sys.nap_was_here = True",)


class Pointers:
    """An array of objects whose addresses are in the file, as a pickle that may call numpy.ndarray makes it."""

    def __reduce__(self):
        return np.ndarray, ((3072,), np.dtype("O"), b"A" * 8 * 3072)


@pytest.mark.parametrize("made", [Malice(), Pointers(), np.array([{}], object), np.zeros(2), np.dtype("O")])
def test_a_pickle_makes_nothing_but_arrays_of_numbers(cifar10, no_data, tmp_path, made):
    import sys

    evil = pickle.dumps({b"data": made, b"labels": [0]}, protocol=3)
    cifar_tar(tmp_path / "mine.tar", "cifar-10-batches-py", {**cifar10[1], "data_batch_1": evil})
    with pytest.raises(BadFile, match="member data_batch_1 is damaged"):
        load("cifar10", root=tmp_path / "mine.tar")
    assert not hasattr(sys, "nap_was_here")


def test_what_python_2_pickled():
    """The published files: protocol 2 of Python 2, whose texts are bytes. Here an array [2, 2] and two labels."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x02K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T\x04\x00\x00\x00\x01\x02\xfe\xfftb"
    )
    found = unpickled(b"\x80\x02}q\x01(U\x04dataq\x02" + array + b"U\x06labels]r\x08\x01\x00\x00(K\x06M\x01\x01eu.")
    assert found[b"data"].values.tolist() == [[1, 2], [254, 255]]
    assert found[b"labels"] == [6, 257]


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i8", "<u2"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_of_whole_numbers_come_back(dtype, protocol):
    array = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
    found = unpickled(pickle.dumps({b"data": array, "n": [array, (1, None, True)]}, protocol=protocol))
    np.testing.assert_array_equal(found[b"data"].values, array)
    assert found["n"] == [found[b"data"], (1, None, True)]
