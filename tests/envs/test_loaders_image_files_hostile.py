"""Image files that somebody else made: other formats, strips, hidden ones, labels that are none, and fingerprints."""

import io

import numpy as np
import polars as pl
import pytest
from PIL import EpsImagePlugin, Image

from envs import datasets, fingerprints
from envs.loaders import held_out_image_files, load_image_files
from envs.loaders.image_files import middle
from envs.reading import BadFile


def encoded(image_format="PNG", size=(9, 7), color=(10, 20, 30)):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, image_format)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images to train on, and of one each to evaluate on."""
    for place in ("train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png", "val/a/0.png", "val/b/0.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(encoded())
    return tmp_path


def evaluated(root):
    held_out = load_image_files(root).held_out
    return [batch for batch, _ in held_out_image_files(held_out, 2, workers=0, size=8).batches((0,))]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_any_of_the_four_formats_under_any_of_their_names(folder, image_format):
    (folder / "val" / "a" / "0.png").write_bytes(encoded(image_format))
    (batch,) = evaluated(folder)
    assert np.abs(batch.images[0].astype(int) - (10, 20, 30)).max() < 8


@pytest.mark.parametrize("image_format", ["GIF", "TIFF", "PPM", "TGA", "EPS"])
def test_no_other_decoder_is_asked_and_no_program_started(folder, monkeypatch, image_format):
    """PIL hands an EPS file, which is a program in PostScript, to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript was started"))
    (folder / "val" / "a" / "0.png").write_bytes(encoded(image_format))
    with pytest.raises(BadFile, match=r"a/0\.png: damaged, or no image \(neither JPEG, PNG, WEBP, BMP\)"):
        evaluated(folder)


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (3, 900)])
def test_a_strip_is_cut_before_it_is_scaled(monkeypatch, size):
    """Scaled whole, 1 x 50,000 pixels would become 256 x 12.8 million."""
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, to, *rest: sizes.append(tuple(to)) or resize(self, to, *rest)
    )
    assert middle(Image.new("RGB", size), 224).size == (224, 224)
    assert max(sizes[0]) <= 100 * 256


def test_a_strips_middle_is_what_is_seen():
    ramp = np.repeat(np.arange(20_000, dtype=np.uint32)[None, :, None] // 100, 3, axis=2).astype(np.uint8)
    seen = np.asarray(middle(Image.fromarray(ramp), 224))
    assert set(np.unique(seen)) <= {99, 100}


def test_images_in_folders_below_a_class_are_found_and_hidden_ones_are_not(folder):
    (folder / "train" / "a" / "images").mkdir()
    (folder / "train" / "a" / "images" / "2.png").write_bytes(encoded())
    (folder / "train" / "a" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "a" / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(encoded())
    (folder / "train" / "a" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (folder / "val" / "b" / "._0.JPEG").write_bytes(b"\x00\x05\x16\x07")
    (folder / "val" / "b" / "boxes.txt").write_text("0 0 1 1", encoding="utf-8")
    splits = load_image_files(folder)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert splits.train.read(2)[1] == str(folder / "train" / "a" / "images" / "2.png")
    assert splits.held_out.labels.tolist() == [0, 1]
    assert splits.unread == (folder / "val" / "b" / "boxes.txt",)


def test_a_class_whose_images_have_other_names_is_not_left_out_unsaid(folder):
    for path in (folder / "train" / "b").iterdir():
        path.rename(path.with_suffix(".tiff"))
    with pytest.raises(BadFile, match=r"train/b: no images \(\.jpeg, .*in the folder of a class"):
        load_image_files(folder)


def write_parquet(root, labels, held_out=(0,)):
    for name, values in (("train-0", labels), ("val-0", list(held_out))):
        images = [{"bytes": encoded(), "path": None}] * len(values)
        pl.DataFrame({"image": images, "label": values}, strict=False).write_parquet(root / f"{name}.parquet")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0.0, 1.9, 2.5, 1.0], r"train-0\.parquet: .*its labels are Float64, must be whole numbers"),
        ([0, 1, None, 1], r"train-0\.parquet: .*row 2 has no label"),
        ([None, None], r"train-0\.parquet: .*its labels are Null"),
        (["a", "b"], r"train-0\.parquet: .*its labels are String"),
        ([True, False], r"train-0\.parquet: .*its labels are Boolean"),
        ([0, 1, (1 << 32) + 1], r"train-0\.parquet: .*row 2 has the label 4294967297, beyond 32 bits"),
        ([0, -(1 << 31) - 1], r"train-0\.parquet: .*row 1 has the label -2147483649, beyond 32 bits"),
        ([0, 1, (1 << 31) - 1], r"train-0\.parquet .*: labels go up to 2147483647, must be below 3"),
        ([0, 1, 3], r"train-0\.parquet .*: labels go up to 3, must be below 3, as 3 images are trained on"),
    ],
)
def test_a_label_that_is_none(tmp_path, labels, told):
    write_parquet(tmp_path, labels)
    with pytest.raises(BadFile, match=told):
        load_image_files(tmp_path)


