"""Streams whose tasks are made of different classes: pairs of them, five and one in turn, or ever more."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, Key

from envs.datasets import Dataset
from envs.streams.images import (
    Batch,
    HeldOut,
    Images,
    class_rows,
    epoch_order,
    held_out_rows,
    image_stream,
    on_device,
    part_key,
    scaled,
    whole_test_set,
)
from envs.streams.stream import Protocol, Published, Stream

HARD_CLASSES, EASY_CLASSES = 5, 1


class ByClass(NamedTuple):
    """A data set on the device, and where each class is in it.

    Attributes:
      images: the data set.
      rows: training images of each class.
      test_rows: test images of each class, those of the smaller classes filled up with others,
      test_weights: for which the weight is 0.
    """

    images: Images
    rows: Int32[Array, "classes per_class"]
    test_rows: Int32[Array, "classes test_per_class"]
    test_weights: Float32[Array, "classes test_per_class"]


class Pairs(NamedTuple):
    """`ByClass`, and every pair of different classes."""

    by_class: ByClass
    pairs: Int32[Array, "pairs 2"]


class Pool(NamedTuple):
    """A task of some classes.

    Attributes:
      classes: those that it has.
      rows: its training images, as rows of the data set; only the first `available` are for use.
      available: how many.
    """

    classes: Int32[Array, " classes"]
    rows: Int32[Array, " examples"]
    available: Int32[Array, ""]


def class_split(dataset: Dataset, protocol: Protocol) -> Stream:
    """Tell two classes apart, labels 0 and 1: a different pair in every task.

    The pairs come in a random order, none twice until all were there; then in a new order. Which of the two is 0 is
    drawn too. A seed draws the images of a class once, `examples / 2`. Dohare et al. go through the classes two by two
    instead, so that a class comes back only after all others.

    Raises:
      ValueError: an odd number of examples, a single class, or fewer images of a class than asked for.
    """
    if protocol.examples % 2:
        raise ValueError(
            f"class-split: examples is {protocol.examples}, must be even, half for each class; "
            f"nearest: {protocol.examples + 1}"
        )
    if dataset.classes < 2:
        raise ValueError(f"class-split needs 2 classes, {dataset.name} has {dataset.classes}")
    each = protocol.examples // 2
    by_class = _by_class("class-split", dataset, each)
    pairs = np.array(list(itertools.combinations(range(dataset.classes), 2)), np.int32)

    def begin(data: Pairs, key: Key[Array, ""], index: Int[Array, ""] | int) -> Pool:
        keys = part_key(key, index)
        number = len(data.pairs)
        order = jax.random.permutation(jax.random.fold_in(keys.shared, index // number), number)
        pair = jax.random.permutation(keys.task, data.pairs[order[index % number]])
        rows = _rows_of(data.by_class, keys.pool, pair, each)
        return Pool(pair, rows.reshape(-1), jnp.int32(protocol.examples))

    def order(data: Pairs, task: Pool, key: Key[Array, ""]) -> Int32[Array, "steps batch"]:
        return epoch_order(key, protocol)

    def batch(data: Pairs, task: Pool, item: Int32[Array, " batch"]) -> Batch:
        x, y = _take(data.by_class, task, item)
        return x, (y == task.classes[1]).astype(jnp.int32)

    def test(data: Pairs, task: Pool) -> HeldOut:
        x, y, weight = _test(data.by_class, task.classes)
        return x, (y == task.classes[1]).astype(jnp.int32), weight

    return image_stream(
        "class-split",
        dataset,
        protocol,
        data=Pairs(by_class, jnp.asarray(pairs)),
        begin=begin,
        order=order,
        batch=batch,
        test=test,
        outputs=2,
    )


def five_plus_one(dataset: Dataset, protocol: Protocol) -> Stream:
    """Hard tasks of five classes alternate with easy ones of a single class; only the hard ones (even) are scored.

    Labels are the data set's own. The classes come in a random order, none twice until fewer than six are left; then
    in a new order. Both kinds of task take the same number of updates: an easy one goes over its `easy_examples` more
    often.

    Raises:
      ValueError: fewer than six classes, examples that five classes can't share evenly, or fewer images of a class
        than asked for.
    """
    both = HARD_CLASSES + EASY_CLASSES
    if dataset.classes < both:
        raise ValueError(f"five-plus-one needs {both} classes, {dataset.name} has {dataset.classes}")
    if protocol.examples % HARD_CLASSES or not protocol.easy_examples <= protocol.examples:
        raise ValueError(
            f"five-plus-one: examples is {protocol.examples}, must be a multiple of 5 and at least easy_examples, "
            f"{protocol.easy_examples}; nearest: {-(-max(protocol.examples, protocol.easy_examples) // 5) * 5}"
        )
    each = protocol.examples // HARD_CLASSES
    by_class = _by_class("five-plus-one", dataset, max(each, protocol.easy_examples))
    rounds = dataset.classes // both  # of a hard task and an easy one, until the classes are drawn anew

    def begin(data: ByClass, key: Key[Array, ""], index: Int[Array, ""] | int) -> Pool:
        keys = part_key(key, index)
        number = index // 2
        order = jax.random.permutation(jax.random.fold_in(keys.shared, number // rounds), dataset.classes)
        classes = jax.lax.dynamic_slice_in_dim(order, number % rounds * both, both).astype(jnp.int32)
        hard, easy = classes[:HARD_CLASSES], jnp.repeat(classes[HARD_CLASSES:], HARD_CLASSES)
        hard_rows = _rows_of(data, keys.pool, hard, each).reshape(-1)
        easy_rows = _rows_of(data, keys.pool, easy[:1], protocol.easy_examples)[0]
        easy_rows = jnp.pad(easy_rows, (0, protocol.examples - protocol.easy_examples), mode="edge")
        is_hard = jnp.asarray(index % 2 == 0)
        return Pool(
            jnp.where(is_hard, hard, easy),
            jnp.where(is_hard, hard_rows, easy_rows),
            jnp.where(is_hard, protocol.examples, protocol.easy_examples).astype(jnp.int32),
        )

    def order(data: ByClass, task: Pool, key: Key[Array, ""]) -> Int32[Array, "steps batch"]:
        return epoch_order(key, protocol, task.available)

    def test(data: ByClass, task: Pool) -> HeldOut:
        x, y, weight = _test(data, task.classes)
        # An easy task names its class five times: the first counts.
        first = jnp.argmax(task.classes[:, None] == task.classes, axis=1) == jnp.arange(HARD_CLASSES)
        return x, y, weight * jnp.repeat(first, weight.size // HARD_CLASSES)

    return image_stream(
        "five-plus-one",
        dataset,
        protocol,
        data=by_class,
        begin=begin,
        order=order,
        batch=_take,
        test=test,
        scored=lambda index: index % 2 == 0,
    )


def class_incremental(dataset: Dataset, protocol: Protocol) -> Stream:
    """Every task adds `classes_per_task` classes, in the order that a seed draws; the earlier ones stay.

    `examples` is the size of the whole pool, with as many of each class. An epoch always has the number of updates that
    it has with all classes, so that early tasks go over their images more often; test images of classes that have not
    come yet have weight 0. Dohare et al. also leave the outputs of these classes out of the loss.

    Raises:
      ValueError: more tasks than classes to add, examples that the classes can't share evenly, or fewer images of a
        class than asked for.
    """
    step = protocol.classes_per_task
    if protocol.tasks * step > dataset.classes:
        raise ValueError(
            f"class-incremental: {protocol.tasks} tasks of {step} classes need {protocol.tasks * step}, {dataset.name} "
            f"has {dataset.classes}; nearest: {dataset.classes // step} tasks"
        )
    if protocol.examples % dataset.classes:
        raise ValueError(
            f"class-incremental: examples is {protocol.examples}, must be a multiple of the {dataset.classes} classes; "
            f"nearest: {max(1, round(protocol.examples / dataset.classes)) * dataset.classes}"
        )
    each = protocol.examples // dataset.classes
    by_class = _by_class("class-incremental", dataset, each)

    def begin(data: ByClass, key: Key[Array, ""], index: Int[Array, ""] | int) -> Pool:
        keys = part_key(key, index)
        classes = jax.random.permutation(keys.shared, dataset.classes).astype(jnp.int32)
        rows = _rows_of(data, keys.pool, classes, each).reshape(-1)
        return Pool(classes, rows, jnp.asarray((index + 1) * (step * each), jnp.int32))

    def order(data: ByClass, task: Pool, key: Key[Array, ""]) -> Int32[Array, "steps batch"]:
        return epoch_order(key, protocol, task.available)

    def test(data: ByClass, task: Pool) -> HeldOut:
        arrives = jnp.argsort(task.classes)  # the place of each class in their order
        labels = data.images.test_labels
        seen = arrives[labels] < task.available // each
        return scaled(data.images.test_images), labels, seen * whole_test_set(data.images)

    return image_stream(
        "class-incremental", dataset, protocol, data=by_class, begin=begin, order=order, batch=_take, test=test
    )


def _by_class(name: str, dataset: Dataset, needed: int) -> ByClass:
    rows = class_rows(f"{name} on {dataset.name}", dataset.labels, dataset.classes, needed)
    held_out, weights = held_out_rows(dataset.test_labels, dataset.classes)
    return ByClass(on_device(dataset), *(jnp.asarray(part) for part in (rows, held_out, weights)))


def _rows_of(data: ByClass, key: Key[Array, ""], classes: Int32[Array, " k"], each: int) -> Int32[Array, "k each"]:
    """The images of some classes, in the seed's own order, which is the same whatever task asks for them."""

    def draw(kind: Int32[Array, ""]) -> Int32[Array, " each"]:
        return jax.random.permutation(jax.random.fold_in(key, kind), data.rows[kind])[:each]

    return jax.vmap(draw)(classes)


