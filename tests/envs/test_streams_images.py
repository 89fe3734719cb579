"""Each stream of images against numpy: what a task does to which image, which classes it has, how its pool grows."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.datasets import Dataset
from envs.streams import STREAMS, make_stream

CLASSES, EACH = 12, 20
KEY = jax.random.key(11)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def dataset():
    """12 classes of 20 images, and of 2 or 3 test images. Images differ, so that one is known by its pixels."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES, dtype=np.int32), EACH))
    test_labels = rng.permutation(np.arange(30, dtype=np.int32) % CLASSES).astype(np.int32)
    images = rng.integers(0, 256, (len(labels), 4, 3, 2), dtype=np.uint8)
    return Dataset("made-up", images, labels, rng.integers(0, 256, (30, 4, 3, 2), dtype=np.uint8), test_labels, CLASSES)


def make(name, dataset, **numbers):
    """A stream that takes numpy arrays, and its `begin`, compiled, from an index to a task in numpy."""
    stream = make_stream(name, dataclasses.replace(STREAMS[name].published["quick"].protocol, **numbers), dataset)
    begin = jit(stream.begin)

    def with_numpy(function):
        return function and (lambda data, *rest: function(data, *jax.tree.map(jnp.asarray, rest)))

    taking_numpy = {name: with_numpy(getattr(stream, name)) for name in ("order", "batch", "test")}
    return stream._replace(**taking_numpy), lambda index, key=KEY: jax.tree.map(
        np.asarray, begin(stream.data, key, index)
    )


def rows_of(x, images):
    """Which images these are, by their pixels."""
    known = {image.tobytes(): row for row, image in enumerate(images)}
    return np.array([known[np.rint(np.asarray(image) * 255).astype(np.uint8).tobytes()] for image in x])