def test_labels_of_any_whole_numbers(tmp_path):
    write_parquet(tmp_path, pl.Series([1, 0, 1], dtype=pl.UInt64))
    assert load_image_files(tmp_path).train.labels.tolist() == [1, 0, 1]
    write_parquet(tmp_path, [0], held_out=[None])
    with pytest.raises(BadFile, match=r"val-0\.parquet: .*its labels are Null"):
        load_image_files(tmp_path)


def test_a_panic_of_polars_is_one_line(tmp_path, monkeypatch):
    class PanicException(BaseException):  # as pyo3's: no Exception
        pass

    def panic(*args, **kwargs):
        raise PanicException("called `Option::unwrap()`\n on a `None` value")

    write_parquet(tmp_path, [0])
    splits = load_image_files(tmp_path)
    monkeypatch.setattr(pl, "scan_parquet", panic)
    with pytest.raises(
        BadFile, match=r"val-0\.parquet: damaged in rows 0 to 0 \(called `Option::unwrap\(\)` on a `None`"
    ):
        [*held_out_image_files(splits.held_out, 1, workers=0, size=8).batches((0,))]
    with pytest.raises(BadFile, match=r"train-0\.parquet: not Parquet with images and labels \(called"):
        load_image_files(tmp_path)


def test_a_fingerprint_of_image_files(folder):
    before = load_image_files(folder).fingerprint
    assert load_image_files(folder).fingerprint == before
    changes = [
        lambda: (folder / "train" / "a" / "0.png").write_bytes(encoded(color=(10, 20, 31))),
        lambda: (folder / "train" / "a" / "0.png").rename(folder / "train" / "a" / "2.png"),
        lambda: (folder / "val" / "b" / "0.png").write_bytes(b"x" * len(encoded())),
        lambda: (folder / "train" / "b" / "0.png").rename(folder / "train" / "a" / "3.png"),
    ]
    seen = {before}
    for change in changes:
        change()
        seen.add(load_image_files(folder).fingerprint)
    assert len(seen) == 5


def test_a_fingerprint_of_parquet_files(tmp_path):
    seen = set()
    for labels in ([0, 1, 1], [1, 0, 1]):
        write_parquet(tmp_path, labels)
        seen |= {load_image_files(tmp_path).fingerprint for _ in range(2)}
    assert len(seen) == 2


def test_of_many_files_some_are_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_SAMPLED_FILES", 2)
    monkeypatch.setattr(fingerprints, "_SAMPLED_BYTES", 3)
    files = [tmp_path / f"{i}" for i in range(4)]
    for file in files:
        file.write_bytes(b"abcdefg")
    before = fingerprints.of_files(tmp_path, files)
    files[1].write_bytes(b"not sampled")
    files[2].write_bytes(b"abc-efg")  # nor is its middle
    assert fingerprints.of_files(tmp_path, files) == before
    for content in (b"xbcdefg", b"abcdefx", b"abcd-efg"):
        files[2].write_bytes(content)
        assert fingerprints.of_files(tmp_path, files) != before


def test_a_fingerprint_of_a_data_set_is_of_its_contents():
    digits = datasets.load("digits")
    assert fingerprints.of_dataset(digits) == fingerprints.of_dataset(datasets.load("digits"))
    changed = digits.labels.copy()
    changed[7] += 1
    assert fingerprints.of_dataset(digits._replace(labels=changed)) != fingerprints.of_dataset(digits)
    swapped = digits._replace(images=digits.test_images, test_images=digits.images)
    assert fingerprints.of_dataset(swapped) != fingerprints.of_dataset(digits)