def _take(data: ByClass, task: Pool, item: Int32[Array, " batch"]) -> Batch:
    rows = task.rows[item]
    return scaled(data.images.images[rows]), data.images.labels[rows]


def _test(data: ByClass, classes: Int32[Array, " k"]) -> HeldOut:
    rows = data.test_rows[classes].reshape(-1)
    return (
        scaled(data.images.test_images[rows]),
        jnp.repeat(classes, data.test_rows.shape[1], total_repeat_length=rows.size),
        data.test_weights[classes].reshape(-1),
    )


SPLIT_PROTOCOLS = {
    "dohare": Published(
        Protocol(tasks=2000, epochs=250, examples=1200, batch_size=100),
        dataset="imagenet32.npz",
        reset_head=True,
        network="cnn",
        channels=(32, 64, 128),
        hidden=(128, 128),
        optimizer="momentum",
        lr=0.01,
        source="Dohare et al., github shibhansh/loss-of-plasticity, step sizes .01, .001, .0001; ours: any pairs, "
        "all convolutions 5x5 and padded",
    ),
    "l2-init": Published(
        Protocol(tasks=500, epochs=10, examples=1200, batch_size=100),
        dataset="imagenet32.npz",
        network="cnn",
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="L2-Init, arXiv 2308.11958; ours: any pairs",
    ),
    "quick": Published(
        Protocol(tasks=30, epochs=10, examples=200, batch_size=20),
        reset_head=True,
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="ours: small enough for a laptop",
    ),
}
FIVE_PLUS_ONE_PROTOCOLS = {
    "l2-init": Published(
        Protocol(tasks=30, epochs=10, examples=2500, batch_size=32, easy_examples=500),
        dataset="cifar100",
        network="cnn",
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="L2-Init, arXiv 2308.11958: 780 updates a task",
    ),
    "quick": Published(
        Protocol(tasks=30, epochs=20, examples=500, batch_size=20, easy_examples=100),
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="ours: small enough for a laptop",
    ),
}
INCREMENTAL_PROTOCOLS = {
    "dohare": Published(
        Protocol(tasks=20, epochs=200, examples=45_000, batch_size=90, classes_per_task=5),
        dataset="cifar100",
        network="cnn",
        hidden=(512,),
        optimizer="momentum",
        lr=0.1,
        source="Dohare et al., github shibhansh/loss-of-plasticity; ours: the network (there a ResNet-18), no "
        "augmentation, no weight decay (5e-4), no steps of the rate (x 0.2 at epochs 60, 120, 160); as many updates in "
        "every task",
    ),
    "quick": Published(
        Protocol(tasks=10, epochs=10, examples=1000, batch_size=20),
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="ours: small enough for a laptop; as many tasks as digits and Fashion-MNIST have classes",
    ),
}