def permuted(image, permutation):
    """Pixel by pixel, an image [height, width, channels] with its pixels moved."""
    height, width, channels = image.shape
    out = np.zeros((height, width, channels), np.float32)
    for pixel in range(height * width):
        source = int(permutation[pixel])
        for channel in range(channels):
            value = image[source // width, source % width, channel]
            out[pixel // width, pixel % width, channel] = value / np.float32(255)
    return out


def test_permuted_inputs(dataset):
    stream, begin = make("permuted-inputs", dataset, examples=100)
    task, other = begin(3), begin(4)
    assert sorted(task.transform) == sorted(other.transform) == list(range(12))
    assert list(task.transform) != list(other.transform)
    assert set(task.rows) != set(other.rows)  # each task draws its own images
    item = np.array([5, 0, 99])
    x, y = stream.batch(stream.data, task, item)
    for position, image, label in zip(item, x, y, strict=True):
        row = task.rows[position]
        np.testing.assert_allclose(image, permuted(dataset.images[row], task.transform), rtol=1e-6)
        assert label == dataset.labels[row]
    x, y, weight = stream.test(stream.data, task)
    np.testing.assert_allclose(x[7], permuted(dataset.test_images[7], task.transform), rtol=1e-6)
    np.testing.assert_array_equal(y, dataset.test_labels)
    assert weight.shape == (30,) and weight.min() == 1


def test_interpolated_permutations(dataset):
    stream, begin = make("interpolated-permutations", dataset, examples=100, blend=4)
    ends = begin(4), begin(8)
    task = begin(5)
    np.testing.assert_array_equal(task.transform[0], ends[0].transform[0])
    np.testing.assert_array_equal(task.transform[1], ends[1].transform[0])
    assert list(ends[0].transform[0]) != list(ends[1].transform[0])
    item = np.array([8])
    for index, share in ((4, 0.0), (5, 0.25), (6, 0.5), (7, 0.75), (8, 1.0)):
        x, y = stream.batch(stream.data, begin(index), item)
        row = begin(index).rows[8]
        here, there = (permuted(dataset.images[row], end.transform[0]) for end in ends)
        np.testing.assert_allclose(x[0], (1 - share) * here + share * there, rtol=1e-5, atol=1e-6)
        assert y[0] == dataset.labels[row]
    x = stream.test(stream.data, begin(6))[0]
    here, there = (permuted(dataset.test_images[2], end.transform[0]) for end in ends)
    np.testing.assert_allclose(x[2], (here + there) / 2, rtol=1e-5, atol=1e-6)


def test_input_scaling(dataset):
    stream, begin = make("input-scaling", dataset, examples=100)
    task = begin(2)
    x, _ = stream.batch(stream.data, task, np.array([1]))
    np.testing.assert_allclose(x[0], task.transform * (dataset.images[task.rows[1]] / 255), rtol=1e-5)
    x = stream.test(stream.data, task)[0]
    np.testing.assert_allclose(x, task.transform * (dataset.test_images / 255), rtol=1e-5)
    factors = jit(lambda key, data: jax.vmap(stream.begin, (None, None, 0))(data, key, jnp.arange(1000)).transform)
    exponents = np.log10(factors(KEY, stream.data))
    # Log-uniform in 0.1 to 10: exponents uniform in -1 to 1, standard deviation 1/sqrt(3).
    assert exponents.min() >= -1 and exponents.max() <= 1
    assert abs(exponents.mean()) < 4 * 3**-0.5 / 1000**0.5
    assert abs(exponents.std() - 3**-0.5) < 0.05


def test_sign_flips(dataset):
    stream, begin = make("sign-flips", dataset, examples=100)
    task, other = begin(2), begin(3)
    assert set(task.transform.ravel()) == {-1.0, 1.0} and task.transform.shape == (4, 3, 2)
    assert not np.array_equal(task.transform, other.transform)
    x, _ = stream.batch(stream.data, task, np.array([1]))
    np.testing.assert_allclose(x[0], task.transform * (dataset.images[task.rows[1]] / 255), rtol=1e-6)
    x = stream.test(stream.data, task)[0]
    np.testing.assert_allclose(x, task.transform * (dataset.test_images / 255), rtol=1e-6)


def test_random_labels(dataset):
    stream, begin = make("random-labels", dataset, examples=200)
    task, other = begin(0), begin(1)
    np.testing.assert_array_equal(task.rows, other.rows)  # the seed's images
    assert set(task.rows) != set(begin(0, jax.random.key(12)).rows)
    assert len(set(task.rows)) == 200
    assert stream.test is None
    item = np.array([7, 3, 150])
    x, y = stream.batch(stream.data, task, item)
    np.testing.assert_array_equal(rows_of(x, dataset.images), task.rows[item])
    np.testing.assert_array_equal(y, task.labels[item])
    # Uniform over 12 classes and independent of the true label: chance agreement is 1/12, give or take 0.02.
    assert set(task.labels) == set(range(CLASSES))
    assert np.mean(task.labels == dataset.labels[task.rows]) < 0.2
    assert np.mean(task.labels == other.labels) < 0.2


def test_label_permutation(dataset):
    stream, begin = make("label-permutation", dataset, examples=200)
    task, other = begin(0), begin(1)
    np.testing.assert_array_equal(task.rows, other.rows)
    assert sorted(task.names) == sorted(other.names) == list(range(CLASSES))
    assert list(task.names) != list(other.names)
    item = np.array([7, 3, 150])
    x, y = stream.batch(stream.data, task, item)
    rows = rows_of(x, dataset.images)
    np.testing.assert_array_equal(rows, task.rows[item])
    assert list(y) == [task.names[dataset.labels[row]] for row in rows]
    _, y, weight = stream.test(stream.data, task)
    assert list(y) == [task.names[label] for label in dataset.test_labels]
    assert weight.min() == 1


def test_class_split_goes_through_all_pairs_before_any_comes_again(dataset):
    _, begin = make("class-split", dataset, examples=20, tasks=200, batch_size=5)
    pairs = list(itertools.combinations(range(CLASSES), 2))
    tasks = [begin(index) for index in range(2 * len(pairs))]
    drawn = [tuple(sorted(task.classes)) for task in tasks]
    assert sorted(drawn[:66]) == sorted(drawn[66:]) == pairs
    assert drawn[:66] != drawn[66:] and drawn[:66] != pairs
    zeros_lower = sum(task.classes[0] < task.classes[1] for task in tasks)
    assert 40 < zeros_lower < 92  # 66, give or take 4.5 standard deviations: either class may be 0
    kept = {}
    for task in tasks:
        for kind, rows in zip(task.classes, (task.rows[:10], task.rows[10:]), strict=True):
            assert set(dataset.labels[rows]) == {kind}
            assert kept.setdefault(int(kind), set(rows)) == set(rows)  # a class has the same images in every task
            assert len(set(rows)) == 10


def test_class_split_labels(dataset):
    stream, begin = make("class-split", dataset, examples=20, batch_size=5)
    assert stream.outputs == 2
    task = begin(3)
    order = stream.order(stream.data, task, KEY)
    x, y = stream.batch(stream.data, task, order.reshape(-1))
    true = dataset.labels[rows_of(x, dataset.images)]
    assert list(y) == [int(kind == task.classes[1]) for kind in true]
    assert np.sum(y) == 10
    x, y, weight = stream.test(stream.data, task)
    kept = np.asarray(weight) == 1
    rows = rows_of(x[kept], dataset.test_images)
    assert sorted(rows) == sorted(np.flatnonzero(np.isin(dataset.test_labels, task.classes)))
    assert list(y[kept]) == [int(dataset.test_labels[row] == task.classes[1]) for row in rows]


def test_five_plus_one(dataset):
    stream, begin = make("five-plus-one", dataset, examples=50, easy_examples=15, batch_size=10)
    tasks = [begin(index) for index in range(8)]
    # 12 classes make two rounds of six; the third has a new order.
    for start in (0, 4):
        hard, easy, hard_again, easy_again = tasks[start : start + 4]
        classes = [*hard.classes, easy.classes[0], *hard_again.classes, easy_again.classes[0]]
        assert sorted(classes) == list(range(12))
    assert list(tasks[0].classes) != list(tasks[4].classes)
    for index, task in enumerate(tasks):
        assert task.available == (15 if index % 2 else 50)
        used = task.rows[: task.available]
        assert len(set(used)) == task.available
        counts = np.bincount(dataset.labels[used], minlength=12)
        expected = {task.classes[0]: 15} if index % 2 else dict.fromkeys(task.classes, 10)
        assert {kind: counts[kind] for kind in np.flatnonzero(counts)} == expected
    task = tasks[1]
    order = stream.order(stream.data, task, KEY)
    x, y = stream.batch(stream.data, task, order.reshape(-1))
    assert order.shape == (5, 10) and set(y.tolist()) == {int(task.classes[0])}
    # 50 places for 15 images: three or four each.
    assert set(np.bincount(np.asarray(order).ravel(), minlength=15)) == {3, 4}
    for task in tasks[:2]:
        x, y, weight = stream.test(stream.data, task)
        kept = np.asarray(weight) == 1
        rows = rows_of(x[kept], dataset.test_images)
        assert sorted(rows) == sorted(np.flatnonzero(np.isin(dataset.test_labels, task.classes)))
        assert list(y[kept]) == list(dataset.test_labels[rows])


def test_class_incremental(dataset):
    stream, begin = make("class-incremental", dataset, examples=120, tasks=4, classes_per_task=3, batch_size=10)
    tasks = [begin(index) for index in range(4)]
    for index, task in enumerate(tasks):
        np.testing.assert_array_equal(task.classes, tasks[0].classes)
        seen = set(task.classes[: 3 * (index + 1)].tolist())
        order = stream.order(stream.data, task, jax.random.key(index))
        x, y = stream.batch(stream.data, task, order.reshape(-1))
        rows = rows_of(x, dataset.images)
        assert set(dataset.labels[rows]) == seen
        assert list(y) == list(dataset.labels[rows])
        uses = np.unique(rows, return_counts=True)[1]
        assert len(uses) == 30 * (index + 1) and uses.max() - uses.min() <= 1
        if index == 2:  # 90 rows have 120 places; the oldest must not have the rest of them in every epoch
            orders = [stream.order(stream.data, task, jax.random.key(epoch)) for epoch in range(300)]
            uses = np.bincount(np.ravel(orders), minlength=90)
            assert abs(uses[:30].mean() - uses[-30:].mean()) < 0.02 * uses.mean()
        _, y, weight = stream.test(stream.data, task)
        assert [int(w) for w in weight] == [int(label in seen) for label in y.tolist()]
    assert sorted(tasks[0].classes) == list(range(12)) and list(tasks[0].classes) != list(range(12))


def test_warm_start_in_halves_and_in_chunks(dataset):
    for tasks, sizes in ((2, [60, 120]), (7, [17, 34, 51, 68, 85, 102, 120])):
        stream, begin = make("warm-start", dataset, examples=120, tasks=tasks, batch_size=20)
        for index, size in enumerate(sizes):
            task = begin(index)
            assert task.available == size
            order = np.asarray(stream.order(stream.data, task, KEY))
            assert set(order.ravel()) == set(range(size))
            np.testing.assert_array_equal(task.rows, begin(0).rows)  # what was there stays
    x, y = stream.batch(stream.data, task, order[0])
    rows = rows_of(x, dataset.images)
    np.testing.assert_array_equal(rows, task.rows[order[0]])
    np.testing.assert_array_equal(y, dataset.labels[rows])
    np.testing.assert_array_equal(rows_of(stream.test(stream.data, task)[0], dataset.test_images), np.arange(30))


def test_a_class_without_images_is_told(dataset):
    gap = dataset._replace(labels=np.where(dataset.labels == 4, 5, dataset.labels).astype(np.int32))
    with pytest.raises(ValueError, match=r"class 4 has 0: number the classes without a gap$"):
        make("class-split", gap, examples=20)
    few = dataset._replace(labels=dataset.labels % 5, test_labels=dataset.test_labels % 5, classes=5)
    with pytest.raises(ValueError, match="needs 6 classes, made-up has 5"):
        make("five-plus-one", few, examples=50, easy_examples=10)
