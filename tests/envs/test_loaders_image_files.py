"""ImageNet from folders and from Parquet: small files as PIL and polars write them, read here and by workers."""

import io
import itertools
import math
import multiprocessing
import os
import signal

import jax
import numpy as np
import polars as pl
import pytest
from PIL import Image

from envs.datasets import DatasetMissing
from envs.loaders import Share, held_out_image_files, image_files, load_image_files, training_image_files
from envs.loaders.image_files import crop_box, middle


def jpeg(color, width=20, height=12):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), color).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def shade(number):
    return (10 * number, 255 - 10 * number, 128)


@pytest.fixture
def folder(tmp_path):
    """Two classes; image i of eleven has the colour `shade(i)`, the last ones are of the second class."""
    places = [("train/n01", 0), ("train/n01", 1), *(("train/n02", i) for i in range(2, 8))]
    for place, number in [*places, ("val/n02", 8), ("val/n01", 9), ("val/n01", 10)]:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / f"{number}.JPEG").write_bytes(jpeg(shade(number)))
    (tmp_path / "train" / "n01" / "thumbs.db").write_bytes(b"not an image")
    return tmp_path


def write_parquet(path, numbers, labels):
    images = [{"bytes": jpeg(shade(number)), "path": f"{number}.JPEG"} for number in numbers]
    pl.DataFrame({"image": images, "label": labels}).write_parquet(path)


def some(loader, count, position=None):
    found = list(itertools.islice(loader.batches(position or loader.start), count))
    return [batch for batch, _ in found], [position for _, position in found]


def seen(batches):
    """Which numbers the images have, by their colour."""
    return [round(float(image[..., 0].mean()) / 10) for batch in batches for image in batch.images]


def test_a_folder_of_classes(folder):
    splits = load_image_files(folder)
    assert splits.classes == 2
    assert splits.train.labels.tolist() == [0, 0] + [1] * 6
    batches, _ = some(training_image_files(splits.train, 4, seed=0, workers=0, size=8), 4)
    assert batches[0].images.shape == (4, 8, 8, 3)
    numbers = seen(batches)
    assert sorted(numbers[:8]) == sorted(numbers[8:]) == list(range(8))
    assert [number > 1 for number in numbers] == [bool(label) for batch in batches for label in batch.labels]

    held_out, _ = some(held_out_image_files(splits.held_out, 2, workers=0, size=8), None)
    assert seen(held_out) == [10, 9, 8, 10]  # "10.JPEG" comes before "9.JPEG"; the last one fills up
    assert [batch.weights.tolist() for batch in held_out] == [[1, 1], [1, 0]]
    assert held_out[1].labels[0] == 1


def test_workers_give_the_same_batches_from_any_position(folder):
    pytest.importorskip("grain", reason="the extra data is not installed")
    splits = load_image_files(folder)
    alone, positions = some(training_image_files(splits.train, 4, seed=0, workers=0, size=8), 7)
    running = training_image_files(splits.train, 4, seed=0, workers=2, size=8).batches(positions[2])
    together = [next(running)]
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)  # Ctrl-C, which a terminal sends to all of them
    together += itertools.islice(running, 3)
    running.close()
    assert multiprocessing.active_children() == []
    assert [position for _, position in together] == positions[3:]
    jax.tree.map(np.testing.assert_array_equal, [batch for batch, _ in together], alone[3:])


def test_an_error_in_a_worker_is_told(folder):
    pytest.importorskip("grain", reason="the extra data is not installed")
    (folder / "val" / "n01" / "9.JPEG").write_bytes(jpeg(shade(9))[:300])
    loader = held_out_image_files(load_image_files(folder).held_out, 4, workers=1, size=8)
    with pytest.raises(ValueError, match=r"9\.JPEG: damaged, or no image"):
        some(loader, None)


def test_the_shares_of_processes_make_up_the_batch(folder):
    files = load_image_files(folder).train
    (whole,), _ = some(training_image_files(files, 4, seed=0, workers=0, size=8), 1)
    parts = [
        some(training_image_files(files, 4, seed=0, workers=0, size=8, share=Share(i, 2)), 1)[0][0] for i in (0, 1)
    ]
    jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, np.concatenate(b)), whole, *parts)


def test_parquet_as_hugging_face_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "BLOCK_ROWS", 2)
    monkeypatch.setattr(image_files, "WINDOW_BLOCKS", 2)
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", range(5), [0, 1, 2, 0, 1])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", range(5, 11), [2, 0, 1, 2, 0, 1])
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", range(11, 14), [2, 0, 1])
    splits = load_image_files(tmp_path)
    assert splits.classes == 3
    batches, _ = some(training_image_files(splits.train, 11, seed=0, workers=0, size=8), 2)
    for batch in batches:
        assert sorted(seen([batch])) == list(range(11))
        assert [number % 3 for number in seen([batch])] == batch.labels.tolist()
    assert seen(batches[:1]) != seen(batches[1:])
    assert seen(some(held_out_image_files(splits.held_out, 3, workers=0, size=8), 1)[0]) == [11, 12, 13]


