"""Batches of images in memory: each example once an epoch, the same from any position, in any number of processes."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.datasets import Dataset, load
from envs.loaders import (
    Share,
    crop_and_flip,
    held_out_images,
    normalize,
    statistics,
    training_images,
)
from envs.loaders.loader import endless, epoch_order, extra


@pytest.fixture
def numbered():
    """Eleven training images and seven others, of which each has its number as its label."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (18, 5, 4, 3), np.uint8)
    labels = np.arange(18, dtype=np.int32)
    return Dataset("numbered", images[:11], labels[:11], images[11:], labels[11:], classes=18)


def some(loader, count, position=None):
    found = list(itertools.islice(loader.batches(loader.start if position is None else position), count))
    return [batch for batch, _ in found], [position for _, position in found]


def equal(batches, others):
    assert len(batches) == len(others)
    jax.tree.map(np.testing.assert_array_equal, batches, others)


def test_every_epoch_has_each_example_once_and_another_order(numbered):
    loader = training_images(numbered, 4, seed=0, augment=False)
    assert loader.steps_per_epoch == 11 / 4
    batches, _ = some(loader, 11)  # 44 rows: four epochs
    epochs = np.concatenate([batch.labels for batch in batches]).reshape(4, 11)
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    np.testing.assert_array_equal(batches[3].images, numbered.images[batches[3].labels])
    other, _ = some(training_images(numbered, 4, seed=1, augment=False), 11)
    assert not np.array_equal(np.concatenate([batch.labels for batch in other])[:11], epochs[0])


def test_a_batch_can_be_larger_than_an_epoch(numbered):
    batches, _ = some(training_images(numbered, 33, seed=0, augment=True), 1)
    assert np.bincount(batches[0].labels).tolist() == [3] * 11


@pytest.mark.parametrize("augment", [False, True])
def test_it_goes_on_from_any_position(numbered, augment):
    loader = training_images(numbered, 4, seed=3, augment=augment)
    batches, positions = some(loader, 8)
    for done in (1, 2, 5):
        equal(some(loader, 8 - done, positions[done - 1])[0], batches[done:])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_of_processes_make_up_the_batch(numbered, processes):
    whole, _ = some(training_images(numbered, 4, seed=0, augment=True), 4)
    shares = [
        some(training_images(numbered, 4, seed=0, augment=True, share=Share(process, processes)), 4)[0]
        for process in range(processes)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        equal([batch], [jax.tree.map(lambda *rows: np.concatenate(rows), *parts)])


def test_held_out_images_come_once_and_the_last_batch_is_filled_up(numbered):
    loader = held_out_images(numbered, 4)
    batches, positions = some(loader, None)
    assert [len(batch.labels) for batch in batches] == [4, 4]
    labels, weights = (np.concatenate([getattr(batch, part) for batch in batches]) for part in ("labels", "weights"))
    assert labels[weights > 0].tolist() == list(range(11, 18))
    assert weights.tolist() == [1] * 7 + [0]
    assert some(loader, None, positions[-1]) == ([], [])


def test_a_crop_worked_by_hand():
    image = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3, 1)  # 1 2 3 over 4 5 6
    images = np.repeat(image, 4, 0)
    top, left = np.array([4, 5, 4, 3]), np.array([4, 4, 6, 3])
    crops = crop_and_flip(images, top, left, np.array([False, False, True, True]))[..., 0]
    assert crops[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert crops[1].tolist() == [[4, 5, 6], [0, 0, 0]]
    assert crops[2].tolist() == [[0, 0, 3], [0, 0, 6]]
    assert crops[3].tolist() == [[0, 0, 0], [2, 1, 0]]


def test_a_crop_depends_on_seed_epoch_and_image_only(numbered):
    def crops(batch_size, seed):
        batches, _ = some(training_images(numbered, batch_size, seed=seed, augment=True), 22 // batch_size)
        images = np.concatenate([batch.images for batch in batches])
        labels = np.concatenate([batch.labels for batch in batches])
        # Where the order puts an image differs with the batch size no more than its crop does.
        return [
            images[epoch * 11 : epoch * 11 + 11][labels[epoch * 11 : epoch * 11 + 11].argsort()] for epoch in (0, 1)
        ]

    first, second = crops(2, seed=0)
    np.testing.assert_array_equal(first, crops(11, seed=0)[0])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, crops(2, seed=1)[0])


def test_crops_are_as_likely_in_all_places():
    images = np.zeros((4000, 1, 1, 1), np.uint8) + 255
    dataset = Dataset("dots", images, np.zeros(4000, np.int32), images, np.zeros(4000, np.int32), classes=1)
    batches, _ = some(training_images(dataset, 4000, seed=0, augment=True), 1)
    # Of the 9 x 9 crops one has the dot: 4000 / 81 = 49 expected, with a standard deviation of 7.
    assert 28 < (batches[0].images == 255).sum() < 70


def test_normalize_gives_mean_0_and_deviation_1(numbered):
    constants = statistics(numbered)
    np.testing.assert_allclose(constants.mean, (numbered.images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(constants.std, (numbered.images / 255).std((0, 1, 2)), rtol=1e-12)
    normalized = normalize(numbered.images, constants)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(normalized.std((0, 1, 2)), 1, rtol=1e-6)
    on_device = jax.jit(lambda images: normalize(images, constants))(jnp.asarray(numbered.images))
    np.testing.assert_allclose(on_device, normalized, atol=1e-6)


def test_known_data_sets_have_the_published_constants(numbered):
    assert statistics(numbered._replace(name="cifar10")).mean == (0.4914, 0.4822, 0.4465)
    blank = numbered._replace(images=numbered.images * 0)
    assert np.isfinite(normalize(blank.images, statistics(blank))).all()


def test_digits_end_to_end():
    digits = load("digits")
    (batch,), _ = some(training_images(digits, 100, seed=0, augment=False), 1)
    assert batch.images.shape == (100, 8, 8, 1)
    assert some(held_out_images(digits, 100), None)[0][2].weights.sum() == 97


def test_what_can_not_be(numbered):
    with pytest.raises(ValueError, match="batch of 10 can't be divided among 4 processes; nearest: 8"):
        training_images(numbered, 10, seed=0, augment=False, share=Share(0, 4))
    with pytest.raises(ValueError, match="nearest: 4"):
        held_out_images(numbered, 2, share=Share(0, 4))
    with pytest.raises(ValueError, match="process 2 of 2: must lie in 0 to 1"):
        Share(2, 2)
    with pytest.raises(ValueError, match="no examples"):
        endless(lambda step: step, 4, 0)
    with pytest.raises(ValueError, match=r"loading tea needs no_such_package: `pip install .*extra data"):
        extra("no_such_package", "loading tea")


def test_what_a_package_itself_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "package_of_tea.py").write_text("import no_such_leaves.green", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    line = r"^loading tea needs package_of_tea, which can't be imported without no_such_leaves: `pip install package_of"
    with pytest.raises(ValueError, match=line):
        extra("package_of_tea", "loading tea")
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "PIL.Image", raising=False)
    with pytest.raises(ValueError, match=r"^loading tea needs pillow: `pip install pillow`"):
        extra("PIL.Image", "loading tea")


def test_an_order_can_not_be_changed_by_who_asks_for_it():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 5)[0] = 1
