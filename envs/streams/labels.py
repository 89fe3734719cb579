"""Streams whose labels change from task to task and whose inputs stay: drawn at random, or permuted."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32, Key

from envs.datasets import Dataset
from envs.streams.images import (
    Batch,
    HeldOut,
    Images,
    draw_rows,
    epoch_order,
    image_stream,
    on_device,
    part_key,
    scaled,
    whole_test_set,
)
from envs.streams.stream import Protocol, Published, Stream


class RandomLabels(NamedTuple):
    """The seed's images, as rows of the data set, and the task's label for each."""

    rows: Int32[Array, " examples"]
    labels: Int32[Array, " examples"]


class PermutedLabels(NamedTuple):
    """The seed's images, as rows of the data set, and what each class is called in this task."""

    rows: Int32[Array, " examples"]
    names: Int32[Array, " classes"]


def random_labels(dataset: Dataset, protocol: Protocol) -> Stream:
    """Memorize random labels: uniform over the classes, drawn anew for every task, over images that a seed draws once.

    L2-Init shuffles the images' own labels instead, which keeps the classes' counts.
    """

    def begin(data: Images, key: Key[Array, ""], index: Int[Array, ""] | int) -> RandomLabels:
        keys = part_key(key, index)
        rows = draw_rows(keys.pool, len(data.labels), protocol.examples)
        return RandomLabels(rows, jax.random.randint(keys.task, rows.shape, 0, dataset.classes, jnp.int32))

    def order(data: Images, task: RandomLabels, key: Key[Array, ""]) -> Int32[Array, "steps batch"]:
        return epoch_order(key, protocol)

    def batch(data: Images, task: RandomLabels, item: Int32[Array, " batch"]) -> Batch:
        return scaled(data.images[task.rows[item]]), task.labels[item]

    return image_stream(
        "random-labels", dataset, protocol, data=on_device(dataset), begin=begin, order=order, batch=batch, test=None
    )


def label_permutation(dataset: Dataset, protocol: Protocol) -> Stream:
    """The classes are renamed by a new random permutation in every task; a seed draws its images once.

    UPGD permutes what the last task had permuted, which has the same distribution.
    """

    def begin(data: Images, key: Key[Array, ""], index: Int[Array, ""] | int) -> PermutedLabels:
        keys = part_key(key, index)
        rows = draw_rows(keys.pool, len(data.labels), protocol.examples)
        return PermutedLabels(rows, jax.random.permutation(keys.task, dataset.classes).astype(jnp.int32))

    def order(data: Images, task: PermutedLabels, key: Key[Array, ""]) -> Int32[Array, "steps batch"]:
        return epoch_order(key, protocol)

    def batch(data: Images, task: PermutedLabels, item: Int32[Array, " batch"]) -> Batch:
        rows = task.rows[item]
        return scaled(data.images[rows]), task.names[data.labels[rows]]

    def test(data: Images, task: PermutedLabels) -> HeldOut:
        return scaled(data.test_images), task.names[data.test_labels], whole_test_set(data)

    return image_stream(
        "label-permutation",
        dataset,
        protocol,
        data=on_device(dataset),
        begin=begin,
        order=order,
        batch=batch,
        test=test,
    )


RANDOM_LABEL_PROTOCOLS = {
    "nap": Published(
        Protocol(tasks=200, epochs=200, examples=50_000, batch_size=100),
        dataset="cifar10",
        hidden=(512, 512),
        optimizer="adam",
        lr=1e-4,
        source="NaP, arXiv 2407.01800, fig. 5: 200 relabels, 20M updates, Adam 1e-4; ours: batch size, widths, images",
    ),
    "nap-dead-units": Published(
        Protocol(tasks=50, epochs=25, examples=4000, batch_size=100),
        dataset="mnist",
        hidden=(512, 512),
        optimizer="adam",
        lr=1e-3,
        source="NaP, arXiv 2407.01800, fig. 2: MNIST relabelled every 1,000 updates; ours: all else",
    ),
    "l2-init": Published(
        Protocol(tasks=50, epochs=400, examples=1200, batch_size=16),
        dataset="mnist",
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="L2-Init, arXiv 2308.11958; ours: uniform labels for shuffled ones",
    ),
    "l2-init-cifar": Published(
        Protocol(tasks=50, epochs=400, examples=1200, batch_size=16),
        dataset="cifar10",
        network="cnn",
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="L2-Init, arXiv 2308.11958; ours: uniform labels for shuffled ones",
    ),
    "quick": Published(
        Protocol(tasks=30, epochs=60, examples=400, batch_size=40),
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="ours: small enough for a laptop",
    ),
}

LABEL_PERMUTATION_PROTOCOLS = {
    "upgd": Published(
        Protocol(tasks=400, epochs=1, examples=50_000, batch_size=1, steps=2500),
        dataset="cifar10",
        network="cnn",
        channels=(6, 16),
        hidden=(120, 84),
        optimizer="sgd",
        lr=0.01,
        source="UPGD, github mohmdelsayed/upgd, CIFAR-10, lr of its SGD; ours: a ReLU after each convolution, and "
        "padding; pixels not centred",
    ),
    "quick": Published(
        Protocol(tasks=30, epochs=5, examples=1000, batch_size=10),
        hidden=(100, 100),
        optimizer="adam",
        lr=1e-3,
        source="ours: small enough for a laptop",
    ),
}