def test_parquet_is_shuffled_by_blocks_and_within_windows_of_them(tmp_path):
    for name, rows in (("train-0", 64 * 40), ("train-1", 70), ("val-0", 1)):
        frame = pl.DataFrame({"image": [{"bytes": b""}] * rows, "label": [0] * rows})
        frame.write_parquet(tmp_path / f"{name}.parquet")
    order = load_image_files(tmp_path).train.order
    first = order(0, 0)
    assert sorted(first) == list(range(2630))
    blocks = first[:900] // 64
    assert len(set(blocks.tolist())) == 16
    assert set(blocks.tolist()) != set(range(16))
    assert (np.diff(blocks) != 0).mean() > 0.9
    assert not np.array_equal(first, order(0, 1))
    assert not np.array_equal(first, order(1, 0))


def test_a_crop_is_within_the_image_and_of_the_right_size():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(500, 375, rng) for _ in range(2000)])
    wide, high = (boxes[:, 2:] - boxes[:, :2]).T
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 500).all() and (boxes[:, 3] <= 375).all()
    share, ratio = wide * high / (500 * 375), wide / high
    assert 0.078 < share.min() < 0.09 and share.max() > 0.97
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.35
    # Uniform in the logarithm, as long as all fits: as many upright as lying ones.
    small = share < 0.5
    assert abs((ratio[small] < 1).mean() - 0.5) < 0.05


@pytest.mark.parametrize(("width", "height", "box"), [(1000, 10, (493, 0, 506, 10)), (9, 900, (0, 444, 9, 456))])
def test_a_crop_of_a_strip_is_its_middle(width, height, box):
    assert crop_box(width, height, np.random.default_rng(0)) == box


def test_the_middle_keeps_seven_eighths_of_the_shorter_side():
    # Columns count from 0 to 255: scaled by 256 / 128, the square of 224 in the middle starts at 16 of 256 rows.
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (128, 256, 3))
    seen = np.asarray(middle(Image.fromarray(np.ascontiguousarray(ramp)), 224))
    assert seen.shape == (224, 224, 3)
    left = (512 - 224) / 2 / 2
    np.testing.assert_allclose(seen[0, :, 0], left + np.arange(224) / 2, atol=1)
    assert middle(Image.new("L", (3, 7)), 224).size == (224, 224)
    assert math.isclose(224 * 8 / 7, 256)


def test_grey_images_become_colours(folder):
    Image.new("L", (9, 9), 80).save(folder / "val" / "n02" / "8.JPEG")
    held_out, _ = some(held_out_image_files(load_image_files(folder).held_out, 3, workers=0, size=8), None)
    assert seen(held_out) == [10, 9, 8]


def test_hidden_folders_are_no_classes_and_what_would_turn_white_is_refused(folder, monkeypatch):
    for split in ("train", "val"):
        (folder / split / ".ipynb_checkpoints").mkdir()
    assert load_image_files(folder).classes == 2
    damaged = sorted((folder / "val" / "n02").iterdir())[0]
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(damaged, format="png")
    with pytest.raises(ValueError, match=rf"{damaged.name}: .*its mode is I;16, must have 8 bits a channel"):
        some(held_out_image_files(load_image_files(folder).held_out, 3, workers=0, size=8), None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"damaged, or no image \(Image size"):
        some(held_out_image_files(load_image_files(folder).held_out, 3, workers=0, size=8), None)


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.delenv("NAP_DATA", raising=False)
    with pytest.raises(DatasetMissing, match=r"\$NAP_DATA/imagenet, and NAP_DATA is not set: `hf download"):
        load_image_files()
    with pytest.raises(DatasetMissing, match="neither folders train and val"):
        load_image_files(tmp_path)


def test_something_wrong(folder, tmp_path):
    (folder / "val" / "n03").mkdir()
    with pytest.raises(ValueError, match="class n03 has no folder among those to train on"):
        load_image_files(folder)
    empty = tmp_path / "empty"
    for place in ("train/a", "val/a"):
        (empty / place).mkdir(parents=True)
    with pytest.raises(ValueError, match="train: no images"):
        load_image_files(empty)
    other = tmp_path / "other"
    other.mkdir()
    write_parquet(other / "train-0.parquet", [0, 1], [0, 1])
    write_parquet(other / "test-0.parquet", [2], [-1])
    with pytest.raises(ValueError, match=r"test-0\.parquet and its like: labels go from -1 to -1, must lie in 0 to 1"):
        load_image_files(other)
    pl.DataFrame({"pixels": [1]}).write_parquet(other / "train-0.parquet")
    with pytest.raises(ValueError, match=r"train-0\.parquet: not Parquet with images and labels \(it has .*pixels"):
        load_image_files(other)
    (other / "train-0.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match=r"train-0\.parquet: not Parquet with images"):
        load_image_files(other)
